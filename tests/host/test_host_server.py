"""A real server with the pack in its custom_nodes: every template queued over HTTP, to the file that it promises."""

import asyncio
import importlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import av
import numpy as np
import pytest
from graphs import random_adapter
from harness import PACK, Graph, find_comfyui
from image_files import write_image_files
from make_workflows import ALL
from on_embedded import MOTION_FILE, SUBJECT_FILE
from over_http import FEW, Server

FOUND = find_comfyui()
NAME = "video-dreams"  # any folder name must do
BOOT_SECONDS = 900  # on a busy machine; a server that ends is noticed at once
LACKING: list[str] = []  # why a server did not start: the next would take as long to end
NO_SERVER = "COMFYUI'S SERVER DOES NOT START HERE ({}): install its requirements.txt."
ENDS = ("execution_success", "execution_error", "execution_interrupted")


PAGED = f"""import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from paging import paging
switched_on = paging()
switched_on.__enter__()
NODE_CLASS_MAPPINGS = {{}}
"""


@pytest.fixture(scope="module", params=["static", "paged"])
def base(tmp_path_factory, request):
    """A base directory with the pack, two adapters, a tiny image base and a picture in it.

    Packs beside ours make the host know the image base's size, and paged: simulate it.
    """
    if FOUND is None:
        pytest.skip("NO COMFYUI HERE: set COMFYUI_PATH to a checkout; the node pack is NOT tested without one.")
    from PIL import Image

    base = tmp_path_factory.mktemp("server")
    for name in ("custom_nodes", "input", "output/dreamvideo"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / NAME).symlink_to(PACK)
    if request.param == "paged":
        paged = FOUND / "comfy" / "memory_management.py"
        if not paged.is_file() or "aimdo_enabled" not in paged.read_text(encoding="utf-8"):
            pytest.skip("This ComfyUI has no dynamic VRAM.")
        (base / "custom_nodes" / "simulated_paging.py").write_text(PAGED)
    (base / "custom_nodes" / "tiny_sd15.py").symlink_to(Path(__file__).parent / "tiny_sd15.py")
    write_image_files(base / "models")
    Image.new("RGB", (80, 64), "red").save(base / "input" / "example.png")
    engine = SimpleNamespace(module=importlib.import_module)
    for name, kind in ((SUBJECT_FILE, "identity"), (MOTION_FILE, "motion")):
        made = random_adapter(engine, kind)
        tokens = {word.replace("thing", "my-toy"): rows for word, rows in made.tokens.items()}
        files = engine.module("dreamvideo")
        files.save_adapter(base / "output" / "dreamvideo" / name, made.adapter, made.info, tokens, made.features)
    return base


@pytest.fixture(scope="module")
def server(base):
    if LACKING:
        pytest.skip(NO_SERVER.format(*LACKING))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["main.py"] if (FOUND / "nodes.py").is_file() else ["-m", "comfy.cmd.main"]  # the fork that is a package
    command = [sys.executable, *start, "--cpu", "--port", str(port), "--base-directory", str(base),
               "--database-url", "sqlite:///:memory:", "--disable-auto-launch"]  # fmt: skip
    log = base / "log.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=FOUND, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = Server(f"http://127.0.0.1:{port}")
        _await(server, process, log)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def _await(server, process, log) -> None:
    until = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < until:
        with suppress(urllib.error.URLError, ConnectionError):
            server.ask("/system_stats")
            return
        if process.poll() is not None:
            told = log.read_text(errors="replace")
            if "No module named" in told or "pip install" in told:
                LACKING.append(told.strip().splitlines()[-1])
                pytest.skip(NO_SERVER.format(*LACKING))
            pytest.fail(told[-3000:])
        time.sleep(0.5)
    pytest.fail(f"The server does not answer after {BOOT_SECONDS} seconds: {log.read_text(errors='replace')[-2000:]}")


def test_all_nodes_help_and_templates_are_served(server):
    told = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {name for name in server.classes if name.startswith("DreamVideo")} == set(told)
    assert set(server.ask("/workflow_templates")[NAME]) == set(ALL)
    assert server.ask("/i18n")["zh"]["nodeDefs"]["DreamVideoSampler"]["display_name"]


@pytest.mark.parametrize(
    ("name", "drawn"), [*((name, False) for name in sorted(ALL)), ("8_animatediff", True), ("9_tune_a_video", True)]
)
def test_template_over_http(server, base, name, drawn):
    files = server.wait(server.queue(server.template(name, {**FEW, "image": "example.png"}, drawn)))
    assert any(file.suffix == ".mp4" for file in files)
    for file in files:
        assert (base / file).stat().st_size > 500


def test_interrupt_keeps_what_was_learned_and_the_next_run_goes_on(server, base):
    graph = server.template("3_train_motion", {"steps": 2000, "learning_rate": 1e-3, "seed": 5, "preview_every": 0,
                                               "filename_prefix": "interrupted"})  # fmt: skip
    needed = ("DreamVideoLoadModelScope", "DreamVideoToyMedia", "DreamVideoMotionClips", "DreamVideoTrainMotion")
    graph = Graph({name: node for name, node in graph.items() if node["class_type"] in needed})
    train = next(node["inputs"] for node in graph.values() if node["class_type"] == "DreamVideoTrainMotion")
    adapters, states = base / "output" / "dreamvideo", base / "output" / "dreamvideo_training"

    end, told = asyncio.run(follow(server, graph, interrupt_after=3))
    assert end == "execution_interrupted"
    done = max(value for value, total in told if total == 2000)
    assert done < 500  # some steps more, until the server has heard it
    assert not list(adapters.glob("*interrupted*"))
    assert [path.suffix for folder in states.glob("motion-*") for path in folder.iterdir()]
    assert not [path for path in states.rglob("*") if path.name.startswith(".")]

    train["steps"] = done + 3
    end, told = asyncio.run(follow(server, graph))
    assert end == "execution_success"
    assert min(value for value, total in told if total == done + 3) >= done
    assert len(list(adapters.glob("*interrupted*.safetensors"))) == 1


def test_workflows_queued_one_after_another_do_not_see_each_others_adapters(server, base):
    graphs = [server.template("4_subject_and_motion", {"steps": 2}) for _ in range(3)]
    for graph, start in zip(graphs, (0.0, None, 0.1), strict=True):  # 0.1: another graph to the server's cache
        for node in graph.values():
            if node["class_type"] == "DreamVideoApplyAdapter" and start is not None:
                node["inputs"] |= {"strength": 0.0, "start_percent": start}
    numbers = [server.queue(graph) for graph in graphs]
    plain, composed, again = (_frames(base / server.wait(number)[0]) for number in numbers)
    assert (plain == again).all()
    assert abs(plain.astype(int) - composed).max() > 10


def _frames(path):
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


async def follow(server, graph, interrupt_after=None):
    """Queue a graph and listen to its end: (its last event, the (value, total) of every progress message)."""
    told = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.address}/ws?clientId=over_http") as ws:
        number = server.queue(graph)
        async for message in ws:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            if event["type"] == "progress":
                told.append((event["data"]["value"], event["data"]["max"]))
                if len(told) == interrupt_after:
                    server.ask("/interrupt", {})
            if event["type"] in ENDS and event["data"]["prompt_id"] == number:
                return event["type"], told
    raise AssertionError("The server closed the connection.")
