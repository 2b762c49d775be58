"""Runs templates on a server and writes their thumbnails, workflows/<name>.jpg, from what they made.

    python tests/host/make_thumbnails.py http://127.0.0.1:8188 [NAME...] [--steps N]

Needs a running ComfyUI with this pack, anywhere; no browser. The templates for the real base run on the embedded one
(`on_embedded`), with a toy's photographs and a toy's clip uploaded as a user would, and with the adapters that the
quickstart saved, so name that one first or run all. --steps N: N steps of training and sampling, to try the command.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import av
from harness import PACK, Graph
from litegraph import to_api
from make_workflows import ALL, CLIP, PHOTOGRAPHS, on_embedded
from over_http import ask, classes_of
from PIL import Image

SIDE, FRAMES, GAP, MOST_BYTES = 400, 4, 4, 40_000  # pixels, pictures of a video, pixels between, bytes of a file
GROUND = "#1d2440"


def upload(server: str, name: str, data: bytes) -> None:
    edge = uuid.uuid4().hex
    fields = b"".join(
        f'--{edge}\r\nContent-Disposition: form-data; name="{key}"{more}\r\n\r\n'.encode() + value + b"\r\n"
        for key, more, value in (
            ("overwrite", "", b"true"),
            ("image", f'; filename="{name}"\r\nContent-Type: application/octet-stream', data),
        )
    )
    request = urllib.request.Request(
        f"{server}/upload/image",
        fields + f"--{edge}--\r\n".encode(),
        {"Content-Type": f"multipart/form-data; boundary={edge}"},
    )
    with urllib.request.urlopen(request) as answer:
        answer.read()


def upload_toys(server: str) -> None:
    """The photographs, transparent where the toy is (Load Image's mask is white there), and the clip."""
    sys.path.insert(0, str(PACK))
    from dreamvideo.demo import toy_material
    from dreamvideo.media import write_video

    found = toy_material(8)
    for number, photo in enumerate(found.photos):
        pixels = (photo.image.movedim(0, -1) * 255).round().byte().numpy()
        picture = Image.fromarray(pixels)
        mask = photo.mask.reshape(photo.image.shape[1:]).float()
        picture.putalpha(Image.fromarray(((1 - mask) * 255).byte().numpy()))
        stored = io.BytesIO()
        picture.save(stored, "PNG")
        upload(server, f"toy-{number}.png", stored.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / CLIP, found.clip, 8.0)
        upload(server, CLIP, (Path(folder) / CLIP).read_bytes())


def graph_of(server: str, name: str, steps: int) -> Graph:
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    graph = to_api(workflow, classes_of(server))
    if not name.startswith("1"):
        graph = on_embedded(graph)
    photographs = 0
    for node in graph.values():
        inputs = node["inputs"]
        if inputs.get("image") == PHOTOGRAPHS:
            inputs["image"] = f"toy-{photographs}.png"
            photographs += 1
        inputs |= {key: 0 for key in ("preview_every",) if key in inputs}
        inputs |= {key: steps for key in ("steps", "token_steps") if steps and key in inputs}
    return graph


def run(server: str, graph: Graph) -> list[bytes]:
    """The files that the output nodes made, in the order of their ids; RuntimeError where the run failed."""
    queued = ask(f"{server}/prompt", {"prompt": graph, "client_id": "make_thumbnails"})
    if queued.get("node_errors"):
        raise RuntimeError(json.dumps(queued["node_errors"])[:2000])
    while not (entry := ask(f"{server}/history/{queued['prompt_id']}").get(queued["prompt_id"])):
        time.sleep(2)
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(entry["status"]["messages"])[-3000:])
    shown = [
        item
        for node in sorted(entry["outputs"], key=int)
        if graph[node]["class_type"] in ("SaveVideo", "PreviewImage")
        for item in entry["outputs"][node].get("images", [])
    ]
    found = []
    for item in shown:
        with urllib.request.urlopen(f"{server}/view?{urllib.parse.urlencode(item)}") as answer:
            found.append(answer.read())
    return found


def pictures_of(data: bytes) -> list[Image.Image]:
    """A picture, or so many frames of a video, evenly spread."""
    if data[:4] == b"\x89PNG":
        return [Image.open(io.BytesIO(data)).convert("RGB")]
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[round(place * (len(frames) - 1) / (FRAMES - 1))] for place in range(FRAMES)]


def thumbnail(found: list[bytes]) -> Image.Image:
    """One video: four of its frames, two by two. Several: a row of frames each. A sheet of pictures: as it is."""
    rows = [pictures_of(data) for data in found]
    sheets = [row[0] for row in rows if len(row) == 1]
    if sheets:
        sheet = sheets[0]
        return sheet.resize((SIDE, round(sheet.height * SIDE / sheet.width)), Image.Resampling.LANCZOS)
    if len(rows) == 1:
        rows = [rows[0][:2], rows[0][2:]]
    across = max(len(row) for row in rows)
    side = (SIDE - GAP * (across + 1)) // across
    picture = Image.new("RGB", (SIDE, GAP + len(rows) * (side + GAP)), GROUND)
    for down, row in enumerate(rows):
        for right, frame in enumerate(row):
            small = frame.resize((side, side), Image.Resampling.LANCZOS)
            picture.paste(small, (GAP + right * (side + GAP), GAP + down * (side + GAP)))
    return picture


def write_jpeg(picture: Image.Image, path: Path) -> None:
    for quality in range(90, 20, -5):
        stored = io.BytesIO()
        picture.save(stored, "JPEG", quality=quality, optimize=True)
        if stored.tell() <= MOST_BYTES:
            break
    path.write_bytes(stored.getvalue())


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("server")
    asked.add_argument("names", nargs="*", default=list(ALL))
    asked.add_argument("--steps", type=int, default=0, help="so many steps only")
    given = asked.parse_args()
    upload_toys(given.server)
    for name in given.names:
        began = time.monotonic()
        path = PACK / "workflows" / f"{name}.jpg"
        write_jpeg(thumbnail(run(given.server, graph_of(given.server, name, given.steps))), path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
