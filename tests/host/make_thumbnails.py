"""Runs templates on a server and writes their thumbnails, workflows/<name>.jpg, from what they made.

    python tests/host/make_thumbnails.py http://127.0.0.1:8188 [NAME...] [--steps N]

Needs a running ComfyUI with this pack, anywhere; no browser. They run as over_http.py runs them: name the quickstart first,
or nothing for all, on a server whose output folder is empty. --steps N: so many steps of training and sampling, for trying.
"""

from __future__ import annotations

import argparse
import io
import time
import urllib.parse
import urllib.request
from pathlib import Path

import av
from harness import PACK, Graph
from make_workflows import ALL
from over_http import graph_of, run, upload_toys
from PIL import Image

SIDE, FRAMES, GAP, MOST_BYTES = 400, 4, 4, 40_000  # pixels, pictures of a video, pixels between, bytes of a file
GROUND = "#1d2440"


def made_by(server: str, graph: Graph) -> list[bytes]:
    """The videos and pictures that a graph makes, in the order of its nodes."""
    outputs = run(server, graph)["outputs"]
    shown = [
        item
        for node in sorted(outputs, key=int)
        if graph[node]["class_type"] in ("SaveVideo", "PreviewImage")
        for item in outputs[node].get("images", [])
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
    few = {"steps": given.steps, "token_steps": given.steps} if given.steps else {}
    upload_toys(given.server)
    for name in given.names:
        began = time.monotonic()
        path = PACK / "workflows" / f"{name}.jpg"
        graph = graph_of(given.server, name, preview_every=0, **few)
        write_jpeg(thumbnail(made_by(given.server, graph)), path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
