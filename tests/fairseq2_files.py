"""Files as fairseq2 writes them, with the weights of a Transformers model."""

from __future__ import annotations

from typing import Any

import torch

# What its pre-training, its CTC models and its language models have beside the encoder.
BESIDE = {
    "pre-training": (
        "masker.temporal_mask_embed",
        "final_proj.weight",
        "final_target_proj.weight",
        "quantizer.entries",
    ),
    "ctc": ("final_proj.weight", "final_proj.bias"),
    "llm": ("encoder_proj.weight", "text_frontend.weight", "llama_decoder.layers.0.self_attn.q_proj.weight"),
}
# The parts of a name, Transformers' to fairseq2's, where they differ.
IN_LAYER = {
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.out_proj": "self_attn.output_proj",
    "layer_norm": "self_attn_layer_norm",
    "feed_forward.intermediate_dense": "ffn.inner_proj",
    "feed_forward.output_dense": "ffn.output_proj",
    "final_layer_norm": "ffn_layer_norm",
}
WEIGHT_NORM = {"original0": "weight_g", "original1": "weight_v"}


def fairseq2_weights(model: Any, beside: str = "pre-training") -> dict[str, Any]:
    """A Transformers wav2vec 2.0 model's weights under the names of fairseq2's classes."""
    front = "encoder_frontend."
    pre_norm, large = model.config.do_stable_layer_norm, model.config.feat_extract_norm == "layer"
    weights: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        *place, kind = name.split(".")
        if place[:2] == ["feature_extractor", "conv_layers"]:
            part = "conv" if place[3] == "conv" else ("layer_norm" if large else "group_norm")
            theirs = f"{front}feature_extractor.layers.{place[2]}.{part}.{kind}"
        elif place[:1] == ["feature_projection"]:
            theirs = (
                front + {"layer_norm": "post_extract_layer_norm", "projection": "model_dim_proj"}[place[1]] + f".{kind}"
            )
        elif place[:2] == ["encoder", "pos_conv_embed"]:
            theirs = f"{front}pos_encoder.conv.{WEIGHT_NORM.get(kind, kind)}"
        elif place == ["encoder", "layer_norm"]:
            theirs = f"{'encoder.' if pre_norm else front}layer_norm.{kind}"
        elif place[:2] == ["encoder", "layers"]:
            theirs = f"encoder.layers.{place[2]}.{IN_LAYER['.'.join(place[3:])]}.{kind}"
        else:
            assert name == "masked_spec_embed"
            continue
        weights[theirs] = tensor
    return weights | {name: torch.ones(3, 4) for name in BESIDE[beside]}
