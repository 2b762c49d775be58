"""Names and shapes of the UNet's tensors in every layout in circulation, and the architecture they imply.

The original ModelScope names are the canonical ones; another layout is a renaming of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..models.config import NetworkConfig, UNetConfig
from ..models.families import build_network
from ..safety.limits import bare
from .tensors import CheckpointError

Shape = tuple[int, ...]
HEAD_DIM = 64  # of every published model; no shape tells it

# A tensor only this family has, the same at every size: what precedes it is the prefix of the file.
ANCHORS = {
    "original": "input_blocks.1.0.temopral_conv.conv1.0.weight",
    "diffusers": "down_blocks.0.temp_convs.0.conv1.0.weight",
}

_TIME = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
_ENDS = {
    "input_blocks.0.0": "conv_in",
    "input_blocks.0.1": "transformer_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    **_TIME,
}
_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = {"0": (0, 0), "1": (1, 0), "2": (2, 0), "3": (0, 1)}  # module -> kind (as in a stage), index of that kind

# Families that grew from this one: they have its anchor and these tensors besides.
_RELATIVES = (
    ("a VideoComposer UNet (or TFT2V or VideoLCM, made from it)", r"(depth|motion|canny|sketch|masked)_embedding"),
    (
        "an I2VGen-XL image-to-video UNet",
        r"local_image_(concat|embedding)|(^|\.)context_embedding\.|image_latents_(proj_in|context_embedding|temporal)",
    ),
    ("a HiGen UNet", r"(^|\.)(asim|msim)_|(^|\.)img_embedding"),
)
# Files people have next to a base, and what their tensors are called.
_STRANGERS = (
    ("a DreamVideo adapter", r"(attn|ff)_adapter\.(down|up|condition)_linear"),
    ("a textual-inversion embedding", r"^(token\..*|\*|<.*>|emb_params|string_to_param)$"),
    ("a LoRA", r"lora_(up|down|A|B)\b|_lora\b|\.lora\."),
    ("an AnimateDiff motion module", r"motion_modules?\."),
    ("a Stable Video Diffusion checkpoint", r"time_stack|spatial_res_block|time_mixer"),
    ("a ControlNet", r"(^|\.)(control_model|controlnet_cond_embedding|controlnet_down_blocks|input_hint_block)\."),
    (
        "a Stable Diffusion image UNet or checkpoint, without temporal layers",
        r"(^|\.)input_blocks\.1\.0\.in_layers\.0\.weight$|^(unet\.)?down_blocks\.0\.resnets\.0\.norm1\.weight$",
    ),
    ("a VAE", r"(^|\.)(encoder\.down|decoder\.up)(_blocks)?\.0\."),
    ("an OpenCLIP text and image encoder", r"(^|\.)visual\.(conv1|trunk)|(^|\.)transformer\.resblocks\.0\.ln_1"),
    ("a transformers text encoder", r"text_model\.encoder\.|(^|\.)encoder\.block\.0\.layer\.0\.SelfAttention"),
)
# Tensors that may lie among the UNet's and are not read.
_IGNORED = (
    ("frame-rate embedding", r"^fps_embedding\."),
    ("DreamVideo adapters", r"_adapter\.(down|up|condition)_linear"),
    ("unmerged LoRA", r"_lora\b|\.lora_|\.lora\."),
    ("other parts of the model", r"^(first_stage_model|cond_stage_model|text_encoder|image_encoder|clip|vae)\."),
    ("moving averages", r"^(model_)?ema[._]"),
    ("noise schedule", r"^(betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod\w*|posterior_\w+|logvar)$"),
    ("training state", r"^(step|global_step|epoch)$"),
)
# Projections stored by some converters as linear where others have 1x1 convolutions.
_PROJECTION = re.compile(r"proj_(in|out)\.weight$")


def find_layout(names: Iterable[str]) -> tuple[str, str] | None:
    """(layout, prefix) of the UNet among these tensor names, or None. Weights go before their moving averages."""
    found = [
        ("ema" in name, len(name), layout, name.removesuffix(anchor))
        for name in names
        for layout, anchor in ANCHORS.items()
        if name == anchor or name.endswith("." + anchor)
    ]
    return min(found)[2:] if found else None


def name_stranger(names: Iterable[str]) -> str:
    """What a file without this UNet is, in a few words."""
    names = list(names)
    for what, pattern in _STRANGERS:
        if any(re.search(pattern, name) for name in names):
            return what
    return f"of an unknown kind (tensors such as {', '.join(map(bare, sorted(names)[:3]))})"


def name_relative(names: Iterable[str], shapes: Mapping[str, Shape]) -> str | None:
    """What a UNet of a related family is, or None for the right one. `names` and `shapes` are without prefix."""
    names = list(names)
    for what, pattern in _RELATIVES:
        if any(re.search(pattern, name) for name in names):
            return what
    inputs = (shapes[name] for name in ("input_blocks.0.0.weight", "conv_in.weight") if name in shapes)
    channels = next((shape[1] for shape in inputs if len(shape) == 4), 4)
    if channels != 4:
        return f"a UNet with {channels} input channels (image-to-video, TFT2V or VideoLCM)"
    return None


def plain_name(name: str) -> str:
    """The original layout's name without its variants: `input_blocks.3.0.op` is `input_blocks.3.op`."""
    return re.sub(r"^(input_blocks\.\d+)\.0\.op\.", r"\1.op.", name)


def diffusers_name(name: str, res_blocks: int) -> str:
    """The name in diffusers' UNet3DConditionModel of a tensor of the original layout."""
    stage = res_blocks + 1
    for old, new in _ENDS.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    block, rest = name.split(".", 1)
    if block == "middle_block":
        module, rest = rest.split(".", 1)
        kind, index = _MIDDLE[module]
        return f"mid_block.{_stage_name(kind, index, rest)}"
    number, rest = rest.split(".", 1)
    if block == "input_blocks" and rest.startswith("op."):
        return f"down_blocks.{int(number) // stage - 1}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    level, index = divmod(int(number) - (block == "input_blocks"), stage)
    side = "down_blocks" if block == "input_blocks" else "up_blocks"
    module, rest = rest.split(".", 1)
    if re.fullmatch(r"conv\.(weight|bias)", rest):
        return f"{side}.{level}.upsamplers.0.{rest}"
    return f"{side}.{level}.{_stage_name(int(module), index, rest)}"


def _stage_name(kind: int, index: int, rest: str) -> str:
    """A tensor of a stage: kind 0 residual block, 1 spatial transformer, 2 temporal transformer."""
    if kind == 1:
        return f"attentions.{index}.{rest}"
    if kind == 2:
        return f"temp_attentions.{index}.{rest}"
    if rest.startswith("temopral_conv."):
        return f"temp_convs.{index}.{rest.removeprefix('temopral_conv.')}"
    layer, leaf = rest.rsplit(".", 1)
    return f"resnets.{index}.{_RES_BLOCK[layer]}.{leaf}"


def diffusers_shape(name: str, shape: Shape) -> Shape:
    """The shape diffusers gives a tensor of the original layout: its temporal projections are linear, not Conv1d."""
    return shape[:2] if _PROJECTION.search(name) else shape


def original_shapes(config: NetworkConfig) -> dict[str, Shape]:
    """Every tensor of the UNet: original name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in build_network(config, device="meta").state_dict().items()}


def infer_config(shapes: Mapping[str, Shape], layout: str, head_dim: int | None = None) -> UNetConfig:
    """The architecture implied by names and shapes (both without prefix, in `layout`).

    Head width is in no shape; unless given it is 64, as in every published model. Where that divides not every width it
    is an eighth of the inner width of the first temporal transformer, which has eight heads there. Raises
    CheckpointError when the tensors are not this family's.
    """
    levels, res_blocks = depth(shapes, layout)

    def shape(name: str) -> Shape:
        stored = name if layout == "original" else diffusers_name(name, res_blocks)
        if stored not in shapes:
            raise CheckpointError(f"it has no {stored}, which every UNet of this family has")
        if len(shapes[stored]) < 2 or 0 in shapes[stored]:
            raise CheckpointError(f"its {stored} has shape {list(shapes[stored])}, which no weight has")
        return shapes[stored]

    first = [level * (res_blocks + 1) + 1 for level in range(levels)]
    dim, in_channels = shape("input_blocks.0.0.weight")[:2]
    channels = [shape(f"input_blocks.{index}.0.in_layers.2.weight")[0] for index in first]
    inner = shape("input_blocks.0.1.proj_in.weight")[0]
    widths = [*channels, inner]
    if head_dim is None:
        head_dim = max(1, inner // 8) if any(width % HEAD_DIM for width in widths) else HEAD_DIM
    if any(width % head_dim for width in widths):
        raise CheckpointError(
            f"heads {head_dim} channels wide do not divide its widths {widths}; give the right head_dim"
        )
    if any(width % dim for width in channels):
        raise CheckpointError(f"the channels of its levels, {channels}, are not multiples of the first {dim}")
    marks = [f"input_blocks.{index}.1.proj_in.weight" for index in first]
    if layout == "diffusers":
        marks = [diffusers_name(mark, res_blocks) for mark in marks]
    return UNetConfig(
        in_channels=in_channels,
        out_channels=shape("out.2.weight")[0],
        dim=dim,
        dim_mult=tuple(width // dim for width in channels),
        res_blocks=res_blocks,
        attention_levels=tuple(mark in shapes for mark in marks),
        head_dim=head_dim,
        first_heads=inner // head_dim,
        context_dim=shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
    )


def depth(shapes: Mapping[str, Shape], layout: str) -> tuple[int, int]:
    """(levels, residual blocks a level) of any UNet with these names, without prefix."""

    def numbers(pattern: str) -> list[int]:
        return sorted({int(match[1]) for name in shapes if (match := re.match(pattern, name))})

    if layout == "diffusers":
        return len(numbers(r"down_blocks\.(\d+)\.")), len(numbers(r"down_blocks\.0\.resnets\.(\d+)\."))
    blocks, downs = numbers(r"input_blocks\.(\d+)\."), numbers(r"input_blocks\.(\d+)\.op\.weight")
    levels = len(downs) + 1
    res_blocks = downs[0] - 1 if downs else len(blocks) - 1
    if len(blocks) != levels * (res_blocks + 1):
        raise CheckpointError(f"it has {len(blocks)} input blocks, which {levels} levels of {res_blocks} cannot be")
    return levels, res_blocks


def ignored(names: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Sorts surplus names: (what is known and may be left unread -> how many, the rest)."""
    known: dict[str, int] = {}
    unknown = []
    for name in names:
        what = next((what for what, pattern in _IGNORED if re.search(pattern, name)), None)
        if what:
            known[what] = known.get(what, 0) + 1
        else:
            unknown.append(name)
    return known, unknown


def reshapable(name: str, stored: Shape, wanted: Shape) -> bool:
    """Whether a stored shape is the wanted one up to the trailing ones of a 1x1 convolution."""
    return stored == wanted or bool(_PROJECTION.search(name) and _squeezed(stored) == _squeezed(wanted))


def _squeezed(shape: Shape) -> Shape:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
