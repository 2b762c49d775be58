"""Whole jobs, for every face: which stages a training has, where its states lie, what is shown, and what is kept.

A `Plan` says what is trained, a `Place` where it is written, `Reports` what a face hears; `train` does the rest. Same
plan and data on the same base give the same bytes, whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .base import Base
from .customizing import RegionPrompt, customize
from .encoders.protocols import release
from .evaluation.plots import loss_plot
from .files.adapter_info import TrainedAdapter, check_fits
from .files.adapters import load_adapter, save_trained
from .files.fingerprint import same_base
from .media.clips import file_digest, read_cover, read_motion
from .media.folders import PathLike
from .media.photographs import Photo
from .media.writing import write_png
from .models.diffusion import Callback
from .models.network import check_frames
from .plans import Plan, digest_of, guided, motion_plan, subject_plan
from .previews import preview_video, snapshot_sheet
from .safety.paths import write_text
from .sampling import generate, notes_on_motion
from .training.data import TrainingData, digest, encode_clips, encode_photos
from .training.loop import Callbacks, TrainingResult
from .training.losses import LossLog, write_losses
from .training.methods import MOTION_METHODS, SUBJECT_METHODS, Method
from .training.places import Place, Run, claimed, losses_paths, run_file_path, sheet_path, snapshot_path
from .training.recipes import recipe
from .training.settings import TrainingSettings
from .training.stages import train_method
from .training.state import steps_of_state
from .training.state_folder import forget_others, state_file


@dataclass(frozen=True)
class Reports:
    """What a face hears of a training.

    progress: (stage, step, of how many, loss, steps per second, seconds left), after every step.
    preview: (the adapter's file, stage, steps done, prompt, video [F, 3, H, W] in 0..1), every `preview_every` steps,
    where there is a place.
    sampling: gives what follows the sampling of one preview, or one row of the sheet; see `diffusion.ddim_sample`.
    counting: takes what is counted, such as "Encoding frame", and gives what takes (done, of how many).
    should_stop: asked before every step; True saves the state and ends the training. say: sentences.
    run_file: (what the adapter tells of its run, the file's folder) -> the run file that makes it again, in TOML; None
    where a face has none to write.
    """

    progress: Callable[[str, int, int, float, float, float], None] = lambda *told: None
    preview: Callable[[Path, str, int, str, Tensor], None] = lambda *told: None
    sampling: Callable[[], Callback | None] = lambda: None
    counting: Callable[[str], Callable[[int, int], None]] = lambda what: lambda done, total: None
    should_stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda text: None
    run_file: Callable[[str, Path], str] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a training gave. adapter: named after the base's own weights, whatever lay on them while it was trained.

    losses: stage -> loss of each of its steps; empty where the file was there already. place: where it was written.
    complete: whether all stages went to their ends.
    """

    adapter: TrainedAdapter
    losses: Mapping[str, Sequence[float]]
    place: Place | None = None
    complete: bool = True


def train_subject(
    base: Base,
    photos: Sequence[Photo],
    *,
    placeholder: str,
    class_word: str,
    method: str = "dreamvideo",
    out: PathLike | None = None,
    default: Path = Path("adapter.safetensors"),
    restart: bool = False,
    cache: Path | None = None,
    reports: Reports | None = None,
    token_settings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Outcome:
    """Learn a subject from photographs of one size, see `media.photographs.load_images`, into an adapter's file.

    placeholder: its name in prompts, "<my-dog>"; class_word: what it is, "dog". method: of `SUBJECT_METHODS`. out: the
    file; None for the first of `default`, DEFAULT-2, ... that is free, or that the same training began. A training goes
    on from the states beside its file; restart: it begins anew. cache: a folder that keeps what is encoded. settings,
    token_settings: of `TrainingSettings`, where they differ from the base's own; steps=None leaves them to it.
    Raises ValueError for a placeholder that is an ordinary word, photographs that do not fit the base, and a file that
    cannot be written; KeyboardInterrupt when it is stopped.
    """
    reports = reports or Reports()
    base.encoders.text.check_placeholder(placeholder)
    captions = [photo.caption or f"a {placeholder}" for photo in photos]
    plan = subject_plan(
        base.defaults,
        base.unet.config,
        SUBJECT_METHODS[method],
        placeholder=placeholder,
        class_word=class_word,
        settings=settings,
        token_settings=token_settings or {},
    )
    pixels = [(photo.image, "" if photo.mask is None else photo.mask) for photo in photos]
    seen = digest(part for pair, caption in zip(pixels, captions, strict=True) for part in (*pair, caption))
    count = ("one stage", "two stages")[len(plan.stages) - 1]
    reports.say(f"Learning {placeholder} from {len(photos)} photograph{'s' * (len(photos) > 1)}, in {count}.")

    def encode() -> TrainingData:
        images, masks = [photo.image for photo in photos], [photo.mask for photo in photos]
        return encode_photos(images, captions, base.encoders, masks, report=reports.counting("Encoding"), cache=cache)

    return _train_into(base, encode, plan, plan.run(seen, base.fingerprint), out, default, restart, reports)


def train_motion(
    base: Base,
    clips: Sequence[Path],
    captions: Sequence[str],
    *,
    masks: Sequence[Path | None] = (),
    related: int = 0,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    placeholder: str = "",
    class_word: str = "",
    method: str = "dreamvideo",
    out: PathLike | None = None,
    default: Path = Path("adapter.safetensors"),
    restart: bool = False,
    cache: Path | None = None,
    reports: Reports | None = None,
    **settings: Any,
) -> Outcome:
    """Learn a motion from clips, see `media.clips.find_clips`, each with a caption, into an adapter's file.

    masks: one a clip, white on what is not to be learned from, see `media.clips.read_cover`; none by default. related:
    how many of the clips, at their end, show related motions. size: (height, width) in pixels; frames, fps: of
    a training sample; all by default the base's. placeholder, class_word: for a row with a word of its own. method: of
    `MOTION_METHODS`; the rest as for `train_subject`.
    """
    reports = reports or Reports()
    size = size or (base.defaults.height, base.defaults.width)
    frames, fps = frames or base.defaults.frames, fps or base.defaults.fps
    check_frames(base.unet.config, frames)
    plan = motion_plan(
        base.defaults,
        base.unet.config,
        guided(MOTION_METHODS[method], base.encoders.image, reports.say),
        len(clips) - related,
        placeholder=placeholder,
        class_word=class_word,
        settings=settings,
    )
    masks = masks or [None] * len(clips)
    covers = [f"mask {number} {file_digest(mask)}" for number, mask in enumerate(masks) if mask]
    seen = digest([*map(file_digest, clips), *captions, *covers])
    run = plan.run(seen, base.fingerprint, height=size[0], width=size[1], frames=frames, fps=fps)
    source = f"{len(clips) - related} clips" if len(clips) - related > 1 else clips[0].name
    reports.say(f"Learning a motion from {source}, {frames} frames at {fps:g} a second.")
    for note in notes_on_motion(captions, frames, known=[placeholder] if plan.last[0].token != "none" else []):
        reports.say(note)

    def pixels() -> Iterator[tuple[Tensor, Tensor | None]]:
        for path, mask in zip(clips, masks, strict=True):  # one by one: all of them may be more than the memory
            clip = read_motion(path, size, frames, fps)
            if clip.note:
                reports.say(f"{path.name}: {clip.note}")
            cover = None if mask is None or clip.taken is None else read_cover(mask, clip.taken, size)
            if mask is not None and cover is not None:
                share = float(cover.float().mean())
                reports.say(f"{path.name}: what {mask.name} marks white, {share:.0%}, is not learned from.")
            yield clip.pixels(), cover

    def encode() -> TrainingData:
        report = reports.counting("Encoding frame")
        return encode_clips(pixels(), captions, base.encoders, frames, report=report, cache=cache)

    return _train_into(base, encode, plan, run, out, default, restart, reports)


def sample(
    base: Base,
    prompt: str,
    adapters: Sequence[TrainedAdapter] = (),
    strengths: Sequence[float] | None = None,
    *,
    limits: Sequence[Mapping[str, Any]] | None = None,
    regions: Sequence[RegionPrompt] = (),
    **settings: Any,
) -> Tensor:
    """A video [F, 3, H, W] in 0..1 of a prompt under adapters, each at its strength (1 by default).

    limits, regions: where and when adapters act, and parts of the video with prompts of their own, as
    `customizing.customize` takes them. settings: of `SamplingSettings`, where they differ from the base's own, and what
    else `sampling.generate` takes: guidance_image, prior_clip, callback. Raises ValueError for adapters of another
    base, and what `generate` raises.
    """
    for each in adapters:
        check_fits(each.info, base.unet.config, base.fingerprint, same_base=same_base)
    more = {name: settings.pop(name) for name in ("guidance_image", "prior_clip", "callback") if name in settings}
    own = base.defaults.sampling(prompt, **settings)
    return generate(base.unet, base.encoders, own, customize(adapters, strengths, limits, regions), **more)


def _train_into(
    base: Base,
    encode: Callable[[], TrainingData],
    plan: Plan,
    run: Run,
    out: PathLike | None,
    default: Path,
    restart: bool,
    reports: Reports,
) -> Outcome:
    with claimed(None if out is None else Path(out), default, run, restart, reports.say) as place:
        if place.finished:
            return Outcome(load_adapter(place.out, base.unet.config), {}, place)
        data = encode()
        release(base.encoders.image, base.encoders.vae)
        return train(base, data, plan, place, reports)


def train(base: Base, data: TrainingData, plan: Plan, place: Place, reports: Reports | None = None) -> Outcome:
    """Train a plan into its place, from whatever states lie there.

    Writes the adapter, then its run file, its losses as a table and a plot and, where there were snapshots, a sheet of
    what each of them makes of one prompt and seed. Raises KeyboardInterrupt when it is stopped, its states kept, and
    what `train_method` raises.
    """
    reports = reports or Reports()
    outcome = train_stages(base, data, plan, place, reports)
    if outcome.complete:
        save(base, outcome.adapter, place.out)
        run = outcome.adapter.info.run
        if run and reports.run_file is not None:
            write_text(run_file_path(place.out), reports.run_file(run, place.out.parent))
    table, plot = losses_paths(place.out)
    write_losses(table, outcome.losses)
    write_png(plot, loss_plot(outcome.losses))
    if not outcome.complete:
        raise KeyboardInterrupt
    if plan.last[1].snapshot_every:
        write_png(sheet_path(place.out), snapshot_sheet(base, data, place.out, plan.last[1], reports.sampling))
    return outcome


def train_stages(
    base: Base, data: TrainingData, plan: Plan, place: Place | None = None, reports: Reports | None = None
) -> Outcome:
    """The stages of a plan, one after the other. place: of their states; None where nothing shall be written."""
    reports = reports or Reports()
    done: dict[str, TrainingResult] = {}
    tokens, unchanged = plan.tokens, True
    for row, settings in plan.stages:
        path = None if place is None else _state(place.states, row, tokens if row.token == "given" else {}, unchanged)
        unchanged = path is None or (path.exists() and steps_of_state(path) == settings.steps)
        losses = {stage: result.losses for stage, result in done.items()}
        log = None if place is None else LossLog(losses_paths(place.out)[0], row.stage, losses)
        done[row.stage] = train_method(
            base.unet,
            base.encoders.text,
            data,
            row,
            placeholder=plan.placeholder,
            class_word=plan.class_word,
            tokens=tokens,
            vectors=plan.vectors,
            settings=settings,
            callbacks=_callbacks(base, data, row, settings, place, reports, log, plan),
            state_path=path,
            resume=True,
        )
        if log is not None:
            log.close()
        trained, tokens = done[row.stage].trained, done[row.stage].trained.tokens
        if done[row.stage].stopped:
            break
    adapter = _named(base, data, plan, trained)
    losses = {stage: result.losses for stage, result in done.items()}
    return Outcome(adapter, losses, place, complete=not done[row.stage].stopped)


def save(base: Base, adapter: TrainedAdapter, path: Path) -> None:
    """Write an adapter in the precision that suits its base."""
    save_trained(path, adapter, base.defaults.adapter_dtype)


def _named(base: Base, data: TrainingData, plan: Plan, trained: TrainedAdapter) -> TrainedAdapter:
    """What was trained, named after the base's own weights, and with the run file that makes it again."""
    *before, (row, settings) = plan.stages
    stages = [*before, (row, replace(settings, steps=trained.info.steps or settings.steps))]
    run = recipe(stages, data, plan.placeholder, plan.class_word) if plan.vectors == 1 else ""  # no command has several
    return replace(trained, info=replace(trained.info, base_fingerprint=base.fingerprint, run=run))


def _state(states: Path, row: Method, tokens: Mapping[str, Tensor], unchanged: bool) -> Path:
    """A stage's state. Looks go with their word: under another one they are learned anew.

    unchanged: whether the word is the one that earlier versions' states, which do not tell theirs, were made under.
    """
    path = state_file(states, row.stage, digest_of(tokens))
    earlier = [states / f"{name}.safetensors" for name in (row.stage, row.trains)]
    for other in earlier:
        if unchanged and other.exists() and not path.exists():
            other.rename(path)
    forget_others(path)
    return path


def _callbacks(
    base: Base,
    data: TrainingData,
    row: Method,
    settings: TrainingSettings,
    place: Place | None,
    reports: Reports,
    log: LossLog | None,
    plan: Plan,
) -> Callbacks:
    def progress(step: int, loss: float, speed: float, seconds_left: float) -> None:
        if log is not None:
            log.add(step, loss)
        reports.progress(row.stage, step, settings.steps, loss, speed, seconds_left)

    def preview(trained: TrainedAdapter) -> None:
        if place is not None:
            prompt, video = preview_video(base, data, trained, settings.seed, reports.sampling())
            reports.preview(place.out, row.stage, trained.info.steps or 0, prompt, video)

    def snapshot(trained: TrainedAdapter) -> None:
        if place is not None:
            save(base, _named(base, data, plan, trained), snapshot_path(place.out, trained.info.steps or 0))

    return Callbacks(progress, preview, reports.should_stop, reports.say, snapshot)
