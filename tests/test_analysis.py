"""Where weights change: categories, their means, and the command's files."""

from __future__ import annotations

import json

import pytest
import torch
from fakes import CONFIG, pictures, tiny_unet
from tiny_base import write_tiny_base

from dreamvideo.commands.cli import main
from dreamvideo.evaluation.analysis import category, relative_changes
from dreamvideo.evaluation.plots import bar_plot
from dreamvideo.media.writing import write_animation, write_png
from dreamvideo.models.deltas import DeltaConfig, WeightDelta


def test_every_weight_has_its_category():
    block = "input_blocks.1.1.transformer_blocks.0"
    assert category(f"{block}.attn2.to_k.weight", False) == "cross-attention"
    assert (
        category(f"{block}.attn2.to_k.weight", True) == "self-attention" == category(f"{block}.attn1.to_q.weight", True)
    )
    assert category(f"{block}.ff.net.2.bias", False) == "feed-forward"
    assert category(f"{block}.norm1.weight", False) == "other" == category("input_blocks.1.0.temopral_conv.x", True)


def test_changes_are_relative_and_averaged():
    unet, delta = tiny_unet(), WeightDelta(DeltaConfig(("spatial",)), CONFIG)
    assert set(relative_changes(unet, delta).values()) == {0.0}
    factors = {"cross-attention": 0.5, "self-attention": 0.25}
    for name, change in delta.changes().items():
        change.data.copy_(unet.state_dict()[name] * factors.get(category(name, False), 0.0))
    found = relative_changes(unet, delta)
    assert found == pytest.approx({**factors, "feed-forward": 0.0, "other": 0.0}, abs=1e-6)
    temporal = relative_changes(unet, WeightDelta(DeltaConfig(("temporal",)), CONFIG))
    assert list(temporal) == ["self-attention", "feed-forward", "other"]


def test_bars_are_as_high_as_their_values():
    plot = bar_plot({"a": {"x": 1.0, "y": 0.5}, "b": {"x": 0.0}}, "title")
    assert plot.shape == (3, 480, 960)
    colour = torch.tensor([0x00, 0x72, 0xB2])[:, None, None] / 255
    other = torch.tensor([0xD5, 0x5E, 0x00])[:, None, None] / 255
    columns = [((plot - each).abs().sum(0) < 0.02).sum(0)[:350] for each in (colour, other)]  # beside the legend
    heights = [column.max().item() for column in columns]
    assert heights[0] == pytest.approx(2 * heights[1], abs=3) and heights[0] > 200
    with pytest.raises(ValueError, match="at least one value"):
        bar_plot({}, "title")


def test_analyze_writes_a_plot_and_numbers(tmp_path, capsys):
    write_tiny_base(tmp_path / "base")
    write_png(tmp_path / "photos" / "00.png", pictures(1)[0])
    write_animation(tmp_path / "turn.gif", pictures(8), 8)
    media = ["--images", str(tmp_path / "photos"), "--video", str(tmp_path / "turn.gif")]
    command = ["analyze", "--steps", "2", "--out", str(tmp_path), "--base", str(tmp_path / "base"), "--device", "cpu"]
    assert main([*command, *media]) == 0
    found = json.loads((tmp_path / "changes.json").read_text())
    assert list(found) == ["spatial weights", "temporal weights"]
    assert all(value > 0 for changes in found.values() for value in changes.values())
    assert (tmp_path / "changes.png").stat().st_size
    assert main(command) == 2 and "embedded base" in capsys.readouterr().err
