import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import paging  # noqa: E402
from harness import Host, find_comfyui  # noqa: E402
from image_files import write_image_files  # noqa: E402

FOUND = find_comfyui()


@pytest.fixture(scope="session")
def booted(tmp_path_factory):
    if FOUND is None:
        pytest.skip("NO COMFYUI HERE: set COMFYUI_PATH to a checkout; the node pack is NOT tested without one.")
    try:
        return Host(FOUND, tmp_path_factory.mktemp("comfy"))
    except ModuleNotFoundError as error:
        pytest.skip(
            f"COMFYUI LACKS {error.name} HERE: install {FOUND / 'requirements.txt'} beside this package; "
            "the node pack is NOT tested without it."
        )


@pytest.fixture(scope="session", params=["static", "paged"])
def host(booted, request):
    """The host as it is on a CPU, and as it is on most cards: with weights that are paged in as they are used."""
    if request.param == "static":
        booted.forget_models()
        yield booted
        return
    if not paging.supported():
        pytest.skip("This ComfyUI has no dynamic VRAM.")
    with paging.paging():
        booted.forget_models()
        yield booted
        booted.forget_models()


@pytest.fixture(scope="module")
def image_files(host):
    """A tiny checkpoint and motion modules in the host's folders; the network that they hold."""
    import tiny_sd15  # noqa: F401, the host then knows a checkpoint of this size

    net, written = write_image_files(host.base / "models")
    host.forget_file_lists()
    yield net
    for path in written:
        path.unlink()
    host.forget_file_lists()
