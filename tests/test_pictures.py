"""Contact sheets and plots show what they are given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dreamvideo.evaluation.pictures import contact_sheet
from dreamvideo.evaluation.plots import loss_plot, smoothed

RED, BLUE = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])


def plain(colour: torch.Tensor, height: int = 20, width: int = 20) -> torch.Tensor:
    return colour[:, None, None].expand(3, height, width)


def share(image: torch.Tensor, colour: torch.Tensor) -> float:
    return ((image - colour[:, None, None]).abs().amax(0) < 0.02).float().mean().item()


def test_every_picture_is_on_the_sheet_at_one_height():
    sheet = contact_sheet([("subject", [plain(RED)] * 3), ("motion", [plain(BLUE, 10, 40)])], tile=64)
    assert sheet.dtype == torch.float32 and sheet.min() >= 0 and sheet.max() <= 1
    pixels = sheet.shape[1] * sheet.shape[2]
    assert share(sheet, RED) * pixels == pytest.approx(3 * 64 * 64, rel=0.01)
    assert share(sheet, BLUE) * pixels == pytest.approx(64 * 256, rel=0.01)


def test_labels_are_drawn_and_long_ones_wrapped():
    def sheet(label: str, title: str = "") -> torch.Tensor:
        return contact_sheet([(label, [plain(RED)] * 4)], title, tile=64)

    assert sheet("word").shape[2] == sheet("word " * 100).shape[2]
    assert sheet("word " * 100).shape[1] > sheet("word").shape[1] > sheet("").shape[1]
    assert sheet("word", "title").shape[1] > sheet("word").shape[1]
    black = torch.tensor([0x20, 0x21, 0x24]) / 255
    assert share(sheet("word"), black) > share(sheet("w"), black) > share(sheet(""), black) == 0


def test_sheet_without_pictures_is_refused():
    for rows in ([], [("label", [])]):
        with pytest.raises(ValueError, match="at least one picture"):
            contact_sheet(rows)


def test_curve_falls_where_the_loss_falls():
    colour = torch.tensor([0x00, 0x72, 0xB2]) / 255
    plot = loss_plot({"identity": np.geomspace(1.0, 0.01, 200).tolist()}, 400, 300)
    assert plot.shape == (3, 300, 400)
    drawn = ((plot - colour[:, None, None]).abs().amax(0) < 0.02)[:230]  # without the legend
    rows = torch.arange(len(drawn))[:, None].expand_as(drawn)
    left, right = drawn.any(0).nonzero().flatten()[[0, -1]].tolist()
    assert right - left > 250
    height = [rows[:, x][drawn[:, x]].float().mean().item() for x in range(left + 10, right - 10, 40)]
    assert height == sorted(height) and height[-1] - height[0] > 100
    steps = np.diff(height)  # a straight line on a logarithmic axis
    assert steps.max() - steps.min() < 4


@pytest.mark.parametrize("count", [1, 2, 3, 7, 400])
def test_smoothing_leaves_what_is_smooth(count):
    for line in (np.full(count, 0.3), np.linspace(0.9, 0.1, count)):
        assert smoothed(line) == pytest.approx(line)


def test_smoothing_neither_lags_nor_leads():
    noise = np.random.default_rng(0).lognormal(0.0, 0.8, 2000)
    trend = np.linspace(1.0, 0.2, 2000)
    found = smoothed(trend * noise / noise.mean())
    assert len(found) == 2000
    assert np.abs(found / trend - 1).max() < 0.2  # the noise alone is twice the value and more
    assert np.abs(np.diff(found)).max() < 0.01
    step = smoothed(np.repeat([1.0, 0.0], 300))
    assert step[300] == pytest.approx(0.5, abs=0.01) and step + step[::-1] == pytest.approx(np.ones(600))


@pytest.mark.parametrize(
    "losses",
    [
        {},
        {"a": []},
        {"a": [math.nan, math.inf, 0.0, -1.0]},
        {"a": [0.5]},
        {"a": [0.5] * 30},
        {"a": [1e-9, 1e9, math.nan, 1.0]},
        {str(k): [0.1 * (k + 1)] * 12 for k in range(8)},
    ],
)
def test_any_losses_can_be_plotted(losses):
    plot = loss_plot(losses, 320, 200)
    assert plot.shape == (3, 200, 320) and plot.isfinite().all() and plot.std() > 0
