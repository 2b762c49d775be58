"""Masks as other tools leave them, and crops that follow them, on the command line and in the nodes alike."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from node_stubs import load_nodes
from PIL import Image

from dreamvideo.media import photographs


def photograph(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x + 64], 2).astype(np.uint8))


def mask_of(box=(10, 5, 25, 20), size=(40, 30)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


# --- what a picture marks --------------------------------------------------------------------------------------------


def opaque(kind: str) -> tuple[Image.Image, dict]:
    mask = mask_of()
    if kind == "palette":
        picture = mask.convert("P")
        return picture, {"transparency": bytes([255] * 256)}
    if kind == "nearly":
        picture = mask.convert("LA")
        alpha = np.full((30, 40), 255, np.uint8)
        alpha[::3] = 250
        picture.putalpha(Image.fromarray(alpha))
        return picture, {}
    if kind == "clear":
        picture = mask.convert("RGBA")
        picture.putalpha(0)
        return picture, {}
    return mask.convert(kind), {}


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "nearly", "clear"])
def test_opacity_that_does_not_vary_marks_nothing(tmp_path, kind):
    picture, options = opaque(kind)
    picture.save(tmp_path / "m.png", **options)
    assert torch.equal(
        photographs.load_mask(tmp_path / "m.png"), (torch.from_numpy(np.array(mask_of())) > 0).float()[None]
    )


def test_opacity_that_varies_marks_the_subject(tmp_path):
    for mode in ("RGBA", "LA"):
        picture = photograph().convert(mode)
        picture.putalpha(mask_of())
        picture.save(tmp_path / "m.png")
        assert photographs.load_mask(tmp_path / "m.png").sum() == 225


# --- where masks lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("00-masklabel.png", "00_mask.png", "00-mask.png", "00.mask.png", "00_matte.webp", "00-MASK.PNG"),
        *("mask_00.png", "Mask-00.png", "00.jpg.mask.png", "mask_00.jpg.png"),
        *("masks/00.png", "masks/00-masklabel.png", "masks/00_mask.png", "masks/mask_00.png", "masks/00.jpg.png"),
        *("mask/00.png", "Masks/00.tif"),
    ],
)
@pytest.mark.parametrize("given", ["folder", "star", "one"])
def test_masks_of_other_tools_are_masks(tmp_path, name, given):
    photograph().save(tmp_path / "00.jpg")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    mask_of().save(tmp_path / name, lossless=True)
    source = {"folder": tmp_path, "star": sorted(tmp_path.iterdir()), "one": [tmp_path / "00.jpg"]}[given]
    (photo,) = photographs.load_images(source)
    assert photo.path.name == "00.jpg" and photo.mask is not None and photo.mask.sum() == 225
    (photo,) = photographs.load_images(source, with_masks=False)
    assert photo.path.name == "00.jpg" and photo.mask is None


def test_a_photograph_of_a_mask_is_a_photograph(tmp_path):
    photograph().save(tmp_path / "gas_mask.jpg")
    photograph().save(tmp_path / "side.jpg")
    assert len(photographs.load_images(tmp_path)) == 2


def test_misnamed_masks_are_named(tmp_path):
    for name in ("00.png", "01.png"):
        photograph().save(tmp_path / name)
    (tmp_path / "masks").mkdir()
    mask_of().save(tmp_path / "masks" / "00.png")
    mask_of().save(tmp_path / "masks" / "O1.png")
    with pytest.raises(ValueError, match=r"the mask O1\.png; the mask of 01\.png would be 01\.png"):
        photographs.load_images(tmp_path)
    assert len(photographs.load_images(tmp_path, with_masks=False)) == 2
    (tmp_path / "masks" / "O1.png").rename(tmp_path / "masks" / "01.png")
    mask_of().save(tmp_path / "masks" / "02.png")  # of a photograph that was taken out
    assert all(photo.mask is not None for photo in photographs.load_images(tmp_path))
    photograph().save(tmp_path / "03-masklabel.png")
    with pytest.raises(ValueError, match=r"03-masklabel\.png is named as a mask"):
        photographs.load_images(tmp_path)


# --- crops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(30, 60, (10, 2, 20, 19)), (30, 60, (10, 40, 20, 60)), (90, 30, (0, 5, 12, 20)), (90, 30, (70, 5, 90, 20))],
)
def test_crop_follows_the_mask(tmp_path, width, height, box):
    (tmp_path / "masks").mkdir()
    photograph(width, height).save(tmp_path / "a.png")
    mask_of(box, (width, height)).save(tmp_path / "masks" / "a.png")
    notes = []
    photo = photographs.load_images(tmp_path, (30, 30), say=notes.append)[0]
    assert photo.mask.sum() == (box[2] - box[0]) * (box[3] - box[1]) and not notes
    top, left = photo.mask[0].nonzero().min(dim=0).values.tolist()  # photograph and mask moved alike
    assert photo.image[0, top, left] * 255 == pytest.approx(box[0] * 255 // width, abs=1)
    assert photo.image[1, top, left] * 255 == pytest.approx(box[1] * 255 // height, abs=1)


def test_crop_is_the_centre_where_that_holds_the_subject(tmp_path):
    (tmp_path / "masks").mkdir()
    photograph(60, 30).save(tmp_path / "a.png")
    mask_of((18, 5, 24, 20), (60, 30)).save(tmp_path / "masks" / "a.png")
    photo = photographs.load_images(tmp_path, (30, 30))[0]
    assert torch.equal(photo.image, photographs.load_images(tmp_path, (30, 30), with_masks=False)[0].image)


def test_what_the_crop_cuts_off_is_told(tmp_path):
    (tmp_path / "masks").mkdir()
    photograph(90, 30).save(tmp_path / "a.png")
    mask_of((10, 5, 70, 20), (90, 30)).save(tmp_path / "masks" / "a.png")
    notes = []
    photo = photographs.load_images(tmp_path, (30, 30), say=notes.append)[0]
    assert photo.mask.sum() == 30 * 15
    assert notes == ["a.png: 50% of the subject lies outside the crop to 30x30."]


# --- the nodes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject_images():
    node = {node.__name__: node for node in load_nodes()}["SubjectImages"]
    module = sys.modules[node.__module__]
    titles = []
    sheet = module.contact_sheet

    def told(rows, title="", **options):
        titles.append(title)
        return sheet(rows, title=title, **options)

    def execute(images, masks, size):
        titles.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "contact_sheet", told)
            patch.setattr(module, "ui", SimpleNamespace(PreviewImage=lambda *a, **k: None))
            patch.setattr(module.io, "NodeOutput", lambda *a, **k: a)
            found = node.execute(images, [size[1]], [size[0]], [False], masks)
        return found, " ".join(titles)

    return execute


CASES = {
    "another shape": ((60, 30), Image.new("L", (51, 51), 255)),
    "at the top": ((30, 60), mask_of((10, 2, 20, 19), (30, 60))),
    "wide": ((90, 30), mask_of((10, 5, 70, 20), (90, 30))),
    "too small": ((400, 300), mask_of((10, 5, 12, 7), (400, 300))),
    "half the size": ((80, 60), mask_of()),
}


@pytest.mark.parametrize("case", CASES)
def test_command_line_and_node_decide_alike(tmp_path, subject_images, case):
    size, mask = CASES[case]
    (tmp_path / "masks").mkdir()
    photograph(*size).save(tmp_path / "a.png")
    mask.save(tmp_path / "masks" / "a.png")
    notes = []
    image = (torch.from_numpy(np.array(photograph(*size))).float() / 255)[None]
    marks = torch.from_numpy(np.array(mask)).float()[None] / 255
    try:
        photo = photographs.load_images(tmp_path, (64, 64), say=notes.append)[0]
    except ValueError as error:
        sentence = str(error).replace(str(tmp_path / "masks" / "a.png"), "of photograph 1")
        with pytest.raises(ValueError) as caught:
            subject_images([image], [marks], (64, 64))
        assert str(caught.value) == sentence
        return
    (images, masks), title = subject_images([image], [marks], (64, 64))
    assert torch.allclose(images[0].movedim(-1, 0), photo.image, atol=1e-5) and torch.equal(masks[:1], photo.mask)
    assert title == "".join(note.replace("a.png", "Photograph 1") for note in notes)


def test_an_unpainted_mask_of_the_host_is_none(subject_images):
    image = torch.rand(1, 60, 30, 3)
    for black in (torch.zeros(1, 64, 64), torch.zeros(1, 60, 30)):  # Load Image's, of a picture without and with alpha
        (_, masks), title = subject_images([image], [black], (64, 64))
        assert (masks == 1).all() and title == ""
