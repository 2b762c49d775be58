"""The command line's arguments: what `dreamvideo --help` says."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..base import EMBEDDED_FOLDER
from ..checkpoints import LAYOUTS
from ..defaults import EMBEDDED, FULL_SIZE
from ..limits import MOST
from ..methods import MOTION_METHODS, MOTION_WORD, SUBJECT_METHODS, Method
from ..sampling import FASTEST, MAX_FRAMES, SLOWEST
from ..texts import SHOWN, quoted
from . import analyze, check, embedded, evaluate, files, sample, train
from .common import DTYPES

DESCRIPTION = """\
Customise a text-to-video model with a subject from a few photographs and a motion from a clip, and compose the two.
Without --base everything runs on a tiny base that is embedded here: for trying things in minutes, without a download.
"""
EXAMPLES = """\
examples:
  dreamvideo demo
  dreamvideo train subject photos/ --class-word dog --base models/modelscope
  dreamvideo train motion dance.mp4 --caption "a person is dancing" --base models/modelscope
  dreamvideo sample "a <my-dog> is dancing" --adapter output/my-dog.safetensors --adapter output/dance.safetensors \\
      --base models/modelscope
  dreamvideo inspect models/modelscope
"""
DEMO = """\
Trains a subject that the embedded base has never seen from 4 photographs and a motion from 1 clip, then composes them.
Leaves both adapters, the video, a contact sheet, loss curves and report.json in one folder. The same with your own
media: give --images and --video, and better also --class-word, --caption and --prompt.
"""
DEMO_EXAMPLES = """\
examples:
  dreamvideo demo
  dreamvideo demo --images photos/ --video dance.mp4 --class-word dog --caption "a person is dancing" \\
      --prompt "a <my-dog> is dancing in the snow" --base models/modelscope
"""
SUBJECT = """\
Learns a subject in two stages: its placeholder's token (textual inversion), then an identity adapter. Writes one
file with both, and beside it the losses as a plot and a table. The mask of photos/00.jpg is photos/masks/00.png or
photos/00-masklabel.png, white on the subject, and the crop follows it; the caption is in photos/00.txt and names the
placeholder, or is "a <my-dog>" where there is none. Stopped or killed, the same command goes on where it was; with more
--steps it goes on from where it ended, by the state that is kept in output/my-WORD.state. Without --out the file gets a
name of its own: nothing that is finished is replaced.
"""
SUBJECT_EXAMPLES = """\
examples:
  dreamvideo train subject photos/ --class-word dog
  dreamvideo train subject photos/ --class-word "plush toy" --placeholder "<wolf>" --out wolf.safetensors --steps 600
"""
MOTION = """\
Learns a motion from one or more clips: an adapter in the temporal transformers, guided by a frame's appearance. A
clip's caption is in the .txt of the same name beside it, else it is --caption. Writes the adapter, and beside it the
losses as a plot and a table. Stopped or killed, the same command goes on where it was; with more --steps it goes on
from where it ended, by the state that is kept in output/CLIP.state. Without --out the file gets a name of its own:
nothing that is finished is replaced.
"""
MOTION_EXAMPLES = """\
examples:
  dreamvideo train motion dance.mp4 --caption "a person is dancing"
  dreamvideo train motion clips/ --out dance.safetensors --frames 16
"""
SAMPLE = """\
Makes a video of a prompt, on the base alone or with any number of identities and motions. Brackets weigh: (red:1.4)
counts 1.4 times, (red) 1.1 times; \\( and \\) are brackets that weigh nothing.
"""
SAMPLE_EXAMPLES = """\
examples:
  dreamvideo sample "a red circle moving left on the grass"
  dreamvideo sample "a <my-dog> is dancing" --adapter my-dog.safetensors --adapter dance.safetensors@0.8 --seed 3
"""
INSPECT = """\
Tells layout, architecture, precision and size of a base's parts, which of them are missing and where they come from, or
what an adapter file was trained on and how.
"""
CONVERT = """\
Writes a UNet in another layout, container or precision, or an adapter in our format (.safetensors) or the authors'
(.pth, where a learned token is a file of its own and its name is *). SRC stays as it is: DST is another file.
"""
CONVERT_EXAMPLES = """\
examples:
  dreamvideo convert text2video_pytorch_model.pth unet.safetensors --dtype float16
  dreamvideo convert unet.safetensors my-pipeline --layout diffusers
  dreamvideo convert my-dog.safetensors my-dog.pth
"""
CHECK = """\
Trains every stage for a few steps, samples a short video and compares the device with the CPU: two minutes on a card.
Prints a report fit for a bug report: versions, devices, precisions, what ran where, speeds, peak memory, agreement. It
names no folder and no user, writes nothing else, and tells what needs attention.
"""
CHECK_EXAMPLES = """\
examples:
  dreamvideo check
  dreamvideo check --base models/modelscope --out check.txt
"""
ANALYZE = """\
Fine-tunes all spatial weights on a subject and all temporal weights on a motion, and plots by how much each kind of
layer changed: where an adapter has most to do (the paper's Figure 4). With your own media: --images and --video.
"""
EVALUATE = """\
With --suite nano trains, samples and measures every method of the paper's comparison on the toy world, where the truth
is known, and writes the paper's tables with confidence intervals and a figure. Stopped or killed, the same command
goes on where it was. With --videos gives your own videos the paper's four metrics.
"""
EVALUATE_EXAMPLES = """\
examples:
  dreamvideo evaluate --suite nano --quick
  dreamvideo evaluate --videos made/ --images photos/ --prompts prompts.txt --clip-weights vit-b-32.safetensors
"""
NANO_TRAIN = """\
Trains the embedded base again from nothing: autoencoder, text and image encoder, UNet. Hours on a CPU. Stopped or
killed, the same command goes on where it was.
"""
NANO_EVALUATE = """\
Samples captions that were held out of training and tells how often colour, shape, motion and place are right.
"""


class Parser(argparse.ArgumentParser):
    """Wrong arguments are a ValueError in one sentence, as any other wrong input."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        message = re.sub(rf"\S{{{2 * SHOWN},}}", lambda given: f"{given[0][:SHOWN]}...", message)
        raise ValueError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")


def build_parser() -> argparse.ArgumentParser:
    """The parser; parsed arguments have `run`, the command's function of the arguments and a Terminal."""
    parser = Parser(prog="dreamvideo", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"dreamvideo {__version__}")
    group = parser.add_subparsers(metavar="COMMAND", required=True)
    _demo(_add(group, "demo", embedded.demo, "try everything in minutes", DEMO, DEMO_EXAMPLES))
    kinds = _group(group, "train", "learn a subject or a motion")
    _train_subject(_add(kinds, "subject", train.subject, "from photographs", SUBJECT, SUBJECT_EXAMPLES))
    _train_motion(_add(kinds, "motion", train.motion, "from clips", MOTION, MOTION_EXAMPLES))
    _sample(_add(group, "sample", sample.sample, "make a video of a prompt", SAMPLE, SAMPLE_EXAMPLES))
    _inspect(_add(group, "inspect", files.inspect, "tell what a file or a base's folder is", INSPECT))
    _convert(_add(group, "convert", files.convert, "write another format", CONVERT, CONVERT_EXAMPLES))
    _evaluate(_add(group, "evaluate", evaluate.evaluate, "measure methods or videos", EVALUATE, EVALUATE_EXAMPLES))
    _check(_add(group, "check", check.check, "report on this machine and base", CHECK, CHECK_EXAMPLES))
    _analyze(_add(group, "analyze", analyze.analyze, "show which layers fine-tuning changes", ANALYZE))
    kinds = _group(group, "nano", "train or measure the embedded base")
    _nano_train(_add(kinds, "train", embedded.nano_train, "as it was trained", NANO_TRAIN))
    _nano_evaluate(_add(kinds, "evaluate", embedded.nano_evaluate, "how well it follows captions", NANO_EVALUATE))
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
    _option(parser, "--seed", "N", "default: 0", _seed, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training: shows that all works, no more")
    _base(parser)


def _analyze(parser: Parser) -> None:
    _media(parser)
    _option(parser, "--out", "DIR", f"default: {_next_free('output/analysis')}", Path)
    _option(parser, "--seed", "N", "default: 0", _seed, default=0)
    _option(parser, "--steps", "N", "of each of the two trainings (default: the methods' own)", _count)
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
    _option(parser, "--class-word", "WORD", "what the subject is, such as dog", required=True)
    _option(parser, "--placeholder", "NAME", "the name to learn it by (default: <my-WORD>)")
    parser.add_argument("--no-masks", action="store_true", help="learn from whole photographs although there are masks")
    _option(parser, "--token-steps", "N", f"steps of the first stage ({_of_stage('token', 'steps')})", _count)
    _option(parser, "--token-lr", "RATE", f"its learning rate ({_of_stage('token', 'learning_rate')})", _positive)
    _training(parser, "identity", "output/my-WORD.safetensors", SUBJECT_METHODS)
    _base(parser)


def _train_motion(parser: Parser) -> None:
    parser.add_argument("clips", nargs="+", metavar="CLIPS", help="a folder of clips or of numbered pictures, or clips")
    _option(parser, "--caption", "TEXT", "what happens in the clips without a .txt beside them")
    _option(parser, "--frames", "N", f"that make one sample ({_of_base('frames')})", _frames)
    _option(parser, "--fps", "RATE", f"frames a second to learn at ({_of_base('fps')})", _rate)
    released = "default, as released: 0.5"
    _option(parser, "--p-text-drop", "P", f"how often an empty caption takes the caption's place ({released})", _share)
    released += " for one clip, 0 for several"
    _option(parser, "--p-image-drop", "P", f"how often a zero image takes the frame's place ({released})", _share)
    token = "the motion's name in the captions, for a method that learns one (default: <my-motion>)"
    _option(parser, "--placeholder", "NAME", token, default="<my-motion>")
    _option(parser, "--class-word", "WORD", f"what that name begins from (default: {MOTION_WORD})", default=MOTION_WORD)
    related = "a folder of clips of related motions with captions, for a method that wants some"
    _option(parser, "--related", "DIR", related, Path)
    _training(parser, "motion", "output/CLIP.safetensors", MOTION_METHODS)
    _base(parser)


def _training(parser: Parser, stage: str, out: str, methods: Mapping[str, Method]) -> None:
    group = parser.add_argument_group("training")
    choice = f"DreamVideo's own, one with a part changed or left out, or another paper's: {', '.join(methods)}"
    group.add_argument("--method", choices=methods, default="dreamvideo", metavar="NAME", help=choice)
    file = f"the adapter file to write, in the place of what is there (default: {_next_free(out)})"
    _option(group, "--out", "FILE", file, Path)
    _option(group, "--steps", "N", f"of the adapter ({_of_stage(stage, 'steps')})", _count)
    _option(group, "--lr", "RATE", f"its learning rate ({_of_stage(stage, 'learning_rate')})", _positive)
    _option(group, "--batch", "N", f"samples a step ({_of_stage(stage, 'batch_size')})", _count)
    _option(group, "--seed", "N", "default: 0", _seed)
    _size(group)
    _option(group, "--preview-every", "N", "steps from one sampled preview to the next (default: none)", _count)
    checkpointing = "less memory, about a third more time (default: where a step would not fit into what is free)"
    switch = argparse.BooleanOptionalAction
    group.add_argument("--gradient-checkpointing", action=switch, default=None, help=checkpointing)
    restart = "begin anew instead of going on from where a run stopped or ended"
    group.add_argument("--restart", action="store_true", help=restart)


def _sample(parser: Parser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what the video should show")
    adapter = "an adapter or learned token, ours or the authors'; may be given several times (strength: 1)"
    _option(parser, "--adapter", "FILE[@STRENGTH]", adapter, action="append", default=[])
    other = "take adapters that were trained on other weights of the same architecture"
    parser.add_argument("--other-base", action="store_true", help=other)
    out = "a video (.mp4, .mov, .mkv), an animation (.gif, .webp) or, without a suffix, a folder of PNG frames"
    _option(parser, "--out", "FILE", f"{out} (default: {_next_free('output/PROMPT-ADAPTERS-SEED.mp4')})", Path)
    _option(parser, "--negative", "TEXT", "what the video should not show", default="")
    _option(parser, "--frames", "N", _of_base("frames"), _frames)
    _option(parser, "--fps", "RATE", f"frames a second ({_of_base('fps')})", _rate)
    _size(parser)
    _option(parser, "--steps", "N", "DDIM steps (default: 50)", _count)
    _option(parser, "--guidance", "SCALE", f"of classifier-free guidance ({_of_base('guidance')})", float)
    _option(parser, "--seed", "N", "default: 0", _seed)
    group = parser.add_argument_group("motion adapters")
    image = "whose appearance to follow (default: the identity's first photograph)"
    _option(group, "--guidance-image", "FILE", image, Path)
    _option(group, "--feature-strength-cond", "X", "of the guidance image (default: 1)", float)
    uncond = "in the unconditional half (default: 1 for motions trained with dropped images, else 0)"
    _option(group, "--feature-strength-uncond", "X", uncond, float)
    _option(group, "--prior-clip", "FILE", "a clip whose inverted noise the start remembers", Path)
    _option(group, "--prior-strength", "X", "how much of it (default: 0.5)", _share)
    _base(parser)


def _inspect(parser: Parser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a base's folder, a checkpoint file or an adapter file")
    parser.add_argument("--json", action="store_true", help="for programs")


def _convert(parser: Parser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="a UNet, a base's folder, or an adapter")
    parser.add_argument("target", type=Path, metavar="DST", help="its suffix chooses the format")
    parser.add_argument("--layout", choices=LAYOUTS, help="of a UNet (default: original)")
    parser.add_argument("--dtype", choices=DTYPES, help="of a UNet (default: the source's)")


def _check(parser: Parser) -> None:
    _option(parser, "--out", "FILE", "write the report there, too", Path)
    _base(parser)


def _evaluate(parser: Parser) -> None:
    parser.add_argument("--suite", choices=("nano",), help="the paper's comparison, on the embedded base")
    quick = "one subject, one motion, a quarter of the training: a coarse answer in about ten minutes on two cores"
    parser.add_argument("--quick", action="store_true", help=quick)
    _option(
        parser,
        "--table",
        "NUMBER",
        "only this table, beside those that --out has: 1, 2, 3, 5, A1, A4 or A5; may be given several times",
        action="append",
        default=[],
    )
    _option(parser, "--videos", "DIR", "videos of your own to score", Path)
    _option(parser, "--prompts", "FILE", "a line for each video: video.mp4|||what it should show, in words", Path)
    _option(parser, "--images", "DIR", "photographs of the subject in them, for CLIP-I and DINO-I", Path)
    _option(parser, "--clip-weights", "FILE", "CLIP ViT-B/32 in open_clip's names", Path)
    _option(parser, "--dino-weights", "FILE", "DINO ViT-S/16; without it DINO-I is left out", Path)
    _option(parser, "--out", "DIR", "for what is written (default for the suite: output/comparison)", Path)
    _base(parser)


def _nano_train(parser: Parser) -> None:
    folder = "for the training states, and the base in its folder weights (default: output/nano)"
    _option(parser, "--out", "DIR", folder, Path, default=Path("output/nano"))


def _nano_evaluate(parser: Parser) -> None:
    _option(parser, "--base", "DIR", "one trained again (default: the embedded one)", Path, default=EMBEDDED_FOLDER)
    _option(parser, "--count", "N", "captions (default: 100)", _count, default=100)
    _option(parser, "--seed", "N", "default: 0", _seed, default=0)


def _base(parser: Parser) -> None:
    group = parser.add_argument_group("base", "Without any of the first four, the embedded base.")
    _option(group, "--base", "DIR", "folder with the UNet, the CLIP and the VAE of a base", Path)
    for name in ("UNet", "CLIP", "VAE"):
        _option(group, f"--{name.lower()}", "FILE", f"the {name} alone; goes before that of --base", Path)
    _option(group, "--device", "NAME", "cuda, mps or cpu (default: the fastest there is)")
    memory = "that this program may take there; less is slower (default: what is free)"
    _option(group, "--memory", "GIB", memory, _positive)
    group.add_argument("--dtype", choices=DTYPES, help="of the UNet (default: what suits the device)")


def _size(parser: Any) -> None:
    for side in ("height", "width"):
        _option(parser, f"--{side}", "PIXELS", _of_base(side), _count)


def _option(parser: Any, name: str, metavar: str, text: str, kind: Any = str, **options: Any) -> None:
    most = MOST.get(name.removeprefix("--"))
    parser.add_argument(name, metavar=metavar, help=text, type=kind if most is None else _up_to(kind, most), **options)


def _up_to(kind: Any, most: float) -> Any:
    """`kind`, refusing numbers that no machine could work with."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not abs(value) <= most:
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number up to {most:,}")
        return value

    return parse


def _next_free(name: str) -> str:
    return f"{name}, or the next of that name with a number that is free"


def _of_base(name: str) -> str:
    return _default(getattr(FULL_SIZE, name), getattr(EMBEDDED, name))


def _of_stage(stage: str, name: str) -> str:
    return _default(getattr(FULL_SIZE.settings(stage), name), getattr(EMBEDDED.settings(stage), name))


def _default(full: float, embedded: float) -> str:
    return f"default: {full:g}" + (f"; embedded base: {embedded:g}" if embedded != full else "")


def _count(text: str) -> int:
    if not _is_whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not _is_whole(text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _is_whole(text: str) -> bool:
    return text.isdecimal() and len(text) <= 20


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number above 0")
    return value


def _frames(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MAX_FRAMES:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number of at least 1 and at most {MAX_FRAMES}")
    return int(text)


def _rate(text: str) -> float:
    value = _number(text)
    if not SLOWEST <= value <= FASTEST:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number from {SLOWEST:g} to {FASTEST:g}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number from 0 to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
