"""The training loop: what it learns and leaves alone, and that interruptions leave no trace."""

from __future__ import annotations

import itertools
import math
import os
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from fakes import CONFIG, FEATURE_WIDTH, FakeText, fake_encoders, pictures, tiny_unet

from dreamvideo.customizing import customize
from dreamvideo.files.adapters import load_adapter, save_trained
from dreamvideo.models.adapters import Adapter, AdapterConfig
from dreamvideo.sampling import SamplingSettings, generate
from dreamvideo.training import loop, precision
from dreamvideo.training.data import TrainingData, TrainingItem, digest, encode_clips, encode_photos, with_text
from dreamvideo.training.drawing import draw_batch
from dreamvideo.training.learners import AdapterLearner, TokenLearner
from dreamvideo.training.loop import Callbacks, TrainingError, train
from dreamvideo.training.methods import (
    IDENTITY,
    MOTION,
    MOTION_SEVERAL,
    TEXTUAL_INVERSION,
    Method,
    motion_method,
)
from dreamvideo.training.precision import LossScale
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_identity, train_method, train_motion, train_textual_inversion
from dreamvideo.training.state import read_state

SETTINGS = TrainingSettings(steps=8, learning_rate=1e-3, batch_size=2, warmup=2, seed=3, save_every=3)
TOKENS = {"<toy>": torch.linspace(-1, 1, CONFIG.context_dim)[None]}
MOTION_CONFIG = AdapterConfig.motion(condition_dim=FEATURE_WIDTH)
EMPTY = torch.empty(0, dtype=torch.int64)


class Killed(BaseException):
    """What no handler is prepared for."""


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


def photo_data(masks=None) -> TrainingData:
    return encode_photos(pictures(3), "a <toy>", fake_encoders(), masks)


def clip_data(clips: int = 2, frames: int = 3) -> TrainingData:
    return encode_clips([pictures(5, seed) for seed in range(clips)], "a car turns", fake_encoders(), frames)


def identity_run(unet, data=None, settings=SETTINGS, **hooks):
    return train_identity(
        unet, FakeText(), data or photo_data(), tokens=TOKENS, class_word="toy", settings=settings, **hooks
    )


def motion_run(unet, data=None, settings=SETTINGS, **hooks):
    settings = replace(settings, p_text_drop=0.5, p_image_drop=0.5)
    return train_motion(unet, FakeText(), data or clip_data(), settings=settings, **hooks)


def token_run(unet, data=None, settings=SETTINGS, **hooks):
    return train_textual_inversion(
        unet, FakeText(), data or photo_data(), placeholder="<toy>", class_word="plush-toy", settings=settings, **hooks
    )


RUNS = {"token": token_run, "identity": identity_run, "motion": motion_run}


def file_bytes(result, path) -> bytes:
    save_trained(path, result.trained)
    return path.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(unet, tmp_path_factory):
    """Kind -> the result of a run to its end, and its file's bytes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    results = {kind: run(unet) for kind, run in RUNS.items()}
    return {kind: (result, file_bytes(result, folder / f"{kind}.safetensors")) for kind, result in results.items()}


def fixed_loss(unet, data, learner, method, draws: int = 12) -> float:
    """The loss over the same draws, whatever was trained before."""
    settings = replace(SETTINGS, batch_size=draws)
    run = loop._Run(unet, data, method, settings, learner, None)
    batch, _ = draw_batch(data, method, settings, EMPTY, torch.Generator().manual_seed(99))
    with torch.no_grad():
        return run._loss(batch).item()


# --- what is learned ----------------------------------------------------------------------------------------------


def test_every_method_lowers_its_loss(unet):
    photos, clips = with_text(photo_data(), FakeText(), TOKENS), with_text(clip_data(), FakeText())
    cases = [
        (TEXTUAL_INVERSION, photos, TokenLearner(FakeText(), TOKENS), 0.1, 0.995),
        (IDENTITY, photos, AdapterLearner(Adapter(AdapterConfig.identity(), CONFIG)), 1e-2, 0.97),
        (MOTION_SEVERAL, clips, AdapterLearner(Adapter(MOTION_CONFIG, CONFIG)), 1e-2, 0.97),
    ]
    for method, data, learner, rate, enough in cases:
        before = fixed_loss(unet, data, learner, method)
        settings = TrainingSettings.for_method(method, steps=40, learning_rate=rate, batch_size=4, save_every=0)
        train(unet, data, method, settings, learner)
        assert fixed_loss(unet, data, learner, method) < enough * before, method.name


@pytest.mark.parametrize("kind", RUNS)
def test_the_base_is_left_bit_for_bit(unet, kind):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    result = RUNS[kind](unet)
    assert result.steps == 8 and len(result.losses) == 8 and not result.stopped
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert not unet.gradient_checkpointing


def test_the_text_encoder_runs_in_the_loop_only_where_it_must(unet):
    text = FakeText()
    train_motion(unet, text, clip_data(), settings=SETTINGS)
    assert text.calls == [["", "a car turns"]]
    text = FakeText()
    train_textual_inversion(unet, text, photo_data(), placeholder="<toy>", class_word="toy", settings=SETTINGS)
    assert text.calls == [["a <toy>"]] * 8  # the caption that both samples share, once a step


def test_the_same_seed_gives_the_same_file_and_another_seed_another(unet, undisturbed, tmp_path):
    again = file_bytes(motion_run(unet), tmp_path / "a.safetensors")
    other = file_bytes(motion_run(unet, settings=replace(SETTINGS, seed=4)), tmp_path / "b.safetensors")
    assert undisturbed["motion"][1] == again != other


def test_neither_the_global_generator_nor_checkpointing_matters(unet, undisturbed, tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    result = motion_run(unet, settings=replace(SETTINGS, gradient_checkpointing=True))
    assert torch.equal(state, torch.get_rng_state())
    assert file_bytes(result, tmp_path / "a.safetensors") == undisturbed["motion"][1]


def test_warm_up_rises_linearly_from_its_first_step(unet):
    learner = TokenLearner(FakeText(), TOKENS)
    run = loop._Run(unet, photo_data(), TEXTUAL_INVERSION, replace(SETTINGS, warmup=4), learner, None)
    rates = []
    for _ in range(6):
        run.update()
        rates.append(run.optimizer.param_groups[0]["lr"] / SETTINGS.learning_rate)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_adapter_files_tell_how_they_were_made(unet, tmp_path):
    save_trained(tmp_path / "toy.safetensors", identity_run(unet).trained)
    loaded = load_adapter(tmp_path / "toy.safetensors")
    assert loaded.info.kind == "identity" and loaded.info.placeholder == "<toy>" and loaded.info.class_word == "toy"
    assert loaded.info.steps == 8 and loaded.info.learning_rate == 1e-3 and loaded.info.seed == 3
    assert loaded.info.captions == ("a <toy>",) * 3 and loaded.info.base_fingerprint
    assert loaded.info.extra["settings"]["warmup"] == 2 and loaded.info.extra["width"] == 32
    assert torch.equal(loaded.tokens["<toy>"], TOKENS["<toy>"])
    assert loaded.features.shape == (3, FEATURE_WIDTH)
    save_trained(tmp_path / "token.safetensors", token_run(unet).trained)
    token = load_adapter(tmp_path / "token.safetensors")
    assert token.adapter is None and token.tokens["<toy>"].shape == (1, CONFIG.context_dim)


def test_a_class_word_is_told_only_where_there_is_a_token(unet):
    settings = TrainingSettings.for_method(MOTION, steps=1)
    result = train_method(unet, FakeText(), clip_data(), MOTION, class_word="moving", settings=settings)
    assert result.trained.info.class_word == "" and str(result.trained.info) == "motion adapter, 1 steps"


def test_learned_tokens_begin_from_the_class_word(unet):
    def start(vectors):
        settings = replace(SETTINGS, steps=1, learning_rate=1e-12)
        result = train_textual_inversion(
            unet,
            FakeText(),
            photo_data(),
            placeholder="<toy>",
            class_word="plush-toy",
            vectors=vectors,
            settings=settings,
        )
        return result.trained.tokens["<toy>"]

    word = FakeText().embed_word("plush-toy")  # two tokens long
    torch.testing.assert_close(start(1), word[:1])
    torch.testing.assert_close(start(3), word[[0, 1, 0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_trains_float32_weights(dtype):
    half = tiny_unet(dtype=dtype)
    result = identity_run(half)
    assert all(parameter.dtype == torch.float32 for parameter in result.trained.adapter.parameters())
    ups = [p for name, p in result.trained.adapter.named_parameters() if "up_linear.weight" in name]
    assert all(up.abs().max() > 0 for up in ups) and all(math.isfinite(loss) for loss in result.losses)


def test_data_encoded_in_inference_mode_can_be_trained_on(unet):
    with torch.inference_mode():
        results = [run(unet, data) for run, data in ((identity_run, photo_data()), (motion_run, clip_data()))]
        results.append(token_run(unet, photo_data()))
    assert all(result.steps == 8 for result in results)


# --- what a step draws ----------------------------------------------------------------------------------------------


def draws(data, method, settings, count=200):
    queue, generator, batches = EMPTY, torch.Generator().manual_seed(0), []
    for _ in range(count):
        batch, queue = draw_batch(data, method, settings, queue, generator)
        batches.append(batch)
    return batches


def numbered(items: int, frames: int) -> TrainingData:
    """Item i's latents are i everywhere, its feature at frame f is (i, f)."""
    return TrainingData(
        tuple(
            TrainingItem(
                torch.full((4, frames, 2, 2), float(i)),
                torch.zeros(4, frames, 2, 2),
                f"item {i}",
                features=torch.stack([torch.tensor([i, f], dtype=torch.float32) for f in range(frames)]),
            )
            for i in range(items)
        ),
        frames=2,
    )


def test_every_round_takes_every_item_once():
    settings = replace(SETTINGS, batch_size=2)
    items = [int(i) for batch in draws(numbered(3, 2), MOTION, settings, 30) for i in batch.latents[:, 0, 0, 0, 0]]
    rounds = [items[start : start + 3] for start in range(0, 60, 3)]
    assert all(sorted(each) == [0, 1, 2] for each in rounds) and len({tuple(each) for each in rounds}) > 1


def test_clips_begin_anywhere_and_the_guidance_frame_lies_within():
    data = numbered(1, 4)
    ramp = torch.arange(4.0).view(1, 4, 1, 1).expand(4, 4, 2, 2)
    data = replace(data, items=(replace(data.items[0], mean=ramp),))
    seen = set()
    for batch in draws(data, MOTION, replace(SETTINGS, batch_size=1)):
        start, guide = int(batch.latents[0, 0, 0, 0, 0]), int(batch.features[0, 1])
        assert batch.latents[0, 0, :, 0, 0].tolist() == [start, start + 1] and guide in (start, start + 1)
        seen.add((start, guide))
    assert len(seen) == 6


def test_noisier_takes_the_noisier_of_two_timesteps():
    batches = draws(photo_data(), IDENTITY, replace(SETTINGS, noisier=True))
    times = torch.cat([batch.timesteps for batch in batches])
    assert times.max() <= 999 and 630 < times.float().mean() < 700  # two thirds of the way


def test_a_shift_moves_picture_and_mask_together_and_repeats_their_edges():
    cells = torch.arange(6.0)
    place = torch.stack([cells.view(6, 1).expand(6, 6), cells.expand(6, 6)])  # each cell's row and column
    mask = (place[:1] == 2).float()  # its third row
    item = TrainingItem(torch.cat([place, place])[:, None], torch.zeros(4, 1, 6, 6), "item", mask[:, None])
    seen = set()
    for batch in draws(TrainingData((item,)), IDENTITY, replace(SETTINGS, batch_size=1, shift=2)):
        rows, columns = batch.latents[0, :2, 0]
        down, right = 2 - int(rows[2, 2]), 2 - int(columns[2, 2])
        assert torch.equal(rows[:, 0], (cells - down).clamp(0, 5)) and torch.equal(
            columns[0], (cells - right).clamp(0, 5)
        )
        assert torch.equal(batch.mask[0, 0, 0], (rows == 2).float())
        seen.add((down, right))
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_posterior_timesteps_and_noise_are_drawn_anew():
    data = photo_data()
    batches = draws(data, IDENTITY, SETTINGS)
    times = torch.cat([batch.timesteps for batch in batches])
    assert times.min() < 30 and times.max() > 970 and 450 < times.float().mean() < 550
    latents = torch.cat([batch.latents for batch in batches])
    assert len(torch.unique(latents[:, 0, 0, 0, 0])) == 400
    noise = torch.cat([batch.noise for batch in batches])
    assert noise.mean((3, 4)).std().item() == pytest.approx((0.1**2 + 1 / 16) ** 0.5, rel=0.05)  # per channel and frame


def test_captions_and_images_are_dropped_as_often_as_asked():
    settings = replace(SETTINGS, p_text_drop=0.5, p_image_drop=0.25)
    data = numbered(1, 2)
    data = replace(data, items=(replace(data.items[0], features=torch.ones(2, 2)),))
    batches = draws(data, MOTION, settings)
    dropped = torch.cat([batch.dropped for batch in batches]).float().mean().item()
    blind = torch.cat([(batch.features == 0).all(1) for batch in batches]).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.08) and blind == pytest.approx(0.25, abs=0.08)
    never = draws(data, MOTION, SETTINGS)
    assert not any(batch.dropped.any() or (batch.features == 0).any() for batch in never)


def test_a_dropped_caption_is_the_empty_prompt_and_a_dropped_image_a_zero_one(unet):
    data = with_text(clip_data(), FakeText())
    adapter = Adapter(MOTION_CONFIG, CONFIG)
    torch.nn.init.ones_(adapter.at("middle_block.2.transformer_blocks.0.ff").up_linear.weight)
    run = loop._Run(unet, data, MOTION, SETTINGS, AdapterLearner(adapter), None)
    batch, _ = draw_batch(data, MOTION, SETTINGS, EMPTY, torch.Generator().manual_seed(0))
    empty = data.states[""].expand_as(batch.states)
    with torch.no_grad():
        plain = run._loss(batch)
        dropped = run._loss(replace(batch, dropped=torch.tensor([True, True])))
        assert dropped == run._loss(replace(batch, states=empty)) != plain
        assert run._loss(replace(batch, features=torch.zeros_like(batch.features))) != plain
        assert run._loss(replace(batch, features=None)) != run._loss(replace(batch, features=batch.features * 0))


def test_nothing_outside_the_mask_is_learned(unet):
    mask = torch.zeros(3, 1, 32, 32)
    mask[..., :16, :16] = 1
    data = with_text(photo_data(list(mask)), FakeText(), TOKENS)
    learner = AdapterLearner(Adapter(AdapterConfig.identity(), CONFIG))
    batch, _ = draw_batch(data, IDENTITY, SETTINGS, EMPTY, torch.Generator().manual_seed(0))
    assert batch.mask.shape == (2, 1, 1, 4, 4) and batch.mask.sum() == 8
    seen = []

    def recorded(prediction, noise, mask, normalize_mask):
        prediction.retain_grad()
        seen.append(prediction)
        return IDENTITY.loss(prediction, noise, mask, normalize_mask)

    def gradient(settings):
        train(unet, data, replace(IDENTITY, loss=recorded), settings, learner)
        return seen[-1].grad

    settings = replace(SETTINGS, steps=1)
    inside = gradient(settings)
    assert (inside[..., :2, :2] != 0).all() and (inside[..., 2:, :] == 0).all() and (inside[..., 2:] == 0).all()
    assert (gradient(replace(settings, masked=False)) != 0).all()
    assert gradient(replace(settings, normalize_mask=True)).abs().sum() > 2 * inside.abs().sum()


def test_masks_that_settings_leave_out_are_told(unet):
    masked, plain = photo_data(list(torch.ones(3, 1, 32, 32))), photo_data()
    unmasked, said = replace(SETTINGS, steps=1, gradient_checkpointing=False, masked=False), []
    for data, settings in ((plain, unmasked), (masked, replace(unmasked, masked=True)), (masked, unmasked)):
        said.append([])
        identity_run(unet, data, settings, callbacks=Callbacks(say=said[-1].append))
    assert said[:2] == [[], []] and ["masks are not used" in sentence for sentence in said[2]] == [True]


# --- interruptions leave no trace -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "save_every"), [("token", 1), ("identity", 3), ("motion", 2)])
def test_a_killed_run_goes_on_to_the_same_bytes(unet, undisturbed, tmp_path, monkeypatch, kind, save_every):
    settings = replace(SETTINGS, save_every=save_every)
    path, run = tmp_path / "state.safetensors", RUNS[kind]
    whole, wanted = undisturbed[kind]
    run(unet, settings=settings, state_path=path)
    wanted_state = path.read_bytes()
    path.unlink()

    # Killed three times: in the forward pass, between an update's parts, and while the new state is being written.
    def killing(owner, name, calls):
        original, count = getattr(owner, name), iter(range(100))

        def wrapped(*args, **kwargs):
            if next(count) == calls:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    def killed_run():
        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "save", _save_unless_dying(loop._Run.save))
            with pytest.raises(Killed):
                run(unet, settings=settings, state_path=path, resume=True)
        monkeypatch.undo()

    killing(loop._Run, "_loss", 4)
    killed_run()
    killing(precision.LossScale, "after", 1)
    killed_run()
    killing(loop, "write_safetensors", 0)
    killed_run()
    result = run(unet, settings=settings, state_path=path, resume=True)
    assert result.losses == whole.losses
    assert file_bytes(result, tmp_path / "resumed.safetensors") == wanted
    assert path.read_bytes() == wanted_state


def _save_unless_dying(save):
    """A killed process does not run handlers: no save while an exception is on its way."""

    def wrapped(self):
        if not isinstance(sys.exc_info()[1], Killed):
            save(self)

    return wrapped


def test_a_kill_while_a_state_is_written_leaves_the_old_one_whole(unet, undisturbed, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    identity_run(unet, settings=replace(SETTINGS, steps=3), state_path=path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        identity_run(unet, state_path=path, resume=True)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert identity_run(unet, state_path=path, resume=True).losses == undisturbed["identity"][0].losses


@pytest.mark.parametrize("stop_at", [0, 4, 7])
def test_a_stop_request_ends_cleanly_and_can_be_resumed(unet, undisturbed, tmp_path, stop_at):
    path, seen = tmp_path / "state.safetensors", []
    callbacks = Callbacks(progress=lambda step, *_: seen.append(step), should_stop=lambda: len(seen) == stop_at)
    result = motion_run(unet, callbacks=callbacks, state_path=path)
    assert result.stopped and result.steps == stop_at == len(result.losses) and result.trained.info.steps == stop_at
    result = motion_run(unet, state_path=path, resume=True)
    assert not result.stopped and file_bytes(result, tmp_path / "resumed.safetensors") == undisturbed["motion"][1]


@pytest.mark.parametrize("moment", ["_loss", "after", "progress"])
def test_control_c_at_any_moment_can_be_resumed(unet, undisturbed, tmp_path, monkeypatch, moment):
    path, calls = tmp_path / "state.safetensors", []

    def interrupt(*args):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args)

    original = {"_loss": loop._Run._loss, "after": LossScale.after, "progress": lambda *args: None}[moment]
    callbacks = Callbacks(progress=interrupt) if moment == "progress" else None
    if moment != "progress":
        monkeypatch.setattr(loop._Run if moment == "_loss" else LossScale, moment, interrupt)
    result = identity_run(unet, state_path=path, callbacks=callbacks)
    # Four whole steps; one that was torn in its update is undone to the last file, of step 3; one more was finished.
    assert result.stopped and result.steps == {"_loss": 4, "after": 3, "progress": 5}[moment]
    monkeypatch.undo()
    result = identity_run(unet, state_path=path, resume=True)
    assert file_bytes(result, tmp_path / "resumed.safetensors") == undisturbed["identity"][1]


def test_an_error_in_a_callback_is_told_and_loses_no_step(unet, tmp_path):
    def fail(step, *_):
        if step == 5:
            raise RuntimeError("the host went away")

    path = tmp_path / "state.safetensors"
    with pytest.raises(RuntimeError, match="went away"):
        identity_run(unet, state_path=path, callbacks=Callbacks(progress=fail))
    seen = []
    identity_run(unet, state_path=path, resume=True, callbacks=Callbacks(progress=lambda step, *_: seen.append(step)))
    assert seen == [6, 7, 8]


def test_a_finished_run_can_be_lengthened(unet, undisturbed, tmp_path):
    path = tmp_path / "state.safetensors"
    identity_run(unet, settings=replace(SETTINGS, steps=5), state_path=path)
    longer = identity_run(unet, state_path=path, resume=True)
    assert file_bytes(longer, tmp_path / "a.safetensors") == undisturbed["identity"][1]
    with pytest.raises(ValueError, match="at step 8, past the 5"):
        identity_run(unet, settings=replace(SETTINGS, steps=5), state_path=path, resume=True)


def test_previews_see_the_adapter_and_leave_no_trace(unet, undisturbed, tmp_path):
    seen = []

    def preview(loaded):
        settings = SamplingSettings("a <toy>", frames=1, height=32, width=32, steps=2)
        frames = generate(unet, fake_encoders(), settings, customize([loaded]))
        seen.append((loaded.info.steps, frames))

    settings = replace(SETTINGS, preview_every=2)
    result = identity_run(unet, settings=settings, callbacks=Callbacks(preview=preview))
    assert [step for step, _ in seen] == [2, 4, 6, 8] and not torch.equal(seen[0][1], seen[3][1])
    assert file_bytes(result, tmp_path / "previewed.safetensors") == undisturbed["identity"][1]


def test_progress_tells_step_loss_speed_and_time_left(unet):
    seen = []
    result = identity_run(unet, callbacks=Callbacks(progress=lambda *told: seen.append(told)))
    assert [told[0] for told in seen] == list(range(1, 9)) and [told[1] for told in seen] == result.losses
    assert all(told[2] > 0 for told in seen) and seen[0][3] > 0 and seen[-1][3] == 0


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(unet, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "state.safetensors"
    identity_run(unet, settings=replace(SETTINGS, steps=2), state_path=path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": replace(SETTINGS, learning_rate=2e-3)}, "learning_rate 0.001 instead of 0.002"),
        ({"settings": replace(SETTINGS, seed=4)}, "seed 3 instead of 4"),
        ({"data": "others"}, "other data"),
        ({"tokens": {"<toy>": torch.ones(1, CONFIG.context_dim)}}, "other data"),
        ({"config": AdapterConfig.identity(hidden=4)}, "another starting point"),
        ({"unet": 1}, "another base"),
    ],
)
def test_a_state_of_another_run_is_refused_and_kept(unet, state, change, message):
    change = dict(change)
    before = state.read_bytes()
    if "data" in change:
        change["data"] = encode_photos(pictures(3, seed=7), "a <toy>", fake_encoders())
    base = tiny_unet(change.pop("unet")) if "unet" in change else unet
    arguments = {"data": photo_data(), "tokens": TOKENS, "settings": SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        train_identity(base, FakeText(), class_word="toy", state_path=state, resume=True, **arguments)
    assert state.read_bytes() == before


def test_a_damaged_or_foreign_state_is_refused(unet, state, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole training state"):
        identity_run(unet, state_path=path, resume=True)
    save_trained(path, identity_run(unet).trained)
    with pytest.raises(ValueError, match="no training state"):
        identity_run(unet, state_path=path, resume=True)


def exploding(prediction, noise, mask, normalize_mask):
    return prediction.square().mean() * float("inf")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state(unet, tmp_path):
    path = tmp_path / "state.safetensors"
    learner = AdapterLearner(Adapter(AdapterConfig.identity(), CONFIG))
    data = with_text(photo_data(), FakeText(), TOKENS)
    calls = []

    def loss(*arguments):
        calls.append(None)
        return exploding(*arguments) if len(calls) == 5 else IDENTITY.loss(*arguments)

    with pytest.raises(
        TrainingError, match="step 5: the loss became inf.*learning rate 0.001.*after 3 steps is kept"
    ) as e:
        train(unet, data, replace(IDENTITY, loss=loss), SETTINGS, learner, state_path=path)
    assert e.value.step == 4
    assert all(torch.isfinite(parameter).all() for parameter in learner.adapter.parameters())
    about, tensors = read_state(path)
    assert about["step"] == 3 and all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_gradient_that_is_not_finite_is_never_applied(unet):
    learner = AdapterLearner(Adapter(AdapterConfig.identity(), CONFIG))
    before = [parameter.clone() for parameter in learner.adapter.parameters()]
    data = with_text(photo_data(), FakeText(), TOKENS)

    def loss(prediction, *rest):
        return (prediction * 0).sum().sqrt()  # 0, with a slope of 0 / 0

    with pytest.raises(TrainingError, match="the gradient is not finite"):
        train(unet, data, replace(IDENTITY, loss=loss), SETTINGS, learner)
    assert all(torch.equal(*pair) for pair in zip(before, learner.adapter.parameters(), strict=True))


def test_the_cause_of_a_bad_loss_is_named(unet):
    broken = tiny_unet()
    broken.out[2].weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="the base's weights hold NaN"):
        identity_run(broken)
    with pytest.raises(TrainingError, match="half precision overflowed"):
        learner = AdapterLearner(Adapter(AdapterConfig.identity(), CONFIG))
        data = with_text(photo_data(), FakeText(), TOKENS)
        train(tiny_unet(dtype=torch.float16), data, replace(IDENTITY, loss=exploding), SETTINGS, learner)


def test_half_precision_scales_its_loss_and_recovers_from_overflow():
    scale = LossScale(torch.float16)
    assert scale.factor == 65536
    scale.after(False)
    assert scale.factor == 32768 and scale.may_shrink
    for _ in range(LossScale.PEACE):
        scale.after(True)
    assert scale.factor == 65536
    copy = LossScale(torch.float16)
    copy.restore(scale.state())
    assert (copy.factor, copy.good) == (scale.factor, scale.good)
    plain = LossScale(torch.bfloat16)
    plain.after(True)
    assert plain.factor == 1 and not plain.may_shrink


def one_by_one(count: int, alive: list[int], frames: int = 4, side: int = 32):
    """Clips of a generator that notes how many of the earlier ones are still there."""
    given = weakref.WeakSet()
    for index in range(count):
        alive.append(len(given))
        clip = pictures(frames, index, side)
        given.add(clip)
        yield clip
        del clip


def test_clips_are_encoded_one_by_one_and_let_go():
    alive: list[int] = []
    captions = [f"a car turns {index}" for index in range(5)]
    data = encode_clips(one_by_one(5, alive), captions, fake_encoders(), 3)
    assert alive == [0] * 5 and data.captions == tuple(captions)
    clips = [pictures(4, index) for index in range(5)]
    at_once = encode_clips(clips, captions, fake_encoders(), 3)
    assert data.digest == at_once.digest
    for mine, other in zip(data.items, at_once.items, strict=True):
        assert torch.equal(mine.mean, other.mean) and torch.equal(mine.features, other.features)
    bytes_of = [
        (caption, (clip * 255).round().byte(), "no mask") for caption, clip in zip(captions, clips, strict=True)
    ]
    assert data.digest == digest(["3", *(part for each in bytes_of for part in each)])


def test_no_clip_is_asked_for_after_one_of_no_use():
    for side, captions, words in (
        (32, ["a"] * 4, "number 2 64"),
        (64, ["a"], "Got 1 captions for 2"),
        (64, ["a"] * 9, "Got 9 captions for 4"),
    ):
        alive: list[int] = []
        clips = itertools.chain([pictures(4, side=side)], one_by_one(3, alive, side=64))
        with pytest.raises(ValueError, match=words):
            encode_clips(clips, captions, fake_encoders(), 3)
        assert len(alive) == (3 if len(captions) == 9 else 1)


def test_bad_data_are_refused_in_a_sentence(unet):
    encoders, photos = fake_encoders(), pictures(2)
    with pytest.raises(ValueError, match="nothing to train on"):
        encode_photos([], "a <toy>", encoders)
    with pytest.raises(ValueError, match="Got 3 captions for 2"):
        encode_photos(photos, ["a", "b", "c"], encoders)
    with pytest.raises(ValueError, match="Mask 1 has 16 x 16 pixels and its photograph 32 x 32"):
        encode_photos(photos, "a <toy>", encoders, [torch.ones(1, 16, 16)] * 2)
    with pytest.raises(ValueError, match="train without masks|paint"):
        encode_photos(photos, "a <toy>", encoders, [torch.zeros(1, 32, 32)] * 2)
    with pytest.raises(ValueError, match="has 5 frames and 8 make a sample"):
        clip_data(frames=8)
    with pytest.raises(ValueError, match="All items must be of one size"):
        encode_photos([photos[0], pictures(1, side=64)[0]], "a <toy>", encoders)
    with pytest.raises(ValueError, match="holds NaN"):
        encode_photos(photos * float("nan"), "a <toy>", encoders)
    with pytest.raises(ValueError, match="ordinary word"):
        train_textual_inversion(unet, FakeText(), photo_data(), placeholder="toy", class_word="toy")
    with pytest.raises(ValueError, match="lacks the placeholder <doll>"):
        train_textual_inversion(unet, FakeText(), photo_data(), placeholder="<doll>", class_word="toy")
    with pytest.raises(ValueError, match="trains on photographs"):
        identity_run(unet, clip_data())
    with pytest.raises(ValueError, match="empty prompt's text state"):
        token_run(unet, settings=replace(SETTINGS, p_text_drop=0.5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"p_text_drop": 1.5},
        {"shift": -1},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        replace(SETTINGS, **wrong)


def test_the_rows_hold_the_published_numbers():
    def numbers(method: Method):
        return method.steps, method.learning_rate, method.batch_size, method.p_text_drop, method.p_image_drop

    assert numbers(TEXTUAL_INVERSION) == (3000, 1e-4, 4, 0, 0)
    assert numbers(IDENTITY) == (800, 1e-5, 4, 0, 0)
    assert numbers(motion_method(1)) == (1000, 1e-5, 1, 0.5, 0.5)
    assert numbers(motion_method(15)) == (1000, 1e-5, 2, 0.5, 0)
