"""Words with a vector for every layer that reads the text: what a fresh one does, training, files, stacks, sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import CONFIG, FakeText, fake_encoders, pictures, tiny_unet
from safetensors import safe_open

from dreamvideo.commands.cli import main
from dreamvideo.customizing import RegionPrompt, customize
from dreamvideo.defaults import FULL_SIZE
from dreamvideo.encoders.layered import at_layer, encode, layers_of
from dreamvideo.files.adapter_info import AdapterInfo, TrainedAdapter, check_fits
from dreamvideo.files.adapters import load_adapter, save_adapter, save_trained
from dreamvideo.models.config import UNetConfig, text_layers
from dreamvideo.models.unet import UNet
from dreamvideo.plans import subject_plan
from dreamvideo.sampling import SamplingSettings, generate
from dreamvideo.training.data import TrainingData, encode_photos
from dreamvideo.training.loop import Callbacks, TrainingResult
from dreamvideo.training.methods import CUSTOM_DIFFUSION, IDENTITY, SUBJECT_METHODS, TEXTUAL_INVERSION, Method
from dreamvideo.training.settings import TrainingSettings
from dreamvideo.training.stages import train_method

DOG, CAPTION = "<dog>", "a <dog> on grass"
LAYERS = len(text_layers(CONFIG))
ENCODERS = fake_encoders()
TEXT = ENCODERS.text


@pytest.fixture(scope="module")
def unet() -> UNet:
    return tiny_unet()


@pytest.fixture(scope="module")
def photos() -> TrainingData:
    return encode_photos(list(pictures(2)), CAPTION, ENCODERS)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def word(layered: bool = True, vectors: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    return {DOG: random(*[LAYERS] * layered, vectors, CONFIG.context_dim, seed=seed)}


def run(unet: UNet, data: TrainingData, method: Method = TEXTUAL_INVERSION, **given) -> TrainingResult:
    names = ("placeholder", "class_word", "tokens", "vectors", "callbacks", "state_path", "resume")
    more = {name: given.pop(name) for name in names if name in given}
    settings = TrainingSettings.for_method(method, **{"steps": 3, "learning_rate": 1e-2, "batch_size": 2, **given})
    more = {"placeholder": DOG, "class_word": "puppy", **more}
    return train_method(unet, TEXT, data, method, settings=settings, **more)


# --- numbers, and what a fresh one does -----------------------------------------------------------------------------


def test_full_size_has_sixteen_times_1024_numbers():
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    blocks = [unet.get_submodule(f"{site}.transformer_blocks.0") for site in text_layers(unet.config)]
    assert [block.layer for block in blocks] == list(range(16)) and not any(block.temporal for block in blocks)
    context = torch.empty(1, 16, 77, unet.config.context_dim, device="meta")
    assert context[:, :, 0].numel() == 16 * 1024  # one vector a layer
    x = torch.empty(1, 4, 2, 8, 8, device="meta")
    assert unet(x, torch.zeros(1, device="meta"), context).shape == x.shape


def test_layers_are_in_the_order_of_the_data(unet):
    order = []
    handles = [
        unet.get_submodule(f"{site}.transformer_blocks.0").register_forward_pre_hook(lambda m, _: order.append(m.layer))
        for site in text_layers(CONFIG)
    ]
    unet(random(1, 4, 1, 4, 4), torch.tensor([5]), random(1, 77, CONFIG.context_dim))
    for handle in handles:
        handle.remove()
    assert order == list(range(LAYERS)) and LAYERS > 2


@torch.no_grad()
def test_layers_that_are_equal_are_an_ordinary_text_to_the_bit(unet):
    x, t, context = random(2, 4, 3, 4, 4), torch.tensor([800, 100]), random(2, 77, CONFIG.context_dim, seed=3)
    plain = unet(x, t, context)
    assert torch.equal(unet(x, t, context[:, None].expand(-1, LAYERS, -1, -1)), plain)
    for layer in range(LAYERS):
        changed = context[:, None].repeat(1, LAYERS, 1, 1)
        changed[:, layer] += 1
        assert not torch.equal(unet(x, t, changed), plain)
    with pytest.raises(ValueError, match=rf"states for {LAYERS + 1} layers and this UNet has {LAYERS}"):
        unet(x, t, context[:, None].expand(-1, LAYERS + 1, -1, -1))


def test_a_fresh_word_trains_its_first_step_as_an_ordinary_one(unet, photos):
    plain, layered = (run(unet, photos, steps=1, layered_token=on) for on in (False, True))
    assert plain.losses == layered.losses
    assert layered.trained.tokens[DOG].shape == (LAYERS, *plain.trained.tokens[DOG].shape)


def test_a_texts_states_are_those_of_each_layers_vectors():
    tokens = word()
    found = encode(TEXT, [CAPTION, "a cat"], tokens)
    assert found.shape == (2, LAYERS, 77, CONFIG.context_dim) and layers_of(tokens) == LAYERS
    for layer in range(LAYERS):
        assert torch.equal(found[:, layer], TEXT.encode([CAPTION, "a cat"], at_layer(tokens, layer)))
    assert torch.equal(encode(TEXT, [CAPTION], word(layered=False)), TEXT.encode([CAPTION], word(layered=False)))
    with pytest.raises(ValueError, match="vectors for 2 and 3 layers"):
        layers_of({"<a>": torch.zeros(2, 1, 4), "<b>": torch.zeros(3, 1, 4)})


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [TEXTUAL_INVERSION, CUSTOM_DIFFUSION], ids=lambda row: row.name)
def test_every_layers_vector_learns_its_own(unet, photos, method):
    start = TEXT.embed_word("puppy")
    found = run(unet, photos, method, layered_token=True, vectors=2).trained.tokens[DOG]  # [L, 2, D]
    assert found.shape == (LAYERS, 2, CONFIG.context_dim)
    moved = found - start[:1]
    assert moved.abs().amax(-1).gt(1e-4).all()
    assert all(not torch.equal(moved[0], moved[layer]) for layer in range(1, LAYERS))


def test_resumed_it_ends_as_one_that_went_through(unet, photos, tmp_path):
    state = tmp_path / "state.safetensors"
    whole = run(unet, photos, steps=4, layered_token=True).trained.tokens[DOG]
    seen = []
    halt = Callbacks(progress=lambda step, *_: seen.append(step), should_stop=lambda: len(seen) == 2)
    assert run(unet, photos, steps=4, layered_token=True, state_path=state, callbacks=halt).stopped
    again = run(unet, photos, steps=4, layered_token=True, state_path=state, resume=True)
    assert torch.equal(again.trained.tokens[DOG], whole)
    with pytest.raises(ValueError, match="layered_token True instead of False"):
        run(unet, photos, steps=5, state_path=state, resume=True)


def test_looks_are_learned_under_it(unet, photos):
    tokens = word()
    learned = run(unet, photos, IDENTITY, tokens=tokens)
    assert torch.equal(learned.trained.tokens[DOG], tokens[DOG])
    mean = {DOG: tokens[DOG].mean(0)}
    assert learned.losses != run(unet, photos, IDENTITY, tokens=mean).losses
    equal = {DOG: mean[DOG].expand(LAYERS, -1, -1)}
    assert run(unet, photos, IDENTITY, tokens=equal).losses == run(unet, photos, IDENTITY, tokens=mean).losses


def test_a_method_without_a_word_of_its_own_refuses_it(unet, photos):
    with pytest.raises(
        ValueError, match="lora_subject learns no word of a subject: layered_token is for one that does"
    ):
        run(unet, photos, SUBJECT_METHODS["lora"], layered_token=True)


# --- files ----------------------------------------------------------------------------------------------------------


def saved(path, tokens) -> TrainedAdapter:
    info = AdapterInfo("token", placeholder=DOG, class_word="puppy", unet_config=CONFIG, steps=3)
    save_adapter(path, None, info, tokens)
    return load_adapter(path)


def test_a_file_keeps_it_and_earlier_versions_refuse_the_file(tmp_path):
    path, tokens = tmp_path / "dog.safetensors", word()
    loaded = saved(path, tokens)
    assert torch.equal(loaded.tokens[DOG], tokens[DOG]) and loaded.info.token_layers == LAYERS
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format_version"] == "3"
    saved(path, word(layered=False))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format_version"] == "1" and "token_layers" not in file.metadata()


def test_an_identitys_file_keeps_it(unet, photos, tmp_path):
    trained = run(unet, photos, IDENTITY, tokens=word()).trained
    save_trained(tmp_path / "dog.safetensors", trained)
    loaded = load_adapter(tmp_path / "dog.safetensors")
    assert torch.equal(loaded.tokens[DOG], word()[DOG]) and loaded.info == trained.info
    check_fits(loaded.info, CONFIG)
    with pytest.raises(ValueError, match=f"vectors for {LAYERS} layers that read the text, but this base has 16"):
        check_fits(replace(loaded.info, unet_config=None), UNetConfig(context_dim=CONFIG.context_dim))


DAMAGES = {
    "layers": (random(LAYERS + 1, 1, 8), rf"for {LAYERS + 1} layers, and its UNet has {LAYERS}"),
    "width": (random(LAYERS, 1, 7), "are 7 wide"),
    "nothing": (torch.zeros(LAYERS, 0, 8), rf"are \[{LAYERS}, 0, 8\] and not \[{LAYERS}, n, D\]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_word_of_another_shape_is_refused(damage, tmp_path):
    rows, message = DAMAGES[damage]
    with pytest.raises(ValueError, match=message):
        saved(tmp_path / "dog.safetensors", {DOG: rows})


def test_the_authors_files_cannot_hold_it(tmp_path, capsys):
    path, target = tmp_path / "dog.safetensors", tmp_path / "dog.pt"
    saved(path, word())
    assert main(["convert", str(path), str(target)]) != 0
    assert "one vector a word" in capsys.readouterr().err and not target.exists()
    assert main(["inspect", str(path)]) == 0
    assert f"[{LAYERS}, 2, {CONFIG.context_dim}]" in capsys.readouterr().out


# --- sampling -------------------------------------------------------------------------------------------------------

SETTINGS = SamplingSettings(CAPTION, frames=2, height=32, width=32, steps=2, guidance=3.0)


def video(unet, *adapters, regions=(), settings=SETTINGS):
    return generate(unet, ENCODERS, settings, customize(adapters, regions=regions))


def token(tokens) -> TrainedAdapter:
    return TrainedAdapter(None, AdapterInfo("token", placeholder=DOG), tokens, None)


def test_samples_beside_ordinary_words_adapters_and_regions(unet, photos):
    rows = word(layered=False)[DOG]
    plain, equal = token({DOG: rows}), token({DOG: rows.expand(LAYERS, -1, -1)})
    cat = TrainedAdapter(None, AdapterInfo("token"), {"<cat>": random(1, CONFIG.context_dim, seed=9)}, None)
    looks = run(unet, photos, IDENTITY, tokens={DOG: rows}).trained
    for parameter in looks.adapter.parameters():
        parameter.data.add_(0.1)
    regions = [RegionPrompt("a <dog>", torch.eye(8)), RegionPrompt("a <cat>", 1 - torch.eye(8))]
    settings = replace(SETTINGS, prompt="a <dog> and a <cat>")
    looks = replace_tokens(looks, {})
    for more in ((), (cat,), (cat, looks)):
        where = regions if more else []
        wanted = video(unet, plain, *more, regions=where, settings=settings if more else SETTINGS)
        found = video(unet, equal, *more, regions=where, settings=settings if more else SETTINGS)
        assert torch.equal(found, wanted)
        other = video(unet, token(word()), *more, regions=where, settings=settings if more else SETTINGS)
        assert not torch.allclose(other, wanted, atol=1e-3)


def replace_tokens(trained: TrainedAdapter, tokens) -> TrainedAdapter:
    return TrainedAdapter(trained.adapter, trained.info, tokens, None)


def test_dreamvideo_plus_passes_its_options_to_the_words_stage():
    row = SUBJECT_METHODS["dreamvideo_plus"]
    plan = subject_plan(FULL_SIZE, CONFIG, row, placeholder=DOG, class_word="dog", settings={}, token_settings={})
    (first, token), (_, own) = plan.stages
    assert first.name == "textual_inversion" and token.layered_token == own.layered_token == row.layered_token
    plain = subject_plan(FULL_SIZE, CONFIG, IDENTITY, placeholder=DOG, class_word="dog", settings={}, token_settings={})
    assert not any(settings.layered_token or settings.mask_attention for _, settings in plain.stages)
    chosen = {"layered_token": True, "steps": 5}
    plan = subject_plan(
        FULL_SIZE, CONFIG, IDENTITY, placeholder=DOG, class_word="dog", settings=chosen, token_settings={}
    )
    assert plan.stages[0][1].layered_token and not plan.stages[0][1].mask_attention


def test_a_text_encoder_sees_as_many_texts_as_there_are_layers():
    text = FakeText()
    encode(text, [CAPTION], word())
    assert len(text.calls) == LAYERS
