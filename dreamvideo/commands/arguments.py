"""The command line's arguments: what `dreamvideo --help` says."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..base import EMBEDDED_FOLDER
from ..defaults import EMBEDDED
from ..files.conversion import LAYOUTS
from ..safety.limits import LIMITS, Limits
from ..safety.texts import SHOWN
from ..sampling import SamplingSettings
from ..sweep.on_ray import LOCAL
from ..training.methods import MOTION_METHODS, MOTION_WORD, SUBJECT_METHODS, Method
from ..training.settings import IDLE_SETTINGS, TrainingSettings
from . import analyze, check, embedded, evaluate, files, run_files, sample, sweep, train
from . import descriptions as texts
from .common import DTYPES
from .options import Several, add_field, add_option, number, of_base, of_stage


class Parser(argparse.ArgumentParser):
    """Wrong arguments are a ValueError in one sentence, as any other wrong input."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        path = run_files.config_of(args or ())
        if path is not None and run_files.OPTION in self._option_string_actions:
            run_files.set_defaults(self, path)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        message = re.sub(rf"\S{{{2 * SHOWN},}}", lambda given: f"{given[0][:SHOWN]}...", message)
        raise ValueError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")


def build_parser() -> argparse.ArgumentParser:
    """The parser; parsed arguments have `run`, the command's function of the arguments and a Terminal."""
    parser = Parser(prog="dreamvideo", description=texts.DESCRIPTION, epilog=texts.EXAMPLES)
    parser.add_argument("--version", action="version", version=f"dreamvideo {__version__}")
    group = parser.add_subparsers(metavar="COMMAND", required=True)
    _demo(_add(group, "demo", embedded.demo, "try everything in minutes", texts.DEMO, texts.DEMO_EXAMPLES))
    kinds = _group(group, "train", "learn a subject or a motion")
    _train_subject(_add(kinds, "subject", train.subject, "from photographs", texts.SUBJECT, texts.SUBJECT_EXAMPLES))
    _train_motion(_add(kinds, "motion", train.motion, "from clips", texts.MOTION, texts.MOTION_EXAMPLES))
    _sample(_add(group, "sample", sample.sample, "make a video of a prompt", texts.SAMPLE, texts.SAMPLE_EXAMPLES))
    _inspect(_add(group, "inspect", files.inspect, "tell what a file or a base's folder is", texts.INSPECT))
    _convert(_add(group, "convert", files.convert, "write another format", texts.CONVERT, texts.CONVERT_EXAMPLES))
    _evaluate(
        _add(group, "evaluate", evaluate.evaluate, "measure methods or videos", texts.EVALUATE, texts.EVALUATE_EXAMPLES)
    )
    _sweep(_add(group, "sweep", sweep.sweep, "many subjects, motions and methods", texts.SWEEP, texts.SWEEP_EXAMPLES))
    _check(_add(group, "check", check.check, "report on this machine and base", texts.CHECK, texts.CHECK_EXAMPLES))
    _analyze(_add(group, "analyze", analyze.analyze, "show which layers fine-tuning changes", texts.ANALYZE))
    kinds = _group(group, "nano", "train or measure the embedded base")
    _nano_train(_add(kinds, "train", embedded.nano_train, "as it was trained", texts.NANO_TRAIN))
    _nano_gate(_add(kinds, "gate", embedded.nano_gate, "what its autoencoder keeps", texts.NANO_GATE))
    _nano_evaluate(_add(kinds, "evaluate", embedded.nano_evaluate, "how well it follows captions", texts.NANO_EVALUATE))
    return parser


def _group(group: Any, name: str, summary: str) -> Any:
    parser = group.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    return parser.add_subparsers(metavar="COMMAND", required=True)


def _add(group: Any, name: str, run: Any, summary: str, description: str, examples: str = "") -> Parser:
    parser = group.add_parser(name, help=summary, description=description, epilog=examples)
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _demo(parser: Parser) -> None:
    _media(parser)
    _option(parser, "--out", "DIR", f"default: {_next_free('output/demo')}", Path)
    add_option(parser, "seed", "default: 0", default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training: shows that all works, no more")
    _base(parser)


def _analyze(parser: Parser) -> None:
    _media(parser)
    _option(parser, "--out", "DIR", f"default: {_next_free('output/analysis')}", Path)
    add_option(parser, "seed", "default: 0", default=0)
    add_option(parser, "steps", "of each of the two trainings (default: the methods' own)")
    _base(parser)


def _media(parser: Parser) -> None:
    """A subject and a motion of the user's own."""
    _option(parser, "--images", "DIR", "photographs of your subject", Path)
    _option(parser, "--video", "FILE", "a clip of the motion", Path)
    _option(parser, "--class-word", "WORD", "what your subject is, such as dog (default: toy)", default="toy")
    _option(parser, "--placeholder", "NAME", "the name to learn it by (default: <my-WORD>)")
    caption = 'what happens in the clip, such as "a person is dancing" (default: something is moving)'
    _option(parser, "--caption", "TEXT", caption, default="something is moving")
    prompt = "what to compose, with the placeholder in it (default: a <my-WORD> moving on the grass)"
    _option(parser, "--prompt", "TEXT", prompt)


def _train_subject(parser: Parser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="a folder of photographs, or photographs")
    _config(parser)
    _option(parser, "--class-word", "WORD", "what the subject is, such as dog", required=True)
    _option(parser, "--placeholder", "NAME", "the name to learn it by (default: <my-WORD>)")
    parser.add_argument("--no-masks", action="store_true", help="learn from whole photographs although there are masks")
    add_option(parser, "token_steps", f"steps of the first stage ({of_stage('token', 'steps')})")
    add_option(parser, "token_learning_rate", f"its learning rate ({of_stage('token', 'learning_rate')})")
    _training(parser, "identity", "output/my-WORD.safetensors", SUBJECT_METHODS)
    _base(parser)


def _train_motion(parser: Parser) -> None:
    parser.add_argument("clips", nargs="+", metavar="CLIPS", help="a folder of clips or of numbered pictures, or clips")
    _config(parser)
    _option(parser, "--caption", "TEXT", "what happens in the clips without a .txt beside them")
    add_option(parser, "frames", f"that make one sample ({of_base('frames')})")
    add_option(parser, "fps", f"frames a second to learn at ({of_base('fps')})")
    token = "the motion's name in the captions, for a method that learns one (default: <my-motion>)"
    _option(parser, "--placeholder", "NAME", token, default="<my-motion>")
    _option(parser, "--class-word", "WORD", f"what that name begins from (default: {MOTION_WORD})", default=MOTION_WORD)
    masks = "learn from whole clips although there are masks beside them: white on what is not to be learned from"
    parser.add_argument("--no-masks", action="store_true", help=masks)
    related = "a folder of clips of related motions with captions, for a method that wants some"
    _option(parser, "--related", "DIR", related, Path)
    _training(parser, "motion", "output/CLIP.safetensors", MOTION_METHODS)
    _base(parser)


# Most people need these of a training's settings; the others follow in a group of their own.
FIRST = ("steps", "learning_rate", "batch_size", "seed")
# What a default is, where it is not the number that stands in the settings.
DEFAULTS = {
    "absorber": "default: as the method has it",
    "debias": "default: as the method has it",
    "layered_token": "default: as the method has it",
    "mask_attention": "default: as the method has it",
    "gradient_checkpointing": "default: where a step would not fit into what is free",
    "p_image_drop": "default: as released",
    "p_text_drop": "default: as released",
    "preview_every": "default: none",
    "snapshot_every": "default: none",
}


def _training(parser: Parser, stage: str, out: str, methods: Mapping[str, Method]) -> None:
    group = parser.add_argument_group("training")
    choice = f"DreamVideo's own, one with a part changed or left out, or another paper's: {', '.join(methods)}"
    group.add_argument("--method", choices=methods, default="dreamvideo", metavar="NAME", help=choice)
    file = f"the adapter file to write, in the place of what is there (default: {_next_free(out)})"
    _option(group, "--out", "FILE", file, Path)
    no_cache = "encode everything anew, and keep nothing of it for the next run"
    group.add_argument("--no-cache", action="store_true", help=no_cache)
    restart = "begin anew instead of going on from where a run stopped or ended"
    group.add_argument("--restart", action="store_true", help=restart)
    _size(group)
    for name in FIRST:
        add_field(group, TrainingSettings, name, of_stage(stage, name))
    group = parser.add_argument_group("training in detail")
    elsewhere = {*FIRST, *IDLE_SETTINGS[methods["dreamvideo"].data], "memory"}  # which is the base's, too
    for field in fields(TrainingSettings):
        if field.name not in elsewhere:
            add_field(group, TrainingSettings, field.name, DEFAULTS.get(field.name) or of_stage(stage, field.name))


def _sample(parser: Parser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what the video should show")
    _config(parser)
    adapter = "an adapter or learned token, ours or the authors'; may be given several times (strength: 1)"
    _option(parser, "--adapter", "FILE[@STRENGTH]", adapter, action=Several, default=[])
    region = "a part of the video that reads a prompt of its own, as 'left: a <my-dog> is running'; several times"
    _option(parser, "--region", "AREA: PROMPT", region, action=Several, default=[])
    other = "take adapters that were trained on other weights of the same architecture"
    parser.add_argument("--other-base", action="store_true", help=other)
    out = "a video (.mp4, .mov, .mkv), an animation (.gif, .webp) or, without a suffix, a folder of PNG frames"
    _option(parser, "--out", "FILE", f"{out} (default: {_next_free('output/PROMPT-ADAPTERS-SEED.mp4')})", Path)
    add_option(parser, "negative_prompt", "what the video should not show", default="")
    add_field(parser, SamplingSettings, "frames", of_base("frames"))
    add_field(parser, SamplingSettings, "fps", of_base("fps"))
    _size(parser)
    add_field(parser, SamplingSettings, "steps", "default: 50")
    add_field(parser, SamplingSettings, "guidance", of_base("guidance"))
    add_field(parser, SamplingSettings, "seed", "default: 0")
    group = parser.add_argument_group("motion adapters")
    image = "whose appearance to follow (default: the identity's first photograph)"
    _option(group, "--guidance-image", "FILE", image, Path)
    add_field(group, SamplingSettings, "feature_strength_cond", "default: 1")
    uncond = "default: 1 for motions trained with dropped images, else 0"
    add_field(group, SamplingSettings, "feature_strength_uncond", uncond)
    _option(group, "--prior-clip", "FILE", "a clip whose inverted noise the start remembers", Path)
    add_field(group, SamplingSettings, "prior_strength", "default: 0.5")
    _base(parser)


def _inspect(parser: Parser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a base's folder, a checkpoint file or an adapter file")
    parser.add_argument("--json", action="store_true", help="for programs")


def _convert(parser: Parser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="a UNet, a motion module, a base's folder, or an adapter"
    )
    parser.add_argument("target", type=Path, metavar="DST", help="its suffix chooses the format")
    parser.add_argument("--layout", choices=LAYOUTS, help="of a UNet (default: original)")
    parser.add_argument("--dtype", choices=DTYPES, help="of a UNet (default: the source's)")
    lora = "AnimateDiff's motion LoRA for a motion module, or its domain adapter for a UNet, to merge; several times"
    _option(parser, "--lora", "FILE", lora, Path, action=Several, default=[])


def _check(parser: Parser) -> None:
    _option(parser, "--out", "FILE", "write the report there, too", Path)
    _base(parser)


def _evaluate(parser: Parser) -> None:
    parser.add_argument("--suite", choices=("nano",), help="the paper's comparison, on the embedded base")
    quick = "one subject, one motion, a quarter of the training: a coarse answer in about ten minutes on two cores"
    parser.add_argument("--quick", action="store_true", help=quick)
    table = "only this table, beside those that --out has: 1, 2, 3, 5, A1, A4 or A5; may be given several times"
    _option(parser, "--table", "NUMBER", table, action=Several, default=[])
    _option(parser, "--videos", "DIR", "videos of your own to score", Path)
    _option(parser, "--prompts", "FILE", "a line for each video: video.mp4|||what it should show, in words", Path)
    _option(parser, "--images", "DIR", "photographs of the subject in them, for CLIP-I and DINO-I", Path)
    _option(parser, "--clip-weights", "FILE", "CLIP ViT-B/32: OpenAI's ViT-B-32.pt, or in open_clip's names", Path)
    _option(parser, "--dino-weights", "FILE", "DINO ViT-S/16; without it DINO-I is left out", Path)
    _option(parser, "--out", "DIR", "for what is written (default for the suite: output/comparison)", Path)
    _ray(parser)
    _base(parser)


def _sweep(parser: Parser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a plan in TOML, or a folder of subjects/ and motions/")
    _option(parser, "--out", "DIR", "for what is made (default: the plan's, else output/PLAN)", Path)
    parser.add_argument("--dry-run", action="store_true", help="tell what is missing and what it will cost, and end")
    only = "only the videos of these names, such as '*/dog-*', and what they need; may be given several times"
    _option(parser, "--only", "PATTERN", only, action=Several, default=[])
    add_option(
        parser, "limit", "only the first N videos that are missing, and what they need", type=number(LIMITS["count"])
    )
    _ray(parser)
    _base(parser)


def _ray(parser: Parser) -> None:
    group = parser.add_argument_group("many at once", "On Ray, which is an extra of its own: dreamvideo[ray].")
    address = "on this machine's cores or cards or, with an address such as auto or HOST:6379, on a cluster's"
    group.add_argument("--ray", nargs="?", const=LOCAL, metavar="ADDRESS", help=address)
    cpus = "CPU cores that each job takes (default: 1)"
    add_option(group, "cpus", cpus, type=number(Limits(1, 1024, whole=True)), default=1)
    gpus = "cards that each job takes, 0.5 for two jobs a card (default: 1 where there are any)"
    add_option(group, "gpus", gpus, type=number(Limits(0, 16)))


def _nano_train(parser: Parser) -> None:
    folder = "for the training states, and the base in its folder weights (default: output/nano)"
    _option(parser, "--out", "DIR", folder, Path, default=Path("output/nano"))
    _option(parser, "--device", "NAME", "cuda or cpu (default: cpu)", default="cpu")


def _nano_gate(parser: Parser) -> None:
    folder = "of nano train, or one with a vae.safetensors (default: output/nano)"
    _option(parser, "--out", "DIR", folder, Path, default=Path("output/nano"))
    size = f"of the pictures (default: {EMBEDDED.width})"
    parser.add_argument("--size", type=int, metavar="PIXELS", default=EMBEDDED.width, help=size)


def _nano_evaluate(parser: Parser) -> None:
    _option(parser, "--base", "DIR", "one trained again (default: the embedded one)", Path, default=EMBEDDED_FOLDER)
    add_option(parser, "count", "captions (default: 100)", default=100)
    add_option(parser, "seed", "default: 0", default=0)


def _base(parser: Parser) -> None:
    group = parser.add_argument_group("base", "Without any of the first five, the embedded base.")
    _option(group, "--base", "DIR", "folder with the UNet, the CLIP and the VAE of a base", Path)
    for name in ("UNet", "CLIP", "VAE"):
        _option(group, f"--{name.lower()}", "FILE", f"the {name} alone; goes before that of --base", Path)
    motion = "AnimateDiff's, where the UNet is a Stable Diffusion 1.5 checkpoint"
    _option(group, "--motion-module", "FILE", motion, Path)
    _option(group, "--device", "NAME", "cuda, mps or cpu (default: the fastest there is)")
    memory = "that this program may take there; less is slower (default: what is free)"
    add_option(group, "memory", memory)
    group.add_argument("--dtype", choices=DTYPES, help="of the UNet (default: what suits the device)")
    encoders = "of CLIP and VAE (default: float32; on a CPU bfloat16 where float32 would not fit)"
    group.add_argument("--encoder-dtype", choices=DTYPES, help=encoders)


def _size(parser: Any) -> None:
    for side in ("height", "width"):
        add_option(parser, side, of_base(side))


def _config(parser: Parser) -> None:
    config = "a run file: options in TOML, which those given here go before; or an adapter, to train as it was"
    _option(parser, run_files.OPTION, "FILE", config)


def _option(parser: Any, name: str, metavar: str, text: str, kind: Any = str, **options: Any) -> None:
    parser.add_argument(name, metavar=metavar, help=text, type=kind, **options)


def _next_free(name: str) -> str:
    return f"{name}, or the next of that name with a number that is free"
