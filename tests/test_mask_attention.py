"""A subject's word pulled to its mask in the cross-attention: the maps, the loss, and training by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fakes import CONFIG, fake_encoders, pictures, tiny_unet
from tiny_base import SIDE, write_tiny_base

from dreamvideo.commands.cli import main
from dreamvideo.files.adapters import load_adapter
from dreamvideo.files.toml import parse_toml
from dreamvideo.media.writing import write_png
from dreamvideo.models.attention_maps import MASK_ATTENTION, AttentionMaps, attention_map, mask_attention_loss
from dreamvideo.models.config import UNetConfig
from dreamvideo.models.unet import UNet
from dreamvideo.training.attention import attention_loss
from dreamvideo.training.data import TrainingData, encode_photos
from dreamvideo.training.drawing import draw_batch
from dreamvideo.training.loop import Callbacks, TrainingResult
from dreamvideo.training.methods import IDENTITY, IDENTITY_PLUS, SUBJECT_METHODS, TEXTUAL_INVERSION, Method
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_method

DOG, CAPTION = "<dog>", "a <dog> on grass"
ENCODERS = fake_encoders()
TOKENS = {DOG: torch.randn(1, CONFIG.context_dim, generator=torch.Generator().manual_seed(7))}
MASK = torch.zeros(32, 32)
MASK[:, :16] = 1


@pytest.fixture(scope="module")
def unet() -> UNet:
    return tiny_unet()


def photos(*masks: torch.Tensor | None) -> TrainingData:
    return encode_photos(list(pictures(2)), CAPTION, ENCODERS, list(masks) or None)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(unet: UNet, data: TrainingData, method: Method = TEXTUAL_INVERSION, **given) -> TrainingResult:
    names = ("tokens", "callbacks", "state_path", "resume")
    more = {name: given.pop(name) for name in names if name in given}
    if method.token == "given":
        more.setdefault("tokens", TOKENS)
    settings = TrainingSettings.for_method(method, **{"steps": 3, "learning_rate": 1e-2, "batch_size": 2, **given})
    words = {"placeholder": DOG, "class_word": "puppy", **more}
    return train_method(unet, ENCODERS.text, data, method, settings=settings, **words)


# --- maps -----------------------------------------------------------------------------------------------------------


def test_a_map_is_what_the_attention_reads_by(unet):
    """What the layer gives is its values weighed by the map, where its heads see the same values."""
    attention = unet.middle_block[1].transformer_blocks[0].attn2
    x, context = random(2, 3, 16, 32), random(2, 77, CONFIG.context_dim, seed=1)
    q, k = attention.to_q(x.flatten(1, 2)).unflatten(-1, (2, 16)), attention.to_k(context).unflatten(-1, (2, 16))
    values = context[:, None].expand(-1, 2, -1, -1)
    read = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), values).mean(1)  # [B, F*N, D]
    torch.testing.assert_close(attention_map(attention, x, context) @ context, read)


def test_to_look_on_changes_nothing(unet):
    x, t, context = random(2, 4, 3, 4, 4), torch.tensor([800, 100]), random(2, 77, CONFIG.context_dim, seed=3)
    maps = AttentionMaps((4, 4), CONFIG)
    with torch.no_grad():
        assert torch.equal(unet(x, t, context, watch=maps), unet(x, t, context))
    assert len(maps.maps) == 4 and all(found.shape == (2, 48, 77) for found in maps.maps.values())
    places = torch.zeros(2, 77, dtype=torch.bool)
    places[:, 2] = True
    found = maps.of(places)
    assert found.shape == (2, 1, 3, 4, 4) and torch.equal(found.amax((1, 2, 3, 4)), torch.ones(2)) and found.min() >= 0


@pytest.mark.parametrize(
    "size, wanted",
    [((32, 32), (16, 16)), ((16, 16), (16, 16)), ((64, 64), (16, 16)), ((32, 56), (16, 28)), ((8, 8), (8, 8))],
)
def test_the_maps_are_of_about_sixteen_places_a_side(size, wanted):
    assert AttentionMaps(size, UNetConfig()).size == wanted


def test_the_loss_by_hand():
    maps, mask = torch.tensor([[1.0, 0.5], [0.0, 0.25]])[None, None, None], torch.zeros(1, 1, 1, 4, 4)
    mask[..., :2, :2] = 1
    assert mask_attention_loss(maps, mask) == pytest.approx((0.5**2 + 0.25**2) / 4)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [TEXTUAL_INVERSION, IDENTITY], ids=lambda row: row.name)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_adds_a_hundredth_of_the_maps_error(unet, method, checkpointing):
    data = photos(MASK, MASK)
    plain, pulled = (
        run(unet, data, method, steps=1, mask_attention=on, gradient_checkpointing=checkpointing)
        for on in (False, True)
    )
    assert 0 < pulled.losses[0] - plain.losses[0] <= MASK_ATTENTION


def test_checkpointing_gives_the_same_steps(unet):
    data = photos(MASK, MASK)
    for method in (TEXTUAL_INVERSION, IDENTITY):
        one, other = (run(unet, data, method, mask_attention=True, gradient_checkpointing=on) for on in (False, True))
        assert one.losses == pytest.approx(other.losses, rel=1e-5)


def test_the_word_is_read_less_outside_of_its_mask(unet):
    """By the loss alone, on one input: the share of the word's map that lies outside falls."""
    data, loss_off = photos(MASK, MASK), lambda *_: torch.zeros(())
    row = replace(TEXTUAL_INVERSION, loss=loss_off)
    start = {DOG: ENCODERS.text.embed_word("puppy")}
    learned = run(unet, data, row, mask_attention=True, steps=60, learning_rate=3e-2).trained.tokens

    @torch.no_grad()
    def outside(tokens) -> float:
        maps, context = AttentionMaps((4, 4), CONFIG), ENCODERS.text.encode([CAPTION], tokens)
        noise = random(1, 4, 1, 4, 4, seed=8)
        unet(noise, torch.tensor([500]), context, watch=maps)
        found = maps.of(ENCODERS.text.places([CAPTION], tokens))
        return float(found[..., 2:].sum() / found.sum())

    assert outside(learned) < 0.9 * outside(start)


def test_photographs_without_a_mask_are_left_out(unet):
    settings = TrainingSettings.for_method(TEXTUAL_INVERSION, steps=1, batch_size=2, mask_attention=True)
    batch, _ = draw_batch(
        photos(MASK, None), TEXTUAL_INVERSION, settings, torch.tensor([0, 1]), torch.Generator().manual_seed(0)
    )
    masks, telling = batch.subjects
    assert telling.tolist() == [True, False] and torch.equal(masks[0, 0, 0], F.avg_pool2d(MASK[None], 8)[0])
    maps = AttentionMaps((4, 4), CONFIG)
    unet(batch.latents, batch.timesteps, ENCODERS.text.encode([CAPTION] * 2, TOKENS), watch=maps)
    places = {CAPTION: ENCODERS.text.places([CAPTION], TOKENS)[0]}
    own = mask_attention_loss(maps.of(torch.stack([places[CAPTION]] * 2))[:1], masks[:1])
    torch.testing.assert_close(attention_loss(maps, batch, places), MASK_ATTENTION * own)
    assert attention_loss(maps, replace(batch, subjects=(masks, telling & False)), places) == 0
    assert attention_loss(maps, batch, {CAPTION: places[CAPTION] & False}) == 0  # a caption without the word


def test_without_masks_it_is_refused_and_a_method_of_which_it_is_a_part_says_so(unet):
    for method in (TEXTUAL_INVERSION, IDENTITY):
        with pytest.raises(ValueError, match="these photographs have none: give masks, or leave it out"):
            run(unet, photos(), method, mask_attention=True)
    said = []
    found = run(unet, photos(), IDENTITY_PLUS, layered_token=False, callbacks=Callbacks(say=said.append))
    assert any("have no masks, so the attention" in each for each in said)
    assert found.losses == run(unet, photos(), IDENTITY_PLUS, mask_attention=False).losses
    assert found.trained.info.acts_from == IDENTITY_PLUS.acts_from > 0
    assert found.trained.info.guided_from == IDENTITY_PLUS.guided_from < 1
    with pytest.raises(ValueError, match="learns no word of a subject: mask_attention is for one that does"):
        run(unet, photos(MASK, MASK), SUBJECT_METHODS["fine_tuning"], mask_attention=True)


def test_it_works_with_the_losss_masks_off_and_draws_nothing_more(unet):
    drawn = [
        draw_batch(
            photos(MASK, MASK),
            TEXTUAL_INVERSION,
            TrainingSettings.for_method(TEXTUAL_INVERSION, batch_size=2, masked=False, shift=1, mask_attention=on),
            torch.empty(0, dtype=torch.int64),
            torch.Generator().manual_seed(0),
        )[0]
        for on in (False, True)
    ]
    assert torch.equal(drawn[0].latents, drawn[1].latents) and torch.equal(drawn[0].noise, drawn[1].noise)
    assert drawn[1].mask is None and drawn[0].subjects is None and drawn[1].subjects[0].shape == (2, 1, 1, 4, 4)


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("method", [TEXTUAL_INVERSION, IDENTITY], ids=lambda row: row.name)
def test_resumed_it_ends_as_one_that_went_through(unet, method, layered, tmp_path):
    data, state, seen = photos(MASK, MASK), tmp_path / "state.safetensors", []
    more = {"mask_attention": True, "steps": 4, "layered_token": layered and method is TEXTUAL_INVERSION}
    if layered and method is IDENTITY:
        more["tokens"] = {DOG: TOKENS[DOG].expand(4, -1, -1) + random(4, 1, CONFIG.context_dim)}
    whole = run(unet, data, method, **more)
    halt = Callbacks(progress=lambda step, *_: seen.append(step), should_stop=lambda: len(seen) == 2)
    assert run(unet, data, method, state_path=state, callbacks=halt, **more).stopped
    again = run(unet, data, method, state_path=state, resume=True, **more)
    assert again.losses == whole.losses
    assert torch.equal(again.trained.tokens[DOG], whole.trained.tokens[DOG])


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subject")
    write_tiny_base(folder / "base")
    (folder / "photos" / "masks").mkdir(parents=True)
    mask = torch.zeros(3, SIDE, SIDE)
    mask[:, :, : SIDE // 2] = 1
    for number, photo in enumerate(pictures(2, side=SIDE)):
        write_png(folder / "photos" / f"{number}.png", photo)
        write_png(folder / "photos" / "masks" / f"{number}.png", mask)
    return folder


def train(folder, out: str, *more: str) -> list[str]:
    base = ["--base", str(folder / "base"), "--device", "cpu", "--out", str(folder / out), "--no-cache"]
    short = ["--steps", "2", "--token-steps", "2", "--batch", "2", "--height", str(SIDE), "--width", str(SIDE)]
    given = [] if "--config" in more else [str(folder / "photos"), "--class-word", "dog", "--placeholder", DOG, *short]
    return ["train", "subject", *given, *base, *more]


def test_the_command_line_has_both_and_a_run_file_does_again(folder, capsys):
    for name, words in {
        "plus": ["--method", "dreamvideo_plus"],
        "options": ["--layered-token", "--mask-attention"],
        "word": ["--method", "textual_inversion", "--layered-token", "--no-mask-attention"],
        "paper": [],
    }.items():
        assert main(train(folder, f"{name}.safetensors", *words)) == 0
        told = parse_toml((folder / f"{name}.toml").read_text())
        assert (told["layered_token"], told["mask_attention"]) == (
            name in ("options", "word"),
            name in ("plus", "options"),
        )
        assert main(train(folder, f"{name}-2.safetensors", "--config", str(folder / f"{name}.toml"))) == 0
        first, again = ((folder / f"{each}.safetensors").read_bytes() for each in (name, f"{name}-2"))
        assert first == again
        assert load_adapter(folder / f"{name}.safetensors").tokens[DOG].ndim == (3 if told["layered_token"] else 2)
    words = ["sample", f"a ({DOG}:1.2) on grass", "--adapter", str(folder / "options.safetensors"), "--steps", "2"]
    size = ["--frames", "2", "--height", str(SIDE), "--width", str(SIDE), "--out", str(folder / "video.gif")]
    region = ["--region", f"left: a {DOG}", "--base", str(folder / "base"), "--device", "cpu"]
    assert main([*words, *size, *region]) == 0
    capsys.readouterr()


def test_without_masks_the_command_line_says_so_before_the_base_is_opened(folder, monkeypatch, capsys):
    monkeypatch.setattr("dreamvideo.commands.train.open_for", lambda *_: pytest.fail("the base was opened"))
    assert main(train(folder, "none.safetensors", "--mask-attention", "--no-masks")) != 0
    assert "these photographs have none: give masks, or leave it out" in capsys.readouterr().err
