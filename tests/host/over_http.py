"""Queues templates on a running server, as a user would: python over_http.py [--few] http://127.0.0.1:8188 NAME...

--few: two steps of everything, to see that they run and not what they make.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import PACK, Graph
from on_embedded import on_embedded

from subgraphs import to_api

FEW = {"steps": 2, "token_steps": 2, "preview_every": 0}


class Failed(RuntimeError):
    """A queued graph did not get to its end; messages: what the server tells of it."""

    def __init__(self, messages: list) -> None:
        super().__init__(_told(messages))
        self.messages = messages


def _told(messages: list) -> str:
    """The node's own sentence, then where it comes from; the inputs that the server adds are whole tensors."""
    for event, about in messages:
        if event == "execution_error":
            place = f"{about['exception_type']} in node {about['node_id']}, {about['node_type']}"
            return f"{about['exception_message'].strip()}\n{place}\n{''.join(about['traceback'])}"
    return ", ".join(event for event, _ in messages) or "The server tells nothing."


class Server:
    """A running ComfyUI, by its address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._classes: dict[str, type] = {}

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to a GET, or to a POST of a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    @property
    def classes(self) -> dict[str, type]:
        """As much of every node class as reading a workflow takes."""
        if not self._classes:
            for name, about in self.ask("/object_info").items():
                types = {"INPUT_TYPES": classmethod(lambda cls, inputs=about["input"]: inputs)}
                self._classes[name] = type(name, (), types)
        return self._classes

    def template(self, name: str, changes: Mapping[str, Any] | None = None, drawn: bool = False) -> Graph:
        """A template as the frontend queues it, on the embedded base. changes: widget -> value, in every node.

        drawn: as of `on_embedded`.
        """
        workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        graph = on_embedded(to_api(workflow, self.classes), drawn)
        for node in graph.values():
            widgets = {key for key, value in node["inputs"].items() if not isinstance(value, list)}
            node["inputs"] |= {key: value for key, value in (changes or {}).items() if key in widgets}
        return graph

    def queue(self, graph: Graph) -> str:
        """The number that the server gives it. RuntimeError where it does not take the graph."""
        queued = self.ask("/prompt", {"prompt": graph, "client_id": "over_http"})
        if queued.get("node_errors"):
            raise RuntimeError(json.dumps(queued["node_errors"])[:2000])
        return queued["prompt_id"]

    def wait(self, number: str) -> list[Path]:
        """The files that a queued graph wrote, below the server's folders. Failed where it did not get to its end."""
        while not (entry := self.ask(f"/history/{number}").get(number)):
            time.sleep(0.5)
        if entry["status"]["status_str"] != "success":
            raise Failed(entry["status"]["messages"])
        items = [item for values in entry["outputs"].values() for item in values.get("images", [])]
        return [Path(item["type"], item["subfolder"], item["filename"]) for item in items]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", action="store_true")
    parser.add_argument("address")
    parser.add_argument("names", nargs="+")
    options = parser.parse_args()
    server = Server(options.address)
    for name in options.names:
        began = time.monotonic()
        files = server.wait(server.queue(server.template(name, FEW if options.few else {})))
        print(f"{name}: {time.monotonic() - began:.0f} s, {', '.join(map(str, files))}", flush=True)


if __name__ == "__main__":
    main()
