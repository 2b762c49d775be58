"""The paper's metrics on embeddings that are known, and the files they come from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dreamvideo.evaluation import metrics as evaluation
from dreamvideo.evaluation.metrics import (
    Embedders,
    bootstrap_interval,
    image_alignment,
    load_embedders,
    score_video,
    summarise,
    temporal_consistency,
    text_alignment,
)

X, Y = torch.eye(2)


def colours(images):
    return F.normalize(images.mean((2, 3)), dim=1)


def test_alignment_is_the_mean_cosine():
    frames = torch.stack([X, Y, X, Y])
    assert text_alignment(frames, X) == 0.5
    assert image_alignment(frames, torch.stack([X, X])) == 0.5 and image_alignment(frames[::2], X[None]) == 1
    assert temporal_consistency(frames) == 0 and temporal_consistency(frames[::2]) == 1
    with pytest.raises(ValueError, match="one frame"):
        temporal_consistency(frames[:1])


def test_a_video_gets_the_metrics_that_can_be_had():
    red, blue = torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8)
    red[:, 0], blue[:, 2] = 1, 1
    words = {"red": red[:1], "blue": blue[:1]}
    embedders = Embedders(colours, lambda prompts: torch.cat([colours(words[prompt]) for prompt in prompts]), colours)
    scores = score_video(red, "red", blue, embedders)
    assert scores == {"CLIP-T": 1, "CLIP-I": 0, "DINO-I": 0, "Temporal consistency": 1}
    assert list(score_video(red, "blue", None, embedders)) == ["CLIP-T", "Temporal consistency"]


def test_intervals_hold_the_mean_and_narrow_with_more_values():
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.randn(count, generator=generator).tolist() for count in (10, 1000))
    (a, b), (c, d) = bootstrap_interval(few), bootstrap_interval(many)
    assert a < sum(few) / 10 < b and c < 0.05 and d > -0.05 and (b - a) > 3 * (d - c)
    assert (d - c) == pytest.approx(2 * 1.96 / 1000**0.5, rel=0.15)
    assert bootstrap_interval(few) == (a, b) and bootstrap_interval([0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_a_summary_counts_the_videos_that_have_a_metric():
    summary = summarise([{"a": 1.0, "b": 0.0}, {"a": 3.0}])
    assert summary["a"]["mean"] == 2 and summary["a"]["videos"] == 2 and summary["b"]["videos"] == 1


def test_missing_weights_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="CLIP ViT-B/32 are missing.*timm/vit_base_patch32_clip_224.openai"):
        load_embedders(None)
    with pytest.raises(ValueError, match="none.bin does not exist"):
        load_embedders(tmp_path / "none.bin")
    with pytest.raises(ValueError, match="DINO ViT-S/16 are missing"):
        evaluation._opened_dino(tmp_path / "none.pth")


def test_another_clip_is_refused():
    from dreamvideo.base import EMBEDDED_FOLDER

    with pytest.raises(ValueError, match="clip.safetensors is a CLIP with patches of .* ViT-B/32"):
        load_embedders(EMBEDDED_FOLDER / "clip.safetensors")


def test_pictures_are_seen_as_the_authors_see_them():
    picture = torch.zeros(1, 3, 448, 896)
    picture[..., 336:560] = 1  # what the central square holds
    seen = evaluation._seen(picture, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert seen.shape == (1, 3, 224, 224)
    assert seen[..., 60:160].min() > 0.99 and seen[..., :50].max() < 0.01
