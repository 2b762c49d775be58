"""Queues templates on a running server, as a user would: python over_http.py http://127.0.0.1:8188 NAME..."""

from __future__ import annotations

import json
import sys
import time
import urllib.request

from harness import PACK
from litegraph import to_api


def ask(url: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def classes_of(server: str) -> dict[str, type]:
    return {
        name: type(name, (), {"INPUT_TYPES": classmethod(lambda cls, types=about["input"]: types)})
        for name, about in ask(f"{server}/object_info").items()
    }


def run(server: str, name: str, changes: dict[str, object] | None = None) -> dict:
    """The history entry of a template; RuntimeError where it failed. changes: input name -> value, in every node."""
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    graph = to_api(workflow, classes_of(server))
    for node in graph.values():
        node["inputs"] |= {key: value for key, value in (changes or {}).items() if key in node["inputs"]}
    queued = ask(f"{server}/prompt", {"prompt": graph, "client_id": "over_http"})
    if queued.get("node_errors"):
        raise RuntimeError(json.dumps(queued["node_errors"])[:2000])
    while not (entry := ask(f"{server}/history/{queued['prompt_id']}").get(queued["prompt_id"])):
        time.sleep(1)
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(entry["status"]["messages"])[-3000:])
    return entry


if __name__ == "__main__":
    address, *names = sys.argv[1:]
    for each in names:
        began = time.monotonic()
        outputs = run(address, each)["outputs"]
        files = [item["filename"] for values in outputs.values() for item in values.get("images", [])]
        print(f"{each}: {time.monotonic() - began:.0f} s, {', '.join(files)}")
