"""Encoders against open_clip's own forward, transformers' CLIP, diffusers' autoencoder and PIL, at tiny size."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dreamvideo.encoders import autoencoder
from dreamvideo.encoders import clip as encoders
from dreamvideo.encoders.autoencoder import KLAutoencoder, build_vae
from dreamvideo.encoders.clip import OpenClipImage, OpenClipText, build_clip, clip_pixels
from dreamvideo.encoders.loading import check_matches, load_encoders
from dreamvideo.encoders.prompts import check_placeholder, split_prompt
from dreamvideo.encoders.protocols import Moments
from dreamvideo.files.base import BaseFiles

open_clip = pytest.importorskip("open_clip")
diffusers = pytest.importorskip("diffusers")

CLIP_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}
VAE_CONFIG = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


def randomised(module):
    """Every parameter drawn anew, norms around one, so that no tensor can be left out unnoticed."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            norm = parameter.ndim == 1 and name.endswith("weight")
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if norm else noise * (0.5 if "embedding" in name else fan_in**-0.5))
    return module.eval()


@pytest.fixture(scope="module")
def clip():
    return randomised(open_clip.model.CLIP(**CLIP_CONFIG)).requires_grad_(False)


@pytest.fixture(scope="module")
def vae():
    return randomised(diffusers.AutoencoderKL(**VAE_CONFIG)).requires_grad_(False)


@pytest.fixture
def text(clip):
    return OpenClipText(clip)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------- tokens

PROMPTS = [
    "",
    "a dog running on the road",
    "It's  a DOG's plushie, isn't it?",
    "5 caf\u00e9s &amp; \u201cquotes\u201d!",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_open_clips(text, prompt):
    ids, slots = text.tokenize(prompt)
    assert ids == open_clip.get_tokenizer("ViT-H-14")([prompt])[0].tolist()
    assert set(slots) == {("", 0)} and len(slots) == 77


def test_a_long_prompt_is_cut_with_one_warning(text, caplog):
    prompt = "word " * 400
    with caplog.at_level(logging.WARNING):
        ids, _ = text.tokenize(prompt)
        text.tokenize(prompt)
    assert ids == open_clip.get_tokenizer("ViT-H-14")([prompt])[0].tolist()
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "400 tokens" in caplog.text


def test_the_warning_quotes_what_is_left_out(text, caplog):
    with caplog.at_level(logging.WARNING):
        text.tokenize("word " * 74 + "red dog runs far away")
    assert "79 tokens" in caplog.text and "'dog runs far away'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        text.tokenize("dog " * 4000)
    assert len(caplog.messages[0]) < 250


def test_a_placeholder_is_never_cut(text):
    assert text.tokenize("word " * 74 + "<my-dog>", {"<my-dog>": 1})[1][75] == ("<my-dog>", 0)
    for prompt, count in (("word " * 75 + "<my-dog>", 1), ("word " * 74 + "<my-dog>", 2)):
        with pytest.raises(ValueError, match="76 tokens.* reads 75.*'<my-dog>'.*front"):
            text.tokenize(prompt, {"<my-dog>": count})


def test_75_tokens_are_not_cut(text, caplog):
    assert text.tokenize("word " * 75)[0][-2:] == [text.tokenize("word")[0][1], encoders.END]
    assert not caplog.records


def test_placeholders_may_touch_punctuation_and_each_other():
    names = ["<my-dog>", "<my>", "*", "*2"]
    assert [piece for piece, learned in split_prompt("<my-dog>'s <my> <my-dog>.*2*", names) if learned] == [
        "<my-dog>", "<my>", "<my-dog>", "*2", "*",
    ]  # fmt: skip


def test_a_placeholder_of_letters_is_no_part_of_a_word():
    assert [p for p, learned in split_prompt("zwx1 zwx12 azwx1 zwx1's", ["zwx1"]) if learned] == ["zwx1", "zwx1"]


def test_slots_of_several_vectors(text):
    ids, slots = text.tokenize("a <a>'s <b>", {"<a>": 2, "<b>": 3})
    plain, possessive = text.tokenize("a 's")[0][1:3]
    assert ids[:10] == [encoders.START, plain, 0, 0, possessive, 0, 0, 0, encoders.END, 0]
    assert slots[2:8] == [("<a>", 0), ("<a>", 1), ("", 0), ("<b>", 0), ("<b>", 1), ("<b>", 2)]


@pytest.mark.parametrize("name", ["<my-dog>", "*", "<2>", "<Wolf_2>", "my_dog1", "[V]", "<\u72ac>"])
def test_placeholders_that_serve(name):
    check_placeholder(name)


@pytest.mark.parametrize(
    "name",
    ["", " ", "dog", "Dog", "plushie", "well-known", "it's", "42", "!", "...", "<my dog>", "{}", "<end_of_text>"],
)
def test_placeholders_that_do_not(name):
    with pytest.raises(ValueError, match="take a name such as <"):
        check_placeholder(name)


def test_a_placeholder_already_taken():
    with pytest.raises(ValueError, match=r"already in use.*<my-dog-2>"):
        check_placeholder("<my-dog>", taken=["<my-dog>"])


# ------------------------------------------------------------------------------------------- text states


def test_weights_go_between_the_empty_prompts_states_and_the_prompts(text):
    dog = {"<my-dog>": drawn(2, 32)}
    plain, empty = text.encode(["a <my-dog> and red", ""], dog)
    got = text.encode(["a (<my-dog>:1.5) and (red:0)", "a dog"], dog, weighted=True)
    expected = plain.clone()
    expected[2:4] = empty[2:4] + 1.5 * (plain[2:4] - empty[2:4])
    expected[5] = empty[5]
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], text.encode(["a dog"])[0], atol=1e-5, rtol=0)


def test_without_weights_the_states_are_the_same_to_the_bit(text):
    assert torch.equal(text.encode(["a red ball", ""], weighted=True), text.encode(["a red ball", ""]))
    assert torch.equal(text.encode([r"a \(red\) ball"], weighted=True), text.encode(["a (red) ball"]))


def test_captions_stand_as_they_are(text):
    ids, _ = text.tokenize("a (red:1.4) ball")
    assert ids == open_clip.get_tokenizer("ViT-H-14")(["a (red:1.4) ball"])[0].tolist()
    assert not torch.equal(text.encode(["a (red:1.4) ball"]), text.encode(["a (red:1.4) ball"], weighted=True))


def test_states_are_the_penultimate_block_after_the_final_norm(clip, text):
    kept = {}
    hook = clip.transformer.resblocks[-2].register_forward_hook(lambda _, __, out: kept.update(out=out))
    clip.encode_text(open_clip.get_tokenizer("ViT-H-14")(PROMPTS))
    hook.remove()
    expected = clip.ln_final(kept["out"])
    assert expected.std() > 0.5
    assert text.encode(PROMPTS).shape == (4, 77, 32) and text.width == 32
    torch.testing.assert_close(text.encode(PROMPTS), expected, atol=1e-5, rtol=0)


def test_states_are_those_of_transformers_with_one_layer_less(clip, text):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=128, num_attention_heads=2, num_hidden_layers=2, hidden_act="gelu"
    )
    model = transformers.CLIPTextModel(config).eval()
    names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    state = {}
    for i, block in enumerate(clip.transformer.resblocks[:-1]):
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                state[f"encoder.layers.{i}.{theirs}.{kind}"] = block.get_parameter(f"{ours}.{kind}")
        for which, weight, bias in zip(
            "qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True
        ):
            state[f"encoder.layers.{i}.self_attn.{which}_proj.weight"] = weight
            state[f"encoder.layers.{i}.self_attn.{which}_proj.bias"] = bias
    state["embeddings.token_embedding.weight"] = clip.token_embedding.weight
    state["embeddings.position_embedding.weight"] = clip.positional_embedding
    state["final_layer_norm.weight"], state["final_layer_norm.bias"] = clip.ln_final.weight, clip.ln_final.bias
    target = getattr(model, "text_model", model)
    result = target.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and all("position_ids" in key for key in result.missing_keys)
    with torch.no_grad():
        expected = model(torch.tensor([text.tokenize(prompt)[0] for prompt in PROMPTS])).last_hidden_state
    torch.testing.assert_close(text.encode(PROMPTS), expected, atol=1e-5, rtol=0)


def test_the_last_block_does_not_matter(clip, text):
    before = text.encode(["a dog"])
    weight = clip.transformer.resblocks[-1].mlp.c_fc.weight
    saved = weight.clone()
    weight.zero_()
    after = text.encode(["a dog"])
    weight.copy_(saved)
    assert torch.equal(before, after)


def test_an_open_clip_that_wants_positions_first(clip, text):
    transformer = open_clip.transformer.Transformer(32, 3, 2, batch_first=False).eval()
    transformer.load_state_dict(clip.transformer.state_dict())
    old = SimpleNamespace(**{name: getattr(clip, name) for name in
                             ("token_embedding", "positional_embedding", "ln_final", "attn_mask", "context_length")},
                          transformer=transformer)  # fmt: skip
    torch.testing.assert_close(OpenClipText(old).encode(PROMPTS), text.encode(PROMPTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompt", ["a dog runs", "dog's dog.", "plushie: a plushie"])
def test_a_words_own_embedding_is_the_word_bit_for_bit(text, prompt):
    word = "dog" if "dog" in prompt else "plushie"
    learned = text.embed_word(word)
    assert learned.shape == (1 if word == "dog" else 2, 32)
    assert torch.equal(text.encode([prompt.replace(word, "<x>")], {"<x>": learned}), text.encode([prompt]))


def test_the_authors_star(text):
    star = text.clip.token_embedding.weight[265]
    assert torch.equal(text.encode(["a * on grass"], {"*": star}), text.encode(["a * on grass"]))


def test_several_placeholders_with_several_vectors(text, clip):
    tokens = {"<a>": drawn(2, 32, seed=1), "<b>": drawn(1, 32, seed=2)}
    ids = torch.tensor([text.tokenize(p)[0] for p in ["a ! ! and ! run", "a dog"]])  # "!" keeps the places
    x = clip.token_embedding(ids)
    x[0, 2:4], x[0, 5] = tokens["<a>"], tokens["<b>"][0]
    x = x + clip.positional_embedding
    for block in clip.transformer.resblocks[:-1]:
        x = block(x, attn_mask=clip.attn_mask)
    result = text.encode(["a <a> and <b> run", "a dog"], tokens)
    torch.testing.assert_close(result, clip.ln_final(x), atol=1e-6, rtol=0)


def test_the_gradient_of_a_token_is_its_finite_difference(clip):
    double = build_clip(dict(clip.state_dict()), CLIP_CONFIG, dtype=torch.float64)
    text, probe = OpenClipText(double), drawn(1, 77, 32, seed=5).double()
    first = drawn(2, 32, seed=6).double().requires_grad_()
    other = drawn(1, 32, seed=7).double()

    def objective(first):
        return (text.encode(["a <a>'s friend <b> and <a>"], {"<a>": first, "<b>": other}) * probe).sum()

    objective(first).backward()
    direction = drawn(2, 32, seed=8).double()
    with torch.no_grad():
        difference = (objective(first + 1e-5 * direction) - objective(first - 1e-5 * direction)) / 2e-5
    slope = (first.grad * direction).sum()
    assert abs(slope) > 0.1
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-6)
    assert all(parameter.grad is None for parameter in double.parameters())


def test_half_precision_weights_give_float32_states(clip):
    half = build_clip(dict(clip.state_dict()), CLIP_CONFIG, dtype=torch.bfloat16)
    states = OpenClipText(half).encode(["a <x>"], {"<x>": drawn(1, 32)})
    assert states.dtype == torch.float32
    torch.testing.assert_close(states, OpenClipText(clip).encode(["a <x>"], {"<x>": drawn(1, 32)}), atol=0.2, rtol=0)
    assert OpenClipImage(half).encode(images(1, 3, 64, 64)).dtype == torch.float32


@pytest.mark.parametrize("rows", [drawn(1, 16), drawn(0, 32), drawn(1, 1, 32)])
def test_tokens_of_another_base_are_refused(text, rows):
    with pytest.raises(ValueError, match="width 32"):
        text.encode(["a <x>"], {"<x>": rows})


@pytest.mark.parametrize("prompts", ["a dog", []])
def test_prompts_are_a_list(text, prompts):
    with pytest.raises(ValueError, match="list of texts"):
        text.encode(prompts)


def test_a_word_of_nothing(text):
    with pytest.raises(ValueError, match="nothing"):
        text.embed_word("  ")


def test_one_block_has_no_penultimate():
    config = CLIP_CONFIG | {"text_cfg": CLIP_CONFIG["text_cfg"] | {"layers": 1}}
    with pytest.raises(ValueError, match="at least 2 blocks"):
        OpenClipText(open_clip.model.CLIP(**config))


# ------------------------------------------------------------------------------------------------ images


def test_image_features_are_clips_not_normalised(clip):
    batch = images(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoders.CLIP_MEAN, encoders.CLIP_STD))
    expected = clip.encode_image((batch - mean) / std)
    encoder = OpenClipImage(clip)
    torch.testing.assert_close(encoder.encode(batch), expected, atol=1e-5, rtol=0)
    assert encoder.width == 24 and (expected.norm(dim=-1) - 1).abs().min() > 0.1


# at whole scales PIL's box filter is the area average; between them it gives a pixel wholly to one of its neighbours
@pytest.mark.parametrize(
    ("size", "mean", "most"),
    [((256, 256), 0.003, 0.01), ((512, 512), 0.003, 0.01), ((768, 512), 0.003, 0.01), ((300, 500), 0.01, 0.05)],
)
def test_a_224_tower_sees_what_the_authors_preprocessing_gives(size, mean, most):
    from PIL import Image

    height, width = size
    coarse = images(1, 3, 12, 12, seed=4)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    pixels = (smooth[0].permute(1, 2, 0) * 255).round().byte().numpy()
    scale = min(width, height) / 256
    photo = Image.fromarray(pixels).resize((int(width / scale), int(height / scale)), Image.BOX)
    left, top = (photo.width - 256) // 2, (photo.height - 256) // 2
    photo = photo.crop((left, top, left + 256, top + 256)).resize((224, 224), Image.BILINEAR)
    expected = np.asarray(photo, dtype=np.float32) / 255

    seen = clip_pixels(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, 224)[0].permute(1, 2, 0).numpy()
    seen = seen * np.array(encoders.CLIP_STD) + np.array(encoders.CLIP_MEAN)
    difference = np.abs(seen - expected)
    assert difference.mean() < mean and difference.max() < most


@pytest.mark.parametrize("shape", [(1, 1), (1, 20000), (20000, 3), (64, 64), (65, 127), (3, 5)])
@pytest.mark.parametrize("size", [64, 224])
def test_any_image_size(shape, size):
    pixels = clip_pixels(images(1, 3, *shape), size)
    assert pixels.shape == (1, 3, size, size) and pixels.isfinite().all()


def test_the_centre_is_kept():
    batch = torch.zeros(1, 3, 64, 192)
    batch[..., 64:128] = 1
    white = (1 - torch.tensor(encoders.CLIP_MEAN)) / torch.tensor(encoders.CLIP_STD)
    torch.testing.assert_close(clip_pixels(batch, 64), white.view(1, 3, 1, 1).expand(1, 3, 64, 64))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (0, 3, 64, 64)])
def test_what_is_no_image_is_refused(clip, vae, shape):
    for encoder in (OpenClipImage(clip), KLAutoencoder(vae)):
        with pytest.raises(ValueError, match=r"\[N, 3, height, width\]"):
            encoder.encode(torch.zeros(shape))


# --------------------------------------------------------------------------------------------------- VAE


@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
def test_latents_are_diffusers_times_the_scale(vae, chunk):
    batch = images(5, 3, 32, 48)
    posterior = vae.encode(batch * 2 - 1).latent_dist
    moments = KLAutoencoder(vae).encode(batch, chunk=chunk)
    assert moments.mean.shape == (5, 4, 4, 6)
    torch.testing.assert_close(moments.mean, posterior.mean * 0.18215, atol=1e-5, rtol=0)
    torch.testing.assert_close(moments.std, posterior.std * 0.18215, atol=1e-5, rtol=0)

    decoded = KLAutoencoder(vae).decode(moments.mean, chunk=chunk)
    expected = (vae.decode(posterior.mean).sample / 2 + 0.5).clamp(0, 1)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.01
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=0)


def test_large_images_go_one_by_one(vae, monkeypatch):
    monkeypatch.setattr(autoencoder, "PIXELS_PER_CHUNK", 3 * 16 * 16)
    sizes = []
    hook = vae.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    KLAutoencoder(vae).encode(images(4, 3, 16, 16))
    KLAutoencoder(vae).encode(images(2, 3, 32, 32))
    hook.remove()
    assert sizes == [3, 1, 1, 1]


def test_a_draw_is_mean_plus_std_times_the_seeds_noise():
    mean, std = drawn(2, 4, 3, 3), drawn(2, 4, 3, 3, seed=1).exp()
    draw = Moments(mean, std).sample(torch.Generator().manual_seed(9))
    assert torch.equal(draw, mean + std * drawn(2, 4, 3, 3, seed=9))


def test_odd_sizes_name_the_nearest(vae):
    with pytest.raises(ValueError, match="33 x 20 pixels .* 32 x 16"):
        KLAutoencoder(vae).encode(images(1, 3, 20, 33))


def test_latents_of_another_shape_are_refused(vae):
    with pytest.raises(ValueError, match=r"\[N, 4, h, w\]"):
        KLAutoencoder(vae).decode(torch.zeros(1, 8, 4, 4))


# ----------------------------------------------------------------------------------------------- loading


def test_built_clip_is_the_clip_and_frozen(clip, text):
    state = dict(clip.state_dict())
    built = build_clip(state, CLIP_CONFIG)
    assert not state and not any(p.requires_grad for p in built.parameters())
    assert torch.equal(OpenClipText(built).encode(PROMPTS), text.encode(PROMPTS))
    assert built.visual.conv1.weight.data_ptr() == clip.visual.conv1.weight.data_ptr()  # taken over, not copied


def test_built_vae_is_the_vae(vae):
    built = build_vae(dict(vae.state_dict()), VAE_CONFIG)
    batch = images(1, 3, 32, 32)
    assert torch.equal(KLAutoencoder(built).encode(batch).mean, KLAutoencoder(vae).encode(batch).mean)


def test_bad_files_are_one_sentence(clip):
    def build(**changes):
        state = {key: value for key, value in (clip.state_dict() | changes).items() if value is not None}
        return build_clip(state, CLIP_CONFIG)

    with pytest.raises(ValueError, match="lacks 1 of"):
        build(positional_embedding=None)
    with pytest.raises(ValueError, match=r"has shape \[3\] where \[32\]"):
        build(**{"ln_final.weight": torch.ones(3)})
    with pytest.raises(ValueError, match="not numbers"):
        build(**{"ln_final.weight": torch.full((32,), float("nan"))})


@pytest.mark.parametrize(("missing", "name"), [("clip", "CLIP"), ("vae", "VAE")])
def test_half_a_base(missing, name):
    base = replace(BaseFiles(Path("unet.safetensors"), Path("c"), Path("v")), **{missing: None})
    with pytest.raises(ValueError, match=f"has no .*{name}"):
        load_encoders(base)


def test_a_base_of_files(tmp_path, clip):
    from safetensors.torch import save_file

    config = VAE_CONFIG | {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 32}
    vae = randomised(diffusers.AutoencoderKL(**config))
    metadata = {"open_clip_config": json.dumps(CLIP_CONFIG)}
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, tmp_path / "clip.safetensors", metadata)
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    base = BaseFiles(
        unet=tmp_path / "unet.safetensors", clip=tmp_path / "clip.safetensors", vae=tmp_path / "vae.safetensors"
    )
    loaded = load_encoders(base)
    batch = images(1, 3, 64, 64)
    assert torch.equal(loaded.text.encode(PROMPTS), OpenClipText(clip).encode(PROMPTS))
    assert torch.equal(loaded.image.encode(batch), OpenClipImage(clip).encode(batch))
    assert torch.equal(loaded.vae.encode(batch).mean, KLAutoencoder(vae).encode(batch).mean)


def test_a_text_encoder_of_another_width(text):
    check_matches(SimpleNamespace(context_dim=32), text)
    with pytest.raises(ValueError, match="width 1024 .* gives 32"):
        check_matches(SimpleNamespace(context_dim=1024), text)
