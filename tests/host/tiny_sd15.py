"""Stable Diffusion 1.5 of tiny size for the host's own Load Checkpoint: true names and layout, few channels.

Also a pack of custom nodes without any: a server that has it beside ours loads such files too.
"""

from __future__ import annotations

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base

WIDTH = 24  # of the text states
TEXT = {"num_hidden_layers": 2, "hidden_size": WIDTH, "num_attention_heads": 1, "intermediate_size": 48,
        "hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": 49407,
        "vocab_size": 49408}  # fmt: skip
PIXELS = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
          "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
NODE_CLASS_MAPPINGS: dict[str, type] = {}


class Encoder(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None, **_):
        super().__init__(device=device, dtype=dtype, layer="last", textmodel_json_config=dict(TEXT),
                         return_projected_pooled=False, model_options=model_options or {})  # fmt: skip


class Words(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory=embedding_directory, embedding_size=WIDTH,
                         tokenizer_data=tokenizer_data or {})  # fmt: skip


class Text(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, clip_model=Encoder)


class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=Words)


class TinySD15(comfy.supported_models.SD15):
    unet_config = {**comfy.supported_models.SD15.unet_config, "context_dim": WIDTH, "model_channels": 32}

    def clip_target(self, state_dict=None):
        return comfy.supported_models_base.ClipTarget(Tokenizer, Text)


class TinyVAE(comfy.sd.VAE):
    def __init__(self, sd=None, **how):
        first = (sd or {}).get("decoder.conv_in.weight")
        if first is not None and first.shape[0] == 32:
            how["config"] = {"params": {"ddconfig": dict(PIXELS), "embed_dim": 4}}
        super().__init__(sd=sd, **how)


def register() -> None:
    if not any(known.__name__ == "TinySD15" for known in comfy.supported_models.models):
        comfy.supported_models.models.append(TinySD15)
        comfy.sd.VAE = TinyVAE


register()
