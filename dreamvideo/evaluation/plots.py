"""Plots that tell how a run went: loss curves and bars, drawn by matplotlib without a window or a global setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, FAINT = "#202124", "#80868b", "#e4e6e9"
# Told apart by the colour-blind, dark enough for thin lines on white (Okabe and Ito's palette).
CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DPI = 100


def loss_plot(losses: Mapping[str, Sequence[float]], width: int = 960, height: int = 540) -> Tensor:
    """Loss per step on a logarithmic axis, one colour a name, [3, H, W] in 0..1.

    losses: name -> the loss of steps 1, 2, .... The raw values are thin and pale, over them lies what is left of them
    when they are smoothed. The axis shows nine tenths of the raw ones. Values that are not finite and positive are
    left out.
    """
    curves = {name: _shown(values) for name, values in losses.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    figure, axes = _axes(width, height)
    spans: list[float] = []
    if not curves:
        axes.axis("off")
        axes.text(0.5, 0.5, "no losses yet", color=GREY, ha="center", transform=axes.transAxes)
        return _pixels(figure)
    for colour, (name, (steps, values)) in zip(cycle(CURVE_COLOURS), curves.items(), strict=False):
        dot = "o" if len(steps) == 1 else None
        trend = smoothed(values)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.6)
        axes.plot(steps, trend, color=colour, linewidth=2.5, marker=dot, label=f"{name}, smoothed", zorder=3)
        spans += [*np.quantile(values, (0.05, 0.95)), trend.min(), trend.max()]
    axes.plot([], [], color=GREY, alpha=0.6, label="every step")
    axes.set_xlim(0.5, max(map(len, losses.values())) + 0.5)
    axes.set_ylim(min(spans) / 1.2, max(spans) * 1.2)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.grid(axis="y", color=FAINT)
    _tick(axes)
    _legend(figure)
    return _pixels(figure)


def bar_plot(groups: Mapping[str, Mapping[str, float]], title: str, width: int = 960, height: int = 480) -> Tensor:
    """Bars from 0 upwards, [3, H, W] in 0..1: one block a group, one colour a name, the value above each bar.

    groups: group -> name -> value, at least 0. Raises ValueError where there is no value.
    """
    if not any(groups.values()):
        raise ValueError("A bar plot needs at least one value.")
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    figure, axes = _axes(width, height)
    figure.suptitle(title, color=INK, fontsize=14)
    places, middles = {}, []  # of bars and of groups, each with a gap as wide as a bar behind it
    for group, bars in groups.items():
        start = len(places) + len(middles)
        places |= {(group, name): start + index for index, name in enumerate(bars)}
        middles.append(start + (len(bars) - 1) / 2)
    for colour, name in zip(cycle(CURVE_COLOURS), names, strict=False):
        values = {places[group, name]: bars[name] for group, bars in groups.items() if name in bars}
        drawn = axes.bar(list(values), list(values.values()), 0.95, color=colour, label=name)
        axes.bar_label(drawn, fmt="{:.3g}", padding=2, color=INK, fontsize=10)
    axes.set_xticks(middles, list(groups), fontsize=11)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(bottom=0)
    _legend(figure)
    return _pixels(figure)


def _axes(width: int, height: int) -> tuple[Figure, Axes]:
    """Of so many pixels, with no word on colours left to the settings that a host may have made."""
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)  # inches around what is drawn
    axes = figure.add_subplot(facecolor="white")
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=10)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=INK)
    return figure, axes


def _tick(axes: Axes) -> None:
    """Whole steps, and losses written out: also where they keep within one decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    axes.yaxis.set_major_locator(
        MaxNLocator(6, steps=(1, 2, 5, 10)) if decades < 1 else LogLocator(subs=(1, 2, 5) if decades < 4 else (1,))
    )
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=INK, fontsize=10)


def _pixels(figure: Figure) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255.0


def _shown(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps from 1 and losses, without those a logarithm cannot show."""
    losses = np.asarray(values, dtype=float)
    keep = np.isfinite(losses) & (losses > 0)
    return np.flatnonzero(keep) + 1, losses[keep]


def smoothed(values: np.ndarray) -> np.ndarray:
    """The trend of a noisy curve [n], as long: at each place the straight line that fits its neighbours best.

    Local linear regression (Cleveland 1979, with his weights) over a sixth of the curve to either side. A mean would
    lag behind a loss that falls where it begins and ends; a straight line stays what it is, ends included.
    """
    reach = max(len(values) // 6, 1)
    distance = np.arange(-reach, reach + 1)
    weight = (1 - np.abs(distance / (reach + 1)) ** 3) ** 3

    def sums(power: int, of: np.ndarray) -> np.ndarray:  # over the neighbours, of weight * distance**power * of
        return np.convolve(of, (weight * distance**power)[::-1])[reach : reach + len(values)]

    here = np.ones(len(values))
    w0, w1, w2 = (sums(power, here) for power in range(3))
    found = (w2 * sums(0, values) - w1 * sums(1, values)) / np.maximum(w0 * w2 - w1**2, np.finfo(float).tiny)
    return np.clip(found if len(values) > 1 else values, values.min(), values.max())  # a loss is never below 0
