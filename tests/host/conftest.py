import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from harness import Host, find_comfyui  # noqa: E402

FOUND = find_comfyui()


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    if FOUND is None:
        pytest.skip("NO COMFYUI HERE: set COMFYUI_PATH to a checkout; the node pack is NOT tested without one.")
    try:
        return Host(FOUND, tmp_path_factory.mktemp("comfy"))
    except ModuleNotFoundError as error:
        pytest.skip(
            f"COMFYUI LACKS {error.name} HERE: install {FOUND / 'requirements.txt'} beside this package; "
            "the node pack is NOT tested without it."
        )
