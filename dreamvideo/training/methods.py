"""What each training method trains, on what, with which loss: one row each. The training loop knows no names.

A row is a `Method`: the recipe, as numbers and functions. What a method trains is a `learners.Learner`. A further
method is a further row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..models.adapters import CONV_RESIDUAL, FRAME_VECTORS, AdapterConfig, AnyConfig
from ..models.deltas import DeltaConfig
from ..models.diffusion import diffusion_loss
from ..models.frame_attention import FrameAttentionConfig
from .timesteps import DrawTimesteps, noisy_timesteps, uniform_timesteps

LossFunction = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]
"""(prediction, noise, mask or None, normalize the mask's area) -> scalar; see `diffusion.diffusion_loss`."""

MOTION_WORD = "moving"  # from which a motion's own token begins


@dataclass(frozen=True)
class Method:
    """One way of training. The numbers are defaults that `TrainingSettings` may override.

    trains: the kind of the file that comes out: "token", "identity", "motion", "weights" or "tune_a_video".
    data: "images" (one frame a sample) or "clips".
    config: of the adapter or the weight deltas that are trained; None where a token is all.
    token: where the vectors of the captions' placeholder come from: "learned" are trained here, "given" come frozen
    from a textual inversion before this, "rare" are those of a rare word and the class word, "class" those of the class
    word alone, both frozen; "none" where captions hold no placeholder.
    related_clips: whether clips of related motions, under plain captions, should stand beside those to learn from.
    masked: whether masks of the data, where there are any, weigh the loss.
    appearance_guidance: whether the learner gets the image feature of a random frame of each sample.
    p_text_drop: how often, sample by sample, the empty prompt takes the caption's place.
    p_image_drop: how often a zero image takes the feature's place.
    offset_noise, debias, absorber, layered_token, mask_attention: as in `TrainingSettings`, whose defaults they are.
    part_rates: (part of an adapter, its learning rate against the rest's), as on the full-size base.
    acts_from, guided_from: where sampling begins to take what it trained, and to guide towards it, see
    `models.stack.StackEntry`.
    """

    name: str
    trains: str
    data: str
    steps: int
    learning_rate: float
    batch_size: int
    config: AnyConfig | None = None
    token: str = "none"
    related_clips: bool = False
    masked: bool = False
    appearance_guidance: bool = False
    p_text_drop: float = 0.0
    p_image_drop: float = 0.0
    offset_noise: float = 0.1
    debias: bool = False
    absorber: bool = False
    layered_token: bool = False
    mask_attention: bool = False
    part_rates: tuple[tuple[str, float], ...] = ()
    acts_from: float = 0.0
    guided_from: float = 1.0
    timesteps: DrawTimesteps = uniform_timesteps
    loss: LossFunction = diffusion_loss

    @property
    def stage(self) -> str:
        """Whose place it takes among DreamVideo's own stages: "token", "identity" or "motion"."""
        if self.trains == "token":
            return "token"
        return "identity" if self.data == "images" else "motion"

    @property
    def tells_frames(self) -> bool:
        """Whether what is trained knows a frame by its number, so that samples must begin where the motion does."""
        return isinstance(self.config, AdapterConfig) and self.config.frames is not None


# DreamVideo. Steps, learning rates and batch sizes are the paper's (section 4.1); masks and dropping are the released
# configs'. One clip: a zero image half of the time, so that sampling may keep the condition's bias in the
# unconditional half.
TEXTUAL_INVERSION = Method("textual_inversion", "token", "images", 3000, 1e-4, 4, token="learned", masked=True)
IDENTITY = Method("identity", "identity", "images", 800, 1e-5, 4, AdapterConfig.identity(), token="given", masked=True)
MOTION = Method(
    "motion",
    "motion",
    "clips",
    1000,
    1e-5,
    1,
    AdapterConfig.motion(condition_dim=None),
    appearance_guidance=True,
    p_text_drop=0.5,
    p_image_drop=0.5,
)


def for_clips(method: Method, clips: int) -> Method:
    """The row for that many clips: from several, two a step and every image shown, as the released configs have it."""
    if clips == 1 or method.data != "clips":
        return method
    return replace(method, name=f"{method.name}_several", batch_size=2, p_image_drop=0.0)


def without_guidance(method: Method) -> Method:
    """The row for a base that has no image encoder."""
    return replace(method, appearance_guidance=False, p_image_drop=0.0)


WORD_OPTIONS = ("layered_token", "mask_attention")  # of a row that learns a word, or is given one


def word_method(method: Method) -> Method:
    """The row by which the word is learned that this row is given, with this row's own options for words."""
    return replace(TEXTUAL_INVERSION, **{name: getattr(method, name) for name in WORD_OPTIONS})


MOTION_SEVERAL = for_clips(MOTION, 2)


def motion_method(clips: int) -> Method:
    """The row for learning a motion from that many clips."""
    return for_clips(MOTION, clips)


def _shaped(method: Method, name: str, **config: object) -> Method:
    """A row that differs in its adapter's shape alone."""
    assert method.config is not None
    return replace(method, name=name, config=replace(method.config, **config))


ALL_SUBLAYERS = ("attn1", "attn2", "ff")
# DreamVideo with one thing changed (the paper's section 4.3 and appendix).
IDENTITY_ABLATIONS = (
    replace(IDENTITY, name="no_textual_identity", token="class"),
    _shaped(IDENTITY, "identity_serial", placement="serial"),
    _shaped(IDENTITY, "identity_self_attention", sublayers=("attn1",)),
    _shaped(IDENTITY, "identity_feed_forward", sublayers=("ff",)),
    _shaped(IDENTITY, "identity_all_layers", sublayers=ALL_SUBLAYERS),
    _shaped(IDENTITY, "identity_hidden_32", hidden=32),
)
MOTION_ABLATIONS = (
    replace(MOTION, name="no_appearance_guidance", appearance_guidance=False, p_image_drop=0.0),
    _shaped(MOTION, "motion_serial", placement="serial"),
    _shaped(MOTION, "motion_self_attention", sublayers=("attn1", "attn2")),
    _shaped(MOTION, "motion_feed_forward", sublayers=("ff",)),
    _shaped(MOTION, "motion_hidden_32", hidden=32),
)

# Beyond the paper. A vector a frame at every temporal transformer: the idea of Wang et al. 2024 (arXiv 2403.20193), who
# learn such vectors alone. `stages` makes as many as a sample has frames.
MOTION_FRAMES = 32
# At the paper's 1e-5 these parts would stay next to nothing: 1e-2 for vectors (Wang et al.: 2e-2), 5e-4 for residuals,
# as Zhao et al. 2023 (arXiv 2310.08465) have it for LoRA of temporal layers.
PART_RATES = ((FRAME_VECTORS, 1000.0), (CONV_RESIDUAL, 50.0))
FRAME_AWARE = replace(_shaped(MOTION, "frame_aware", frames=MOTION_FRAMES), part_rates=PART_RATES)
# Residuals of low rank (Hu et al. 2021, arXiv 2106.09685) at the temporal convolutions; no paper tries them for motion.
CONV_RANK = 16
TEMPORAL_CONVOLUTIONS = replace(
    MOTION,
    name="temporal_convolutions",
    config=AdapterConfig.motion(sublayers=(), condition_dim=None, conv_rank=CONV_RANK),
    appearance_guidance=False,
    p_image_drop=0.0,
    part_rates=PART_RATES,
)
FRAME_AWARE_CONVOLUTIONS = _shaped(FRAME_AWARE, "frame_aware_convolutions", conv_rank=CONV_RANK)
# What is best for motion, and alone: at rank 64 they follow more closely than at 16 or beside the motion adapter
# (docs/methods.md).
PLUS_RANK = 64
MOTION_PLUS = _shaped(TEMPORAL_CONVOLUTIONS, "motion_plus", conv_rank=PLUS_RANK)
MOTION_BEYOND = (FRAME_AWARE, TEMPORAL_CONVOLUTIONS, FRAME_AWARE_CONVOLUTIONS, MOTION_PLUS)
# Trained beside a motion for the looks of its clips and thrown away: at all sublayers of the spatial transformers, of
# low rank (Zhao et al. 2023, arXiv 2310.08465, and Ren et al. 2024, arXiv 2402.14780, have LoRA there).
ABSORBER = AdapterConfig.identity(sublayers=ALL_SUBLAYERS, hidden=32)

# A subject beyond the paper: adapters at all sublayers, the attention to its word pulled to the masks (Avrahami et al.
# 2023, arXiv 2305.16311). In sampling it acts once the motion is on its way (DualReal, ICCV 2025, finds looks decided
# late), and later guidance draws towards it (Park et al. 2025, arXiv 2508.00319). A vector of the word a layer is left
# to who asks for it (docs/methods.md).
IDENTITY_PLUS = replace(
    _shaped(IDENTITY, "identity_plus", sublayers=ALL_SUBLAYERS), mask_attention=True, acts_from=0.2, guided_from=0.6
)

# What the paper compares with. Where a paper names no number it has DreamVideo's for the same data.
_SUBJECT = replace(IDENTITY, trains="weights", token="rare")
_MOTION = replace(
    MOTION, trains="weights", appearance_guidance=False, p_image_drop=0.0, config=DeltaConfig(("temporal",))
)
# Molad et al. 2023 (arXiv 2302.01329), its image half: few steps on all spatial weights.
DREAMIX = replace(_SUBJECT, name="dreamix", config=DeltaConfig(("spatial",)), steps=150)
# Kumari et al. 2023 (arXiv 2212.04488).
CUSTOM_DIFFUSION = replace(
    _SUBJECT,
    name="custom_diffusion",
    config=DeltaConfig(("text_kv",)),
    token="learned",
    steps=250,
    learning_rate=4e-5,
)
# Wang et al. 2023 (arXiv 2308.06571), fine-tuned as it is.
FINE_TUNING_SUBJECT = replace(_SUBJECT, name="fine_tuning_subject", config=DeltaConfig(("spatial",)))
FINE_TUNING_MOTION = replace(_MOTION, name="fine_tuning_motion")
# Hu et al. 2021 (arXiv 2106.09685).
LORA_SUBJECT = replace(_SUBJECT, name="lora_subject", config=DeltaConfig(("text_kv",), rank=32))
LORA_MOTION = replace(_MOTION, name="lora_motion", config=DeltaConfig(("temporal_kv",), rank=32))
# Materzynska et al. 2023 (arXiv 2312.04966).
CUSTOMIZING_MOTION = replace(
    _MOTION,
    name="customizing_motion",
    config=DeltaConfig(("temporal", "text_kv")),
    token="learned",
    related_clips=True,
    p_text_drop=0.0,
    timesteps=noisy_timesteps,
)

# Wu et al. 2023 (arXiv 2212.11565), on an image model: no dropped captions, no noise that a frame's pixels share.
TUNE_A_VIDEO = replace(
    _MOTION,
    name="tune_a_video",
    trains=FrameAttentionConfig.kind,
    config=FrameAttentionConfig(),
    steps=500,
    learning_rate=3e-5,
    p_text_drop=0.0,
    offset_noise=0.0,
)

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        TEXTUAL_INVERSION,
        IDENTITY,
        MOTION,
        MOTION_SEVERAL,
        IDENTITY_PLUS,
        *IDENTITY_ABLATIONS,
        *MOTION_ABLATIONS,
        *MOTION_BEYOND,
        DREAMIX,
        CUSTOM_DIFFUSION,
        FINE_TUNING_SUBJECT,
        FINE_TUNING_MOTION,
        LORA_SUBJECT,
        LORA_MOTION,
        CUSTOMIZING_MOTION,
        TUNE_A_VIDEO,
    )
}
# As a user names them: for a subject from photographs, and for a motion from clips (see `for_clips`).
SUBJECT_METHODS: Mapping[str, Method] = {
    "dreamvideo": IDENTITY,
    "dreamvideo_plus": IDENTITY_PLUS,
    **{method.name.removeprefix("identity_"): method for method in IDENTITY_ABLATIONS},
    "textual_inversion": TEXTUAL_INVERSION,
    "dreamix": DREAMIX,
    "custom_diffusion": CUSTOM_DIFFUSION,
    "fine_tuning": FINE_TUNING_SUBJECT,
    "lora": LORA_SUBJECT,
}
MOTION_METHODS: Mapping[str, Method] = {
    "dreamvideo": MOTION,
    "dreamvideo_plus": MOTION_PLUS,
    **{method.name: method for method in (FRAME_AWARE, TEMPORAL_CONVOLUTIONS, FRAME_AWARE_CONVOLUTIONS)},
    **{method.name.removeprefix("motion_"): method for method in MOTION_ABLATIONS},
    "fine_tuning": FINE_TUNING_MOTION,
    "lora": LORA_MOTION,
    "customizing_motion": CUSTOMIZING_MOTION,
    "tune_a_video": TUNE_A_VIDEO,
}
