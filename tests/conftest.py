"""The whole suite runs in two processes where pytest-xdist is there: a file in one of them, in its order, which keeps
what it shares. Tests that are named run in one, which starts sooner.
"""

import os
from pathlib import Path

import pytest

WORKERS = min(2, os.cpu_count() or 1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch counts cores: its threads would wait for one another


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    option = config.option
    is_worker = "PYTEST_XDIST_WORKER" in os.environ  # which comes here, too, and would start workers of its own
    if is_worker or not config.pluginmanager.hasplugin("xdist") or option.numprocesses is not None or option.tx:
        return
    if option.usepdb or option.capture == "no" or not all(Path(arg).is_dir() for arg in config.args):
        return
    option.numprocesses, option.dist = WORKERS, "loadfile"
    option.loadscopereorder = False  # tests/host, whose files take longest, goes first


@pytest.fixture(autouse=True, scope="session")
def own_caches(tmp_path_factory):
    """What is encoded is kept for the next run of the user, not of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture
def small_bank(tmp_path, monkeypatch):
    """A folder of the embedded base's recipe, whose bank has two files of two families each, in 4 x 4 cells."""
    import torch

    from dreamvideo.nano import denoiser, latents, world

    for module, name in ((latents, "PART"), (denoiser, "PICTURES"), (denoiser, "VIDEOS")):
        monkeypatch.setattr(module, name, 2)
    monkeypatch.setattr(latents, "FAMILIES", 4)
    (tmp_path / "bank").mkdir()
    generator = torch.Generator().manual_seed(0)
    for first in (0, 2):
        count = sum(len(latents._family(first + index)) for index in range(2))
        made = {
            name: torch.randn(count, world.FRAMES, 4, cells, cells, generator=generator)
            for name, cells in (("whole", 4), ("half", 2))
        }
        torch.save(made, tmp_path / "bank" / f"{first:06}.pt")
    return tmp_path
