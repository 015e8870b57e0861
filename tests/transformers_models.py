"""Transformers' own models with random weights: what our encoder is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "conv_dim": [16, 24, 16, 24, 16, 24, 32],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE_SHAPE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LARGE_STYLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert-base": ("Hubert", {}),
    "hubert-large": ("Hubert", LARGE_STYLE),
    "hubert-batch-norm": ("Hubert", {"conv_pos_batch_norm": True}),
    "hubert-no-feature-norm": ("Hubert", {"feat_proj_layer_norm": False}),
    "wavlm-base": ("WavLM", {"num_buckets": 32, "max_bucket_distance": 40}),
    "wavlm-large": ("WavLM", {"num_buckets": 32, "max_bucket_distance": 40} | LARGE_STYLE | {"conv_bias": False}),
    "wav2vec2-base": ("Wav2Vec2", {}),
    "wav2vec2-xlsr": ("Wav2Vec2", LARGE_STYLE),
    "wav2vec2-post-norm-layer": ("Wav2Vec2", {"feat_extract_norm": "layer"}),
    "unispeech": ("UniSpeech", {}),
    "unispeech-sat-base": ("UniSpeechSat", {}),
    "unispeech-sat-large": ("UniSpeechSat", LARGE_STYLE),
    "data2vec-audio": ("Data2VecAudio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}),
}

FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert-base": ("Hubert", {}),
    "wavlm-base-plus": ("WavLM", {}),
    "wav2vec2-base": ("Wav2Vec2", {}),
    "unispeech-sat-base": ("UniSpeechSat", {}),
    "data2vec-audio-base": ("Data2VecAudio", {}),
    "unispeech-base": ("UniSpeech", {}),
    "hubert-large": ("Hubert", LARGE_STYLE | LARGE_SHAPE),
    "wavlm-large": ("WavLM", LARGE_STYLE | LARGE_SHAPE | {"conv_bias": False}),
    "wav2vec2-large": ("Wav2Vec2", LARGE_SHAPE),
    "wav2vec2-large-lv60": ("Wav2Vec2", LARGE_STYLE | LARGE_SHAPE),
    "unispeech-sat-large": ("UniSpeechSat", LARGE_STYLE | LARGE_SHAPE),
    "data2vec-audio-large": ("Data2VecAudio", LARGE_SHAPE),
}


def build(kind: str, overrides: dict[str, Any], head: str = "Model", seed: int = 0) -> Any:
    """A random model whose norms and biases are not at their trivial initial values."""
    config = getattr(transformers, f"{kind}Config")(**overrides)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.uniform_(-0.3, 0.3)
            elif "gru_rel_pos" in name or "rel_attn_embed" in name:
                weight.normal_(0, 0.7)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


def save(model: Any, folder: Path, normalize: bool = False) -> Path:
    """The model and its preprocessor as Transformers writes them."""
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return folder
