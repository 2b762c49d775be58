"""Pieces of graphs that several tests use."""

from __future__ import annotations

import pytest
import torch
from harness import Graph

SIZE = {"width": 64, "height": 64}


def base(graph: Graph, name: str = "tiny/") -> str:
    return graph.add("DreamVideoLoadModelScope", base=name, clip_file="automatic", vae_file="automatic",
                     precision="default")  # fmt: skip


def prompts(graph: Graph, clip: list, text: str, negative: str = "") -> tuple[list, list]:
    return tuple([graph.add("CLIPTextEncode", clip=clip, text=words), 0] for words in (text, negative))


def stock_sample(graph: Graph, model: list, positive: list, negative: list, frames: int = 4, steps: int = 2) -> list:
    empty = graph.add("EmptyLatentImage", batch_size=frames, **SIZE)
    sampler = graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=[empty, 0], seed=1, steps=steps,
        cfg=9.0, sampler_name="ddim", scheduler="ddim_uniform", denoise=1.0,
    )  # fmt: skip
    return [sampler, 0]


def our_sample(graph: Graph, model: list, positive: list, negative: list, **options) -> list:
    settings = {"seed": 1, "steps": 2, "cfg": 9.0, "frames": 4, "offset_noise": 0.1, "prior_strength": 0.0, **SIZE}
    node = graph.add("DreamVideoSampler", model=model, positive=positive, negative=negative, **{**settings, **options})
    return [node, 0]


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """IMAGE [count, 64, 64, 3]: a coloured square that moves over a gradient."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(3, generator=generator)
    ramp = torch.linspace(0, 1, 64)
    frames = (0.3 + 0.4 * ramp[None, :, None, None] * ramp[None, None, :, None]).repeat(count, 1, 1, 3)
    for index in range(count):
        left = 4 + 5 * index % 40
        frames[index, 20:40, left : left + 16] = colour
    return frames


class Constant:
    """A node class that gives the test's own values to a graph."""

    values: dict[str, object] = {}
    FUNCTION, CATEGORY = "give", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, name):
        return id(cls.values[name])

    def give(self, name):
        return (self.values[name],)


def give(host, graph: Graph, kind: str, value: object) -> list:
    """A link of this type that carries a value."""
    node = f"TestGive{kind}"
    if node not in host.nodes.NODE_CLASS_MAPPINGS:
        host.nodes.NODE_CLASS_MAPPINGS[node] = type(node, (Constant,), {"RETURN_TYPES": (kind,)})
    name = f"{kind}{id(value)}"
    Constant.values[name] = value
    return [graph.add(node, name=name), 0]


def random_adapter(host, kind: str, seed: int = 0, condition: bool = True):
    """A TrainedAdapter of the tiny base that changes something: no up-projection is zero."""
    dv = host.module("dreamvideo")
    config = host.module("dreamvideo.nano.denoiser").CONFIG
    if kind == "weights":
        about = dv.DeltaConfig(("text_kv", "temporal_kv"), rank=4)
    else:
        options = {"condition_dim": 64 if condition else None} if kind == "motion" else {}
        about = getattr(dv.AdapterConfig, kind)(**options)
    adapter = dv.build_adapter(about, config, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "up_linear" in name or name.endswith(".up"):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    info = dv.AdapterInfo(kind=kind, adapter_config=about, unet_config=config, class_word="ball")
    tokens = {"<thing>": torch.randn(1, 64, generator=generator) * 0.1} if kind == "identity" else {}
    features = torch.randn(2, 64, generator=generator) if kind == "identity" else None
    return dv.TrainedAdapter(adapter.requires_grad_(False), info, tokens, features)


def with_lora(model):
    """A clone of the tiny base's MODEL with a LoRA of the host on one of its weights."""
    import comfy.sd

    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(3)
    width = model.model.diffusion_model.get_submodule(name).weight.shape[0]
    up, down = (torch.randn(shape, generator=generator) for shape in ((width, 4), (4, width)))
    lora = {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down}
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def need_weight_patches(host) -> None:
    """Skip on the fork that is an installable package: a clone there copies what it knows of its model's patches, and
    one made before the model was loaded is left without its own, a LoRA's too."""
    if host.packaged:
        pytest.skip("This ComfyUI mixes up the patches of weights of clones.")
