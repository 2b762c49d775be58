"""What people import: its names are there, it costs nothing until they are used, and its page does what it says."""

import re
import runpy
import subprocess
import sys

import pytest
import torch
from node_stubs import PACK

import dreamvideo
from dreamvideo import library
from dreamvideo.media.writing import write_png, write_video

PAGE = (PACK / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.S | re.M)


@pytest.mark.parametrize("name", dreamvideo.__all__)
def test_public_name_is_there(name):
    assert getattr(dreamvideo, name) is not None and name in dir(dreamvideo)


def test_public_names_are_those_of_the_library():
    assert {name for name in vars(library) if not name.startswith("_")} == {*dreamvideo.__all__} - {"__version__"}


def test_name_that_is_not_there_is_missed():
    with pytest.raises(AttributeError, match="no attribute 'open_sesame'"):
        dreamvideo.open_sesame  # noqa: B018


def test_import_is_cheap_until_a_name_is_asked_for():
    code = "import dreamvideo, sys; dir(dreamvideo); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "PIL", "dreamvideo.library"} & {*done.stdout.split()}


def test_types_are_shipped():
    assert (PACK / "dreamvideo" / "py.typed").is_file()
    assert 'dreamvideo = ["py.typed"]' in (PACK / "pyproject.toml").read_text(encoding="utf-8")


def test_page_does_what_it_says(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    frames = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "photos" / "dog.png", frames[0])
    write_video(tmp_path / "clip.mp4", frames)
    (tmp_path / "page.py").write_text("\n".join(BLOCKS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path("page.py")
    assert found["subject"].complete and found["motion"].complete
    assert found["video"].shape == (8, 3, 128, 128) and (tmp_path / "dancing-dog.mp4").stat().st_size
    assert found["noise"].shape == found["latents"].shape and not found["noise"].allclose(found["plain"])


def test_page_names_nothing_else():
    assert {*re.findall(r"\bdv\.(\w+)", PAGE)} <= {*dreamvideo.__all__}
