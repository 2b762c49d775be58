"""The self-check: its report is whole, names what is wrong with a base, and tells nothing of its user."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import fake_encoders, tiny_unet
from tiny_base import write_tiny_base
from tiny_image_base import vision_state, write_tiny_image_base

from dreamvideo import defaults
from dreamvideo.base import open_base
from dreamvideo.check import agreement, check, report
from dreamvideo.check.networks import checksums
from dreamvideo.check.report import Finding, nameless
from dreamvideo.commands.cli import main
from dreamvideo.files.tensors import write_safetensors

CPU = torch.device("cpu")
TITLES = ["Versions", "Devices", "Base", "Attention kernels", "Encoders", "Training: textual inversion",
          "Training: identity", "Training: motion", "Sampling", "Agreement with the CPU"]  # fmt: skip
TRAINING = TITLES[5:8]


@pytest.fixture(scope="module", autouse=True)
def small():
    """Pictures of 16 x 16, clips of 2 frames, a photograph a step."""
    own = defaults.EMBEDDED
    training = {stage: {**changes, "batch_size": 1} for stage, changes in own.training.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "EMBEDDED", replace(own, height=16, width=16, frames=2, training=training))
        yield


def base(unet=None, device=CPU, **encoders):
    """A base in miniature; parts of its encoders may be others."""
    unet = unet or tiny_unet()
    found = SimpleNamespace(**{**vars(fake_encoders()), **encoders})
    return SimpleNamespace(unet=unet, encoders=found, device=device, dtype=unet.dtype)


def checked(given, **options):
    return check(lambda: given, seconds=0, **options)


def section(found, title):
    return {finding.name: finding for each in found.sections if each.title == title for finding in each.findings}


@pytest.fixture(scope="module")
def good():
    return checked(base(), facts={"ComfyUI": "0.33.0", "VRAM state": "NORMAL_VRAM"})


# --------------------------------------------------------------------------------------------- a base as it should be


def test_a_report_has_all_sections_and_finds_nothing_wrong(good):
    assert [each.title for each in good.sections] == [*TITLES[:3], "Host", *TITLES[3:]]
    assert good.attention == () and good.text.startswith("DreamVideo check: all ok")
    assert section(good, "Host")["ComfyUI"].text == "0.33.0"


def test_every_stage_tells_where_it_ran_what_learned_and_how_fast(good):
    for title in TRAINING:
        found = section(good, title)
        assert found["UNet ran"].text.endswith("layers, all on cpu in float32")
        assert "steps/s" in found["speed"].text and "GiB" in found["peak memory"].text
        assert "Gradient checkpointing is" in found["checkpointing"].text
        unchanged, _, of = found["base"].text.split()[:3]
        assert unchanged == of
    for title in TRAINING[1:]:
        got, _, of = section(good, title)["learned"].text.split()[:3]
        assert got == of != "0"
    assert "identity and motion" in section(good, "Sampling")["video"].text


def test_every_file_and_every_network_of_a_base_is_named(tmp_path):
    write_tiny_image_base(tmp_path, images=False)
    write_safetensors(tmp_path / "image_encoder" / "model.safetensors", vision_state(), {})
    found = section(checked(open_base(tmp_path, device="cpu")), "Base")
    assert set(found["files"].text.split(", ")) == {path.name for path in tmp_path.rglob("*.safetensors")}
    assert {"UNet", "CLIP", "VAE", "image encoder"} <= found.keys()


def test_lines_are_short_and_progress_comes_before_each_section(good):
    assert max(map(len, good.text.splitlines())) <= report.WIDTH
    told = []
    checked(base(), progress=lambda done, total, title: told.append((done, total, title)))
    assert told == [(index, len(TITLES), title) for index, title in enumerate(TITLES)]


def test_the_base_stays_as_it_was():
    unet = tiny_unet()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    checked(base(unet))
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert not any(module._forward_hooks for module in unet.modules())


def test_it_runs_inside_a_hosts_inference_mode():
    given = base()
    with torch.inference_mode():
        assert checked(given).attention == ()


# ------------------------------------------------------------------------------------------------------ what is wrong


def test_a_layer_in_another_precision_is_named():
    unet = tiny_unet()
    unet.out[2].to(torch.float64)
    found = checked(base(unet))
    assert "2 (out.2.weight, ...) of it were left behind" in section(found, "Base")["UNet"].advice
    assert {finding.name for finding in found.attention} >= {"UNet", "failed"}
    assert [each.title for each in found.sections] == TITLES


def test_a_layer_left_elsewhere_is_named_unless_the_host_moves_weights():
    unet = tiny_unet()
    unet.out[2].to("meta")
    assert "out.2.weight" in section(checked(base(unet)), "Base")["UNet"].advice
    told = section(checked(base(unet), paged=True), "Base")["UNet"]
    assert not told.advice and "2 on meta" in told.text


def test_another_network_than_the_one_on_the_device_is_named():
    # "meta" stands for a card here: the weights that train lie in main memory.
    found = checked(base(device=torch.device("meta")), paged=True)
    for title in TRAINING:
        assert "did not run on meta in float32" in section(found, title)["UNet ran"].advice
    assert "should be on meta" in section(found, TRAINING[2])["adapter"].advice


def test_weights_that_are_no_numbers_are_named():
    unet = tiny_unet()
    unet.out[2].weight.data[0, 0, 0, 0] = float("nan")
    found = checked(base(unet))
    assert "1 (out.2.weight) hold NaN" in section(found, "Base")["UNet's weights"].text
    for title in TRAINING:
        assert "the base's weights hold NaN" in section(found, title)["failed"].advice
    assert "not numbers" in section(found, "Sampling")["video"].text


def test_a_part_of_an_adapter_without_gradient_is_named():
    unet = tiny_unet()
    unet.middle_block[2].transformer_blocks[0].site = "nowhere"
    found = section(checked(base(unet)), "Training: motion")["learned"]
    assert "middle_block.2" in found.advice and "never learn" in found.advice
    assert section(checked(base(unet)), "Training: identity")["learned"].verdict == "ok"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("count", [1, 7, 16])
def test_a_checksum_sees_one_bit_of_any_precision(dtype, count):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.full((count + 1,), float("nan")).to(dtype)[1:], requires_grad=False)
    before = checksums({"UNet": module})
    assert checksums({"UNet": module}) == before and list(before) == ["UNet.weight"]
    module.weight.view(torch.uint8)[-1] ^= 1
    assert checksums({"UNet": module}) != before


def test_a_token_without_gradient_is_named():
    text = fake_encoders().text
    encode = text.encode
    text.encode = lambda prompts, tokens=None: encode(prompts, {name: rows.detach() for name, rows in tokens.items()})
    found = section(checked(base(text=text)), "Training: textual inversion")
    assert all(finding.verdict == "attention" for finding in found.values())


def test_a_base_that_changes_in_training_is_named():
    unet = tiny_unet()

    def change(*_):
        unet.out[2].bias.data += 1e-3

    unet.register_forward_hook(change)
    assert "1 (UNet.out.2.bias) changed" in section(checked(base(unet)), "Training: motion")["base"].advice


def test_an_encoder_that_gives_no_numbers_is_named():
    encoders = fake_encoders()
    encoders.image.encode = lambda images: torch.full((len(images), 6), float("nan"))
    found = section(checked(base(image=encoders.image)), "Encoders")
    assert "NaN" in found["image feature"].advice and found["text"].verdict == "ok"


def test_half_precision_agrees_up_to_rounding_and_more_is_named(monkeypatch):
    session = SimpleNamespace(base=base(tiny_unet(dtype=torch.bfloat16)))
    found = {finding.name: finding for finding in agreement.agree(session)}
    assert [finding.verdict for finding in found.values()] == ["ok"] * 4
    assert 1e-4 < float(found["its gradients"].text) < agreement.ROUNDING[torch.bfloat16]
    session.base.unet.input_blocks[1][0].register_forward_hook(lambda block, given, out: 1.5 * out)
    found = {finding.name: finding for finding in agreement.agree(session)}
    assert "something else" in found["base's first block"].advice and found["embedded UNet"].verdict == "ok"


@pytest.mark.parametrize(("factor", "verdict"), [(1.004, "ok"), (1.5, "attention"), (float("nan"), "attention")])
def test_an_error_is_relative_and_not_a_number_is_never_right(factor, verdict):
    exact = torch.randn(9)
    assert agreement.judged("x", factor * exact, exact, torch.float32).verdict == verdict


def test_encoders_are_compared_by_all_that_they_make():
    found = agreement.embedded_encoders(CPU)
    assert {name: list(made.shape) for name, made in found.items()} == {
        "text": [1, 77, 64],
        "image feature": [1, 64],
        "latents": [1, 4, 8, 8],
        "decoded": [1, 3, 64, 64],
    }


# ------------------------------------------------------------------------------------------- errors end nothing


def test_a_section_that_fails_is_told_and_the_others_run():
    vae = fake_encoders().vae

    def broken(images, chunk=None):
        raise RuntimeError(f"cannot open {Path.home()}/models/secret/vae.bin")

    vae.encode = broken
    found = checked(base(vae=vae))
    assert [each.title for each in found.sections] == TITLES
    failed = section(found, "Encoders")["failed"]
    assert "RuntimeError" in failed.text and "sampling.py, line" in failed.text and failed.verdict == "attention"
    assert section(found, "Sampling")["video"].text.endswith("with no adapter: numbers")
    assert "cannot open vae.bin" in " ".join(found.text.split()) and "secret" not in found.text


def test_running_out_of_memory_is_explained():
    unet = tiny_unet()

    def full(*_):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity")

    unet.register_forward_pre_hook(full)
    found = checked(base(unet))
    for title in TRAINING:
        assert "2.50 GiB were asked for" in section(found, title)["out of memory"].advice
    assert section(found, "Sampling")["video"].verdict == "ok"


def test_a_base_that_does_not_open_leaves_a_report_on_the_machine():
    def missing():
        raise ValueError("There is no folder models to take the base from.")

    found = check(missing)
    assert [each.title for each in found.sections] == TITLES[:3]
    assert "no folder" in section(found, "Base")["failed"].advice and "torch" in section(found, "Versions")


def test_what_progress_raises_and_ctrl_c_end_the_check():
    unet = tiny_unet()

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(LookupError):
        check(lambda: base(), progress=lambda *_: {}["stop"])
    unet.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        checked(base(unet))


# ------------------------------------------------------------------------------------------------------------ privacy


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("HOME/a/b/unet.safetensors: no such file", "unet.safetensors: no such file"),
        ("There is no file HOME/x/y.pth for", "There is no file y.pth for"),
        ("in 'C:\\Users\\ann\\models\\unet.bin'", "in 'unet.bin'"),
        ("/mnt/ann/models/unet.bin, line 3", "unet.bin, line 3"),
        ("4 steps/s, 1/2 of |a| / |b|, and/or", "4 steps/s, 1/2 of |a| / |b|, and/or"),
    ],
)
def test_of_paths_the_last_part_is_left(text, left):
    assert nameless(text.replace("HOME", str(Path.home()))) == left


def test_the_command_prints_and_writes_a_report_without_folders(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("dreamvideo.check.check", functools.partial(check, seconds=0))
    folder = write_tiny_base(tmp_path / "annabelle" / "base")
    out = tmp_path / "report.txt"
    assert main(["check", "--base", str(folder), "--device", "cpu", "--out", str(out)]) == 0
    text = out.read_text()
    assert text in capsys.readouterr().out
    assert all(f"\n{title} (" in text for title in TITLES)
    assert "unet.safetensors, clip.safetensors, vae.safetensors" in text and "CLIP ran" in text
    assert "annabelle" not in text and str(tmp_path) not in text


def test_the_command_reports_a_base_it_cannot_open(tmp_path, capsys):
    assert main(["check", "--base", str(tmp_path / "annabelle" / "nowhere")]) == 0
    text = capsys.readouterr().out
    assert (
        "1 finding needs attention" in text
        and "no folder nowhere" in text
        and "annabelle" not in text.split("Devices")[1]
    )


def test_a_finding_with_advice_needs_attention():
    assert (Finding("a", "b").verdict, Finding("a", "b", "c").verdict) == ("ok", "attention")
