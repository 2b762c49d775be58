"""`analyze`: fine-tune all spatial or all temporal weights, and show which kinds of layers change most."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from itertools import chain

from ..base import Base
from ..evaluation.analysis import relative_changes
from ..evaluation.plots import bar_plot
from ..files.adapter_info import TrainedAdapter
from ..media.writing import write_png
from ..models.deltas import WeightDelta
from ..nano.demo import Material
from ..safety.paths import keep_apart, write_json
from ..training.data import TrainingData, encode_clips, encode_photos
from ..training.loop import Callbacks
from ..training.methods import FINE_TUNING_MOTION, FINE_TUNING_SUBJECT, Method
from ..training.stages import train_method
from .common import OUTPUT, base_files, found_for, open_for, output_folder
from .embedded import check_media, material_of, own_files
from .terminal import Terminal

HALVES = {"spatial weights": FINE_TUNING_SUBJECT, "temporal weights": FINE_TUNING_MOTION}
TABLE, PLOT = "changes.json", "changes.png"
TITLE = "Mean relative change of weights by fine-tuning"


def analyze(args: Namespace, terminal: Terminal) -> None:
    check_media(args)
    with output_folder(args.out, OUTPUT / "analysis", (TABLE, PLOT)) as out:
        keep_apart([out / TABLE, out / PLOT], chain(own_files(args), base_files(args)))
        files = found_for(args)
        material = material_of(args, files.defaults)
        base = open_for(args, terminal, files)
        found = {}
        for half, row in HALVES.items():
            terminal.say(f"Fine-tuning all {half}.")
            trained = _fine_tuned(args, terminal, base, row, material)
            assert isinstance(trained.adapter, WeightDelta)
            found[half] = relative_changes(base.unet, trained.adapter)
        write_json(out / TABLE, found)
        write_png(out / PLOT, bar_plot(found, TITLE))
    terminal.say(f"Wrote {out / PLOT} and {out / TABLE}.")


def _fine_tuned(args: Namespace, terminal: Terminal, base: Base, row: Method, material: Material) -> TrainedAdapter:
    settings = base.defaults.settings_for(row, steps=args.steps, seed=args.seed)
    result = train_method(
        base.unet,
        base.encoders.text,
        _data(base, row, material, terminal),
        row,
        placeholder=material.placeholder,
        class_word=material.class_word,
        settings=replace(settings, masked=False),
        callbacks=Callbacks(progress=terminal.training(row.name)),
    )
    if result.stopped:
        raise KeyboardInterrupt
    return result.trained


def _data(base: Base, row: Method, material: Material, terminal: Terminal) -> TrainingData:
    report = terminal.counting("Encoding frame")
    if row.data == "images":
        photos = [photo.image for photo in material.photos]
        return encode_photos(photos, f"a {material.placeholder}", base.encoders, report=report)
    return encode_clips([material.clip], material.motion_caption, base.encoders, len(material.clip), report=report)
