"""Sweeps on Ray: the bytes of a sweep without it, whatever is killed on the way. One cluster here serves all tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_media import adapters, plan, write_media

from dreamvideo.commands.cli import main
from dreamvideo.nano import comparison, suite
from dreamvideo.nano.comparison import System, Table
from dreamvideo.training.methods import METHODS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Ray is an extra for Linux and macOS, and signals are Unix's.")
ROOT = Path(__file__).parents[1]
PATIENCE = 240.0  # seconds until a test gives up on what should take a few
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 4,
}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def undisturbed(media):
    """The adapters of a sweep without Ray."""
    assert main(["sweep", str(plan(media)), "--out", str(media / "local")]) == 0
    found = adapters(media / "local")
    assert len(found) == 8  # and their losses
    return found


@pytest.fixture(scope="module")
def cluster():
    """A head that does no jobs, and two machines of one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # on a busy machine workers that stand back would stand for ever
        patch.setenv("PYTHONPATH", str(ROOT))  # of the workers
        import ray
        from ray.cluster_utils import Cluster

        head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
        started = Cluster(initialize_head=True, head_node_args=head)
        started.add_node(**NODE)
        started.add_node(**NODE)
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        yield started
        ray.shutdown()
        started.shutdown()


def on_ray(media, out, *more):
    return ["sweep", str(plan(media)), "--out", str(out), "--ray", *more]


def until(happened, what):
    end = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.05)
    return found


def test_the_same_bytes_as_without(media, undisturbed, cluster, tmp_path, capsys):
    assert main(on_ray(media, tmp_path)) == 0
    assert adapters(tmp_path) == undisturbed
    assert "2 jobs at once" in capsys.readouterr().out
    assert (tmp_path / "report.html").read_text().count("<video") == 4
    assert not list(tmp_path.glob(".*"))


def test_files_travel_where_no_folder_is_shared(media, undisturbed, cluster, tmp_path, monkeypatch):
    """As on machines of which none sees the driver's disk."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("dreamvideo.sweep.on_ray.SHARED", False)
    assert main(on_ray(media, tmp_path / "out")) == 0
    assert adapters(tmp_path / "out") == undisturbed
    assert len(list((tmp_path / "out" / "videos").rglob("*.mp4"))) == 4
    assert "Done in" in next((tmp_path / "out" / "logs").rglob("dog-1.log")).read_text()


def test_the_comparison_runs_there_too(media, cluster, tmp_path, monkeypatch, capsys):
    scale = suite.Scale(("mushroom",), ("circling",), ("on the road",), seeds=1, share=1e-9, sampling_steps=1)
    lora = System("LoRA", METHODS["lora_subject"], METHODS["lora_motion"])
    mixed = System("mixed", METHODS["identity"], METHODS["customizing_motion"])
    monkeypatch.setattr(suite, "QUICK", scale)
    monkeypatch.setattr(comparison, "TABLES", (Table("1", "a sliver", "joint", (comparison.BASE, lora, mixed)),))
    command = ["evaluate", "--suite", "nano", "--quick", "--base", str(media / "base"), "--device", "cpu", "--out"]
    assert main([*command, str(tmp_path / "here")]) == 0
    assert main([*command, str(tmp_path / "there"), "--ray"]) == 0
    assert "8 of 8 done" in capsys.readouterr().out
    here, there = (adapters(tmp_path / name) for name in ("here", "there"))
    assert here == there and len(here) == 5
    found = [json.loads((tmp_path / name / "tables.json").read_text())["tables"] for name in ("here", "there")]
    assert found[0] == found[1]


# Each step leaves a state: time enough to kill somebody in the middle.
LONG = 30


def pids(out):
    """The processes that worked on a training, by its log."""
    logs = [log.read_text() for log in (out / "logs" / "training").rglob("*.log")]
    return [int(pid) for text in logs for pid in re.findall(r"begun by process (\d+)", text)]


def begun(out):
    """Training -> the process that goes on with it, where its states are there and it is not done."""
    found = {}
    for log in (out / "logs" / "training").rglob("*.log"):
        text = log.read_text()
        if "Done in" not in text and list((out / "adapters").rglob(f"{log.stem}-*.state/*.safetensors")):
            found[log.stem] = int(re.findall(r"begun by process (\d+)", text)[-1])
    return found


def driver(folder, out, cluster):
    """A sweep in a process of its own."""
    command = [sys.executable, "-m", "dreamvideo", "sweep", str(folder), "--out", str(out), "--ray", cluster.address]
    with open(f"{out}.txt", "a") as told:
        return subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=told)


def test_killed_workers_drivers_and_machines_change_no_byte(cluster, tmp_path):
    folder, out = plan(write_media(tmp_path / "plan", 1, 1), LONG, measure=False), tmp_path / "out"
    first = driver(folder, out, cluster)
    victim = next(iter(until(lambda: begun(out), "a training").values()))
    os.kill(victim, signal.SIGKILL)
    until(lambda: begun(out) and victim not in begun(out).values(), "another worker's turn")
    first.kill()
    first.wait()
    assert not list((out / "videos").rglob("*.mp4"))

    again = driver(folder, out, cluster)
    before = set(pids(out))
    until(lambda: set(begun(out).values()) - before, "the trainings' going on")
    cluster.add_node(**NODE)
    for node in list(cluster.worker_nodes)[:2]:  # all that may work on them
        cluster.remove_node(node, allow_graceful=False)
    assert again.wait(PATIENCE) == 0
    assert main(["sweep", str(folder), "--out", str(tmp_path / "undisturbed")]) == 0
    assert adapters(out) == adapters(tmp_path / "undisturbed")
    assert len(list((out / "videos").rglob("*.mp4"))) == 1
