"""The paper's four metrics as its authors compute them, and confidence intervals. Weights come from local files.

CLIP-T and temporal consistency, CLIP-I and DINO-I (section 4.1): cosines between embeddings of CLIP ViT-B/32 (Radford
et al., arXiv 2103.00020) and of DINO ViT-S/16 (Caron et al., arXiv 2104.14294).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.clip import CLIP_MEAN, CLIP_STD, build_clip
from ..files.encoders import stored_clip
from ..files.tensors import TensorFile

SIDE = 224  # pixels that both towers see
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_MODEL = "vit_small_patch16_224.dino"  # timm's name

Embed = Callable[[Tensor], Tensor]
"""Images [N, 3, H, W] in 0..1 -> embeddings [N, D] of length 1."""


@dataclass(frozen=True)
class Embedders:
    """What the metrics look with. clip, dino: images -> unit embeddings; text: prompts -> CLIP's unit embeddings.

    dino: None leaves DINO-I out.
    """

    clip: Embed
    text: Callable[[Sequence[str]], Tensor]
    dino: Embed | None = None


def text_alignment(frames: Tensor, text: Tensor) -> float:
    """CLIP-T: mean cosine of the frames' embeddings [F, D] and the prompt's [D]; all of length 1."""
    return (frames @ text).mean().item()


def image_alignment(frames: Tensor, targets: Tensor) -> float:
    """CLIP-I or DINO-I: mean cosine of every frame [F, D] with every photograph of the subject [N, D]."""
    return (frames @ targets.T).mean().item()


def temporal_consistency(frames: Tensor) -> float:
    """Mean cosine of the embeddings [F, D] of consecutive frames. Raises ValueError for a single frame."""
    if len(frames) < 2:
        raise ValueError("Temporal consistency compares consecutive frames, and this video has one frame.")
    return (frames[:-1] * frames[1:]).sum(1).mean().item()


@torch.no_grad()
def score_video(frames: Tensor, prompt: str, targets: Tensor | None, embedders: Embedders) -> dict[str, float]:
    """The metrics of one video [F, 3, H, W] in 0..1. The prompt names the subject in words, not by its placeholder.

    targets: the subject's photographs, [N, 3, H, W]; None leaves CLIP-I and DINO-I out.
    """
    seen = embedders.clip(frames)  # [F, D]
    scores = {"CLIP-T": text_alignment(seen, embedders.text([prompt])[0])}
    if targets is not None:
        scores["CLIP-I"] = image_alignment(seen, embedders.clip(targets))
        if embedders.dino is not None:
            scores["DINO-I"] = image_alignment(embedders.dino(frames), embedders.dino(targets))
    scores["Temporal consistency"] = temporal_consistency(seen)
    return scores


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979). Raises ValueError for no values."""
    if not values:
        raise ValueError("A confidence interval needs at least one value.")
    given = torch.tensor(values, dtype=torch.float64)
    chosen = torch.randint(len(given), (draws, len(given)), generator=torch.Generator().manual_seed(seed))
    means = given[chosen].mean(1)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def load_embedders(clip: Path | None, dino: Path | None = None, device: str | torch.device = "cpu") -> Embedders:
    """CLIP ViT-B/32 and, where its file is given, DINO ViT-S/16, frozen and in float32.

    Raises ValueError, in a sentence that says where it comes from, for a file that is missing or holds something else.
    """
    source = "open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai, or OpenAI's own ViT-B-32.pt"
    clip = _existing(clip, "CLIP ViT-B/32", source)
    network = None if dino is None else _opened_dino(dino)
    state, config = stored_clip(clip)
    vision = config["vision_cfg"]
    if (vision["patch_size"], vision["width"], vision["image_size"]) != (32, 768, SIDE):
        raise ValueError(
            f"{clip.name} is a CLIP with patches of {vision['patch_size']} and width {vision['width']}; "
            f"the paper's metrics are CLIP ViT-B/32's, with 32 and 768: take {source}."
        )
    # OpenAI's weights were trained with their cheap approximation of GELU, which no tensor of the file tells.
    model: Any = build_clip(dict(state.stream(dtype=torch.float32)), {**config, "quick_gelu": True}, device)
    from open_clip import tokenize

    def images(pixels: Tensor) -> Tensor:
        return F.normalize(model.encode_image(_seen(pixels.to(device), SIDE, CLIP_MEAN, CLIP_STD)), dim=1)

    def text(prompts: Sequence[str]) -> Tensor:
        return F.normalize(model.encode_text(tokenize(list(prompts)).to(device)), dim=1)

    return Embedders(images, text, None if network is None else _dino(*network, device))


def _opened_dino(path: Path) -> tuple[nn.Module, TensorFile]:
    """timm's network, without the file's weights, and the file that holds them."""
    path = _existing(path, "DINO ViT-S/16", f"model.safetensors of timm/{DINO_MODEL}, or dino_deitsmall16_pretrain.pth")
    import timm

    model = timm.create_model(DINO_MODEL, pretrained=False, num_classes=0)
    file = TensorFile(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if wanted != {name: spec.shape for name, spec in file.specs.items()}:
        raise ValueError(f"{Path(path).name} is no DINO ViT-S/16: it does not fit timm's {DINO_MODEL}.")
    return model, file


def _dino(model: nn.Module, file: TensorFile, device: str | torch.device) -> Embed:
    model.load_state_dict(dict(file.stream(file.specs)))
    model = model.eval().requires_grad_(False).to(device)

    def images(pixels: Tensor) -> Tensor:
        return F.normalize(model(_seen(pixels.to(device), 256, IMAGENET_MEAN, IMAGENET_STD)), dim=1)

    return images


def _existing(path: Path | None, what: str, source: str) -> Path:
    if path is None or not Path(path).is_file():
        where = "no file is given" if path is None else f"{path} does not exist"
        raise ValueError(f"The weights of {what} are missing ({where}); they are {source}.")
    return Path(path)


def _seen(pixels: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images [N, 3, H, W] with the short side brought to `side` bicubically, their central 224 square, normalised."""
    height, width = pixels.shape[-2:]
    scale = side / min(height, width)
    size = (round(height * scale), round(width * scale))
    scaled = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    square = scaled[..., top : top + SIDE, left : left + SIDE]
    return (square - torch.tensor(mean, device=pixels.device)[:, None, None]) / torch.tensor(std, device=pixels.device)[
        :, None, None
    ]


def summarise(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Metric -> mean and 95 % interval over videos; a video without a metric does not count for it."""
    names = dict.fromkeys(name for score in scores for name in score)
    summary = {}
    for name in names:
        values = [score[name] for score in scores if name in score]
        low, high = bootstrap_interval(values)
        summary[name] = {"mean": sum(values) / len(values), "low": low, "high": high, "videos": len(values)}
    return summary
