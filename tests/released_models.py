"""Released models of the family: what their files say and hold beside the encoder, at a size for tests.

Names and settings are those of the code that wrote them (auspicious3000/contentvec, yizhilll/MERT, s3prl's distiller,
Transformers); the widths are small and the weights are a Transformers model's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.fairseq_files import fairseq_settings, fairseq_weights
from tests.transformers_models import LARGE_STYLE, TINY, build, save

# Transformers' settings, and whether waveforms are normalized.
HUBERTS: dict[str, tuple[dict[str, Any], bool]] = {
    "contentvec": ({}, False),
    "chinese-hubert-base": ({}, True),
    "chinese-hubert-large": (LARGE_STYLE, True),
    "mhubert-147": ({}, True),
    "distilhubert": ({"num_hidden_layers": 2, "feat_proj_layer_norm": False}, False),
    "mert-95m": ({}, True),
    "mert-330m": ({"do_stable_layer_norm": True}, True),
}


def hubert(name: str) -> Any:
    """Transformers' model in the style of a released one."""
    return build("Hubert", TINY | HUBERTS[name][0])


def transformers_folder(name: str, folder: Path) -> Path:
    """The folder on the hub: pytorch_model.bin, the configuration, the feature extractor."""
    model, normalize = hubert(name), HUBERTS[name][1]
    save(model, folder, normalize)
    weights = model.state_dict()
    (folder / "model.safetensors").unlink()
    if name == "contentvec":  # as HubertModelWithFinalProj, a class of voice conversion's code
        weights |= {"final_proj.weight": torch.ones(8, 48), "final_proj.bias": torch.ones(8)}
        edit(folder / "config.json", architectures=["HubertModelWithFinalProj"], classifier_proj_size=8)
    if name.startswith("mert"):
        own = {"feature_extractor_cqt": False, "feature_extractor_cqt_bins": 336, "deepnorm": False}
        own |= {"attention_relax": 32.0 if name == "mert-330m" else -1.0, "auto_map": {"AutoModel": "x.MERTModel"}}
        edit(folder / "config.json", model_type="mert_model", architectures=["MERTModel"], sample_rate=24_000, **own)
        edit(folder / "preprocessor_config.json", sampling_rate=24_000)
        # Of the constant-Q transform that pre-training predicts: no part of what is computed.
        weights |= {
            "feature_extractor_cqt.cqt_kernels_real": torch.ones(3, 4),
            "encoder_cqt_model.fc.weight": torch.ones(3, 48),
        }
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def fairseq_file(name: str, path: Path) -> Path:
    """The file of fairseq, or of s3prl for DistilHuBERT."""
    model, normalize = hubert(name), HUBERTS[name][1]
    weights, settings = fairseq_weights(model), fairseq_settings(model, "hubert")
    task: dict[str, Any] = {"_name": "hubert_pretraining", "normalize": normalize, "sample_rate": 16_000}
    if name == "distilhubert":
        weights = {n: t for n, t in weights.items() if n.startswith(("feature_extractor.", "post_extract", "encoder."))}
        weights |= {"output_layer.0.weight": torch.ones(96, 48), "output_layer.2.bias": torch.ones(1, 1, 2, 8)}
        named = {"extractor_conv_feature_layers": settings.pop("conv_feature_layers"), "task_emb_type": "expand-last"}
        known = ("extractor_mode", "conv_pos", "conv_pos_groups", "activation_fn", "layer_norm_first", "dropout")
        known += ("attention_dropout", "activation_dropout", "encoder_layerdrop", "encoder_layers", "encoder_embed_dim")
        known += ("encoder_ffn_embed_dim", "encoder_attention_heads")
        config = {**named, **{n: settings[n] for n in known}, "attention_type": "original", "pred_layer_id": [4, 8, 12]}
        content = {
            "Distiller": weights,
            "Config": {"distiller": config, "teacher": {"model": "hubert_base"}},
            "Step": 9,
        }
        torch.save(content | {"Optimizer": {"state": {}}}, path)
        return path
    if name == "contentvec":
        settings |= {"_name": "contentvec", "encoder_layers_1": 3, "ctr_layers": [-6], "label_rate": "???"}
        weights |= speaker_layers(first=model.config.num_hidden_layers, count=3)
        task["_name"] = "contentvec_pretraining"
    if name.startswith("mert"):
        settings |= {"_name": "mert", "audio_extract_type": "w2v_conv", "audio_cqt_loss_m": True, "audio_cqt_bins": 336}
        settings |= {"attention_relax": 32.0, "feature_extractor_cqt": False, "deepnorm": False, "subln": False}
        weights |= {"encoder_cqt_model.fc.weight": torch.ones(336, 48), "encoder_mel_model.fc.bias": torch.ones(84)}
        task |= {"_name": "mert_pretraining", "sample_rate": 24_000}
    torch.save({"cfg": {"model": settings, "task": task}, "args": None, "model": weights}, path)
    return path


def speaker_layers(first: int, count: int) -> dict[str, Any]:
    """ContentVec's layers on top, whose norms are made of a speaker's embedding, and what comes after them."""
    weights = {"layer_proj.weight": torch.ones(8, 48), "encoder.cond_layer_norm.weight_ln.weight": torch.ones(48, 9)}
    for number in range(first, first + count):
        names = [f"self_attn.{part}_proj.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "bias")]
        names += [
            f"{norm}.{part}_ln.weight"
            for norm in ("self_attn_layer_norm", "final_layer_norm")
            for part in ("weight", "bias")
        ]
        names += ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
        weights |= {f"encoder.layers.{number}.{name}": torch.ones(2, 2) for name in names}
    return weights


def edit(path: Path, **changes: Any) -> None:
    """Change some values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
