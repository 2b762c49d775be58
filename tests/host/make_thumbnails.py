"""Runs templates on a server and writes their thumbnails, workflows/<name>.jpg, from what they made.

    python tests/host/make_thumbnails.py http://127.0.0.1:8188 [NAME...] [--steps N]

Needs a running ComfyUI with this pack, anywhere; no browser. They run as over_http.py runs them, on the embedded bases:
name the quickstart first, or nothing for all, on a server whose output folder is empty; the others load what it saves.
--steps N: so many steps of training and sampling, to try the command.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import av
from harness import PACK, Graph
from make_workflows import ALL
from on_embedded import PHOTOGRAPH
from over_http import Server
from PIL import Image

SIDE, FRAMES, GAP, MOST_BYTES = 400, 4, 4, 40_000  # pixels, pictures of a video, pixels between, bytes of a file
GROUND = "#1d2440"


def upload(server: Server, name: str, data: bytes) -> None:
    """A file into the server's input folder, as Load Image's button does it."""
    edge = uuid.uuid4().hex
    parts = (("overwrite", "", b"true"), ("image", f'; filename="{name}"\r\nContent-Type: image/png', data))
    body = b"".join(
        f'--{edge}\r\nContent-Disposition: form-data; name="{key}"{more}\r\n\r\n'.encode() + value + b"\r\n"
        for key, more, value in parts
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    request = urllib.request.Request(f"{server.address}/upload/image", body + f"--{edge}--\r\n".encode(), kind)
    urllib.request.urlopen(request).close()


def toy():
    """What the demo learns from."""
    sys.path.insert(0, str(PACK))
    from dreamvideo.nano.demo import toy_material

    return toy_material(8)


def as_image(pixels) -> Image.Image:
    """Of [3, H, W] in 0..1."""
    return Image.fromarray((pixels.movedim(0, -1) * 255).round().byte().numpy())


def upload_photographs(server: Server) -> list[str]:
    """A toy's, transparent where the toy is, for Load Image's mask is white there; their names."""
    names = []
    for number, photo in enumerate(toy().photos):
        picture = as_image(photo.image)
        rest = 1 - photo.mask.reshape(photo.image.shape[1:]).float()
        picture.putalpha(Image.fromarray((rest * 255).byte().numpy()))
        stored = io.BytesIO()
        picture.save(stored, "PNG")
        names.append(f"toy-{number}.png")
        upload(server, names[-1], stored.getvalue())
    return names


def graph_of(server: Server, name: str, photographs: list[str], steps: int) -> Graph:
    few = {"steps": steps, "token_steps": steps, "resume": False} if steps else {}
    graph = server.template(name, {"preview_every": 0} | few, drawn=True)
    left = list(photographs)
    for node in graph.values():
        if node["inputs"].get("image") == PHOTOGRAPH:
            node["inputs"]["image"] = left.pop(0)
    return graph


def made_by(server: Server, graph: Graph) -> list[bytes]:
    """The videos of a graph."""
    found = []
    for file in server.wait(server.queue(graph)):
        if file.suffix == ".mp4" and file.parts[0] == "output":
            where = {"type": file.parts[0], "subfolder": "/".join(file.parts[1:-1]), "filename": file.name}
            with urllib.request.urlopen(f"{server.address}/view?{urllib.parse.urlencode(where)}") as answer:
                found.append(answer.read())
    return found


def frames_of(video: bytes) -> list[Image.Image]:
    """So many frames, evenly spread."""
    with av.open(io.BytesIO(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[round(place * (len(frames) - 1) / (FRAMES - 1))] for place in range(FRAMES)]


def thumbnail(rows: list[list[Image.Image]]) -> Image.Image:
    """One video's frames, two by two. Several: a row each."""
    if len(rows) == 1:
        rows = [rows[0][:2], rows[0][2:]]
    across = len(rows[0])
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
    asked.add_argument("address")
    asked.add_argument("names", nargs="*", default=list(ALL))
    asked.add_argument("--steps", type=int, default=0, help="so many steps only")
    given = asked.parse_args()
    server = Server(given.address)
    photographs = upload_photographs(server)
    for name in given.names:
        began = time.monotonic()
        path = PACK / "workflows" / f"{name}.jpg"
        rows = [frames_of(each) for each in made_by(server, graph_of(server, name, photographs, given.steps))]
        write_jpeg(thumbnail(rows), path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
