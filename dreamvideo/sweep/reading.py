"""A plan as it is given: a TOML file, or a folder of photographs and clips that needs none."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..encoders.prompts import check_placeholder
from ..files.base import PARTS
from ..files.toml import read_toml
from ..media.folders import PHOTO_SUFFIXES, VIDEO_SUFFIXES, caption_of
from ..safety.limits import short
from ..safety.paths import read_small
from ..sampling import SamplingSettings
from ..training.methods import MOTION_METHODS, MOTION_WORD, SUBJECT_METHODS
from ..training.settings import TrainingSettings
from .bases import DTYPES, BaseSpec
from .fields import Fields, different, tables
from .measures import Measuring
from .plan import MOTION, SUBJECT, Method, Motion, Plan, Subject

FILE = "sweep.toml"  # of a folder, where it says more than the folder does
CLASS_WORD, PROMPTS = "class_word.txt", "prompts.txt"
NEVER = {"preview_every", "snapshot_every", "memory"}  # not of a sweep, or of its bases
_SETTINGS = [item.name for item in fields(TrainingSettings) if item.name not in NEVER]
OPTIONS = {
    "subject": (*_SETTINGS, "height", "width", "token_steps", "token_learning_rate", "no_masks"),
    "motion": (*_SETTINGS, "height", "width", "frames", "fps"),
}
SAMPLING = [item.name for item in fields(SamplingSettings) if item.name not in ("prompt", "seed", "prior_strength")]


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan of a TOML file or of a folder. Raises ValueError, in one sentence that names the file."""
    path = Path(path)
    if not path.is_dir():
        return _plan(path, read_toml(path), path.parent, path.with_suffix("").name)
    file = path / FILE
    values = read_toml(file) if file.exists() else {}
    found = dict(values)
    for name, below in (("subjects", _subjects_of), ("motions", _motions_of)):
        given = values.get(name, [])
        found[name] = [*given, *below(path, values)] if isinstance(given, list) else given
    if "prompts" not in values and (path / PROMPTS).exists():
        found["prompts"] = _lines(path / PROMPTS)
    return _plan(file if file.exists() else path, found, path, path.resolve().name)


def _plan(path: Path, values: dict[str, Any], folder: Path, name: str) -> Plan:
    top = Fields(str(path), values, folder)
    out = top.path("out")
    bases = [_base(each) for each in tables(f"{path}: bases", top.take("bases", [{}]), folder)]
    subjects = [_subject(each) for each in tables(f"{path}: subjects", top.take("subjects", []), folder)]
    motions = [_motion(each) for each in tables(f"{path}: motions", top.take("motions", []), folder)]
    methods = [_method(path, each, folder) for each in _listed(path, top.take("methods", ["dreamvideo"]))]
    prompts, seeds = top.texts("prompts", [f"a {SUBJECT} {MOTION}"]), _seeds(path, top.take("seeds", [0]))
    training = Fields(f"{path}: training", top.take("training", {}), folder)
    options = {kind: _options(training, kind) for kind in OPTIONS}
    training.done()
    sampling = Fields(f"{path}: sampling", top.take("sampling", {}), folder)
    how = sampling.options(SAMPLING)
    sampling.done()
    measuring = _measuring(Fields(f"{path}: measure", top.take("measure", {}), folder))
    top.done()
    for what, names in {"bases": bases, "subjects": subjects, "motions": motions, "methods": methods}.items():
        different(f"{path}: two {what}", [each.name for each in names])
    _check_whole(path, subjects, motions, methods, prompts)
    return Plan(
        out=Path(out) if out else Path("output") / name,
        bases=tuple(bases),
        subjects=tuple(subjects),
        motions=tuple(motions),
        methods=tuple(methods),
        prompts=prompts,
        seeds=seeds,
        training=options,
        sampling=how,
        measuring=measuring,
    )


def _check_whole(path: Path, subjects: Any, motions: Any, methods: Any, prompts: Any) -> None:
    if not (subjects or motions):
        raise ValueError(f"{path} names no subject and no motion; give [[subjects]] with images, or folders of them.")
    if not methods or not prompts:
        raise ValueError(f"{path} has no {'prompts' if methods else 'methods'}; leave the line out for the usual ones.")
    for prompt in prompts:
        left = re.findall(r"\{.*?\}", prompt.replace(SUBJECT, "").replace(MOTION, ""))
        if left:
            raise ValueError(f"{path}: the prompt {short(prompt)} has {left[0]}; there are {SUBJECT} and {MOTION}.")
        if not prompt.strip():
            raise ValueError(f"{path}: a prompt is empty; say what the video should show.")


def _base(given: Fields) -> BaseSpec:
    places = {part: given.path(part) for part in ("folder", *PARTS)}
    usual = Path(next((path for path in places.values() if path), "embedded")).stem
    name, device = given.name("name", usual), given.take("device")
    dtypes = {part: given.take(part) for part in ("dtype", "encoder_dtype")}
    for part, value in dtypes.items():
        if value is not None and value not in DTYPES:
            raise ValueError(f"{given.where}: {part} is {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not {short(value)}.")
    if device is not None and not isinstance(device, str):
        raise ValueError(f"{given.where}: device is cuda, mps or cpu, not {short(device)}.")
    found = BaseSpec(name, **places, device=device, **dtypes, memory=given.number("memory"))
    given.done()
    return found


def _subject(given: Fields) -> Subject:
    name, images = given.name("name"), given.paths("images")
    if not images:
        raise ValueError(f"{given.where} lacks images, a folder of photographs.")
    class_word = given.text("class_word")
    placeholder = given.text("placeholder", f"<my-{'-'.join(name.split())}>")
    check_placeholder(placeholder)
    options = given.options(OPTIONS["subject"])
    given.done()
    return Subject(name, images, class_word, placeholder, options)


def _motion(given: Fields) -> Motion:
    name, clips = given.name("name"), given.paths("clips")
    if not clips:
        raise ValueError(f"{given.where} lacks clips, a video or a folder of them.")
    words = given.text("words", re.sub(r"[-_]+", " ", name))
    caption, related = given.text("caption", ""), given.paths("related")
    placeholder, class_word = given.text("placeholder", "<my-motion>"), given.text("class_word", MOTION_WORD)
    check_placeholder(placeholder)
    options = given.options(OPTIONS["motion"])
    given.done()
    return Motion(name, clips, words, caption, related, placeholder, class_word, options)


def _method(path: Path, value: Any, folder: Path) -> Method:
    """A name that subjects and motions share, or a table that names one for each."""
    if isinstance(value, str):
        if value not in SUBJECT_METHODS.keys() & MOTION_METHODS.keys():
            both = [name for name in SUBJECT_METHODS if name in MOTION_METHODS]
            raise ValueError(
                f"{path}: there is no method {short(value)} for both; there are {', '.join(both)}, "
                "and tables such as {name = ..., subject = ..., motion = ...}."
            )
        return Method(value, value, value)
    given = Fields(f"{path}: methods", value, folder)
    names = {"subject": SUBJECT_METHODS, "motion": MOTION_METHODS}
    found = {part: given.take(part) for part in names}
    for part, known in names.items():
        if found[part] is not None and found[part] not in known:
            raise ValueError(
                f"{given.where}: there is no {part} method {short(found[part])}; there are {', '.join(known)}."
            )
    name = given.name("name", " + ".join(filter(None, found.values())) or "base alone")
    strengths = [_strength(given, f"{part}_strength") for part in names]
    given.done()
    return Method(name, found["subject"], found["motion"], *strengths)


def _strength(given: Fields, name: str) -> float:
    return given.within("feature_strength_cond", given.take(name, 1.0))  # which has the limits of a strength


def _listed(path: Path, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{path}: methods are a list of names or of tables, not {short(value)}.")
    return value


def _seeds(path: Path, value: Any) -> tuple[int, ...]:
    """A list of seeds, or how many: 4 is 0, 1, 2, 3."""
    where = Fields(str(path), {}, path)
    if isinstance(value, int) and not isinstance(value, bool):
        return tuple(range(int(where.within("count", value))))
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path}: seeds are a list of whole numbers, or how many there shall be, not {short(value)}.")
    return tuple(int(where.within("seed", each)) for each in dict.fromkeys(value))


def _options(training: Fields, kind: str) -> dict[str, Any]:
    given = Fields(f"{training.where}.{kind}", training.take(kind, {}), training.folder)
    found = given.options(OPTIONS[kind])
    given.done()
    return found


def _measuring(given: Fields) -> Measuring:
    clip, dino, by_base = given.path("clip_weights"), given.path("dino_weights"), given.options(["by_base"])
    given.done()
    if dino and not clip:
        raise ValueError(f"{given.where}: dino_weights go with clip_weights, as in evaluate; give both.")
    return Measuring(clip, dino, by_base.get("by_base", True))


# ----------------------------------------------------------------------------------------- a folder instead of a plan


def _subjects_of(folder: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """`subjects/NAME/` holds photographs; the class word is in its class_word.txt, else it is the name."""
    named, found = _named(values, "subjects"), []
    for path in _below(folder / "subjects"):
        if path.is_dir() and path.name not in named:
            word = path / CLASS_WORD
            spelled = re.sub(r"[-_]+", " ", re.sub(r"[-_ ]*\d+$", "", path.name)) or path.name
            class_word = _lines(word)[0] if word.exists() else spelled
            found.append({"name": path.name, "images": f"subjects/{path.name}", "class_word": class_word})
    return found


def _motions_of(folder: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """`motions/NAME.mp4` with its caption in `NAME.txt`, or `motions/NAME/` with clips and theirs."""
    named, found = _named(values, "motions"), []
    for path in _below(folder / "motions"):
        name = path.name if path.is_dir() else path.stem
        if name not in named and (path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES | PHOTO_SUFFIXES):
            found.append({"name": name, "clips": f"motions/{path.name}", "caption": caption_of(path) or ""})
    return found


def _named(values: dict[str, Any], what: str) -> set[str]:
    given = values.get(what, [])
    return {str(each.get("name")) for each in given if isinstance(each, dict)} if isinstance(given, list) else set()


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in read_small(path).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8; save it as UTF-8.") from error
    if not any(found):
        raise ValueError(f"{path} is empty.")
    return [line for line in found if line]
