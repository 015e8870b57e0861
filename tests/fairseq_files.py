"""Files as fairseq, s3prl and WavLM's authors write them, with the weights of a Transformers model."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

EXTRAS = {
    "mask_emb": torch.ones(48),
    "final_proj.weight": torch.ones(3, 48),
    "label_embs_concat": torch.ones(5, 3),
    "quantizer.vars": torch.ones(1, 4, 2),
    "_ema": {"layers.0.fc1.weight": torch.ones(2)},
}


def fairseq_weights(model: Any) -> dict[str, Any]:
    """A Transformers model's weights under fairseq's names, with what pre-training leaves beside them."""
    large = getattr(model.config, "feat_extract_norm", "layer") == "layer"
    batch_norm = getattr(model.config, "conv_pos_batch_norm", False)
    weights: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "masked_spec_embed":
            continue
        if parts[:2] == ["feature_extractor", "conv_layers"]:
            index = "0" if parts[3] == "conv" else ("2.1" if large else "2")
            theirs = f"feature_extractor.conv_layers.{parts[2]}.{index}.{parts[-1]}"
        elif parts[0] == "feature_projection":
            theirs = f"{'layer_norm' if parts[1] == 'layer_norm' else 'post_extract_proj'}.{parts[-1]}"
        elif parts[1] == "pos_conv_embed" and parts[2] == "layers":
            theirs = f"encoder.pos_conv.{parts[3]}.0.{parts[-1]}"
        elif parts[1] == "pos_conv_embed" and parts[2] == "batch_norm":
            theirs = f"encoder.pos_conv.0.{parts[-1]}"
        elif parts[1] == "pos_conv_embed":
            kind = {"original0": "weight_g", "original1": "weight_v"}.get(parts[-1], parts[-1])
            theirs = f"encoder.pos_conv.{int(batch_norm)}.{kind}"
        elif parts[1] == "layers":
            theirs = ".".join(["encoder", "layers", parts[2], _in_layer(parts[3:])])
        else:
            theirs = name
        weights[theirs] = tensor
    return weights | EXTRAS


def _in_layer(parts: list[str]) -> str:
    if parts[0] == "attention":
        renamed = {"rel_attn_embed": "relative_attention_bias", "gru_rel_pos_linear": "grep_linear"}
        renamed["gru_rel_pos_const"] = "grep_a"
        return ".".join(["self_attn", renamed.get(parts[1], parts[1]), *parts[2:]])
    if parts[0] == "layer_norm":
        return f"self_attn_layer_norm.{parts[1]}"
    if parts[0] == "feed_forward":
        return f"{'fc1' if parts[1] == 'intermediate_dense' else 'fc2'}.{parts[2]}"
    return ".".join(parts)


def fairseq_settings(model: Any, name: str) -> dict[str, Any]:
    """fairseq's description of the network, "model" in its configuration."""
    config = model.config
    large = getattr(config, "feat_extract_norm", "layer") == "layer"
    shapes = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    values = {
        "_name": name,
        "extractor_mode": "layer_norm" if large else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.05,
        "dropout_input": 0.3,
        "layer_norm_first": getattr(config, "do_stable_layer_norm", False),
        "conv_feature_layers": " + ".join(f"[{shape}]" for shape in shapes),
        "conv_bias": config.conv_bias,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "layer_type": "transformer",
        "mask_prob": 0.65,
    }
    if name == "data2vec_audio":
        depth = config.num_conv_pos_embeddings
        values |= {"pos_conv_depth": depth, "conv_pos": depth * config.conv_pos_kernel_size, "average_top_k_layers": 8}
    if name == "hubert":
        values |= {"label_rate": "${task.label_rate}", "untie_final_proj": True}
        values["conv_pos_batch_norm"] = getattr(config, "conv_pos_batch_norm", False)
    return values


def wavlm_settings(model: Any, normalize: bool) -> dict[str, Any]:
    """What WavLM's authors keep: all of it in one dictionary, without a name."""
    values = fairseq_settings(model, "wavlm") | {
        "normalize": normalize,
        "relative_position_embedding": True,
        "num_buckets": model.config.num_buckets,
        "max_distance": model.config.max_bucket_distance,
        "gru_rel_pos": True,
    }
    return {name: value for name, value in values.items() if name not in ("_name", "layer_type")}


LAYOUTS = ("cfg", "omegaconf", "args", "s3prl", "fine-tuned", "fine-tuned-args")


def write_fairseq(path: Path, layout: str, model: dict[str, Any], weights: dict[str, Any], normalize: bool) -> Path:
    """One of the layouts that such files have had over the years.

    Args:
        path: of the file.
        layout: one of `LAYOUTS`.
        model: as `fairseq_settings` returns it.
        weights: as `fairseq_weights` returns them.
        normalize: whether waveforms are normalized, which is a setting of the task.
    """
    task = {"_name": "audio_pretraining", "normalize": normalize, "label_rate": 50.0, "sample_rate": 16_000}
    nameless = {name: value for name, value in model.items() if name != "_name"}
    if layout.startswith("fine-tuned"):
        weights = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in weights.items() if name not in EXTRAS}
        weights["w2v_encoder.proj.weight"] = torch.ones(4, 48)
    rest = {"optimizer_history": [{"best_loss": 1.0}], "last_optimizer_state": {"state": {0: {"step": torch.ones(1)}}}}
    with omegaconf_classes() as of:
        content: dict[str, Any] = {
            "cfg": {"args": None, "cfg": {"model": model, "task": task}},
            "omegaconf": {"args": None, "cfg": of({"model": model, "task": task})},
            "args": {"args": argparse.Namespace(**nameless, arch=model["_name"], normalize=normalize)},
            "s3prl": {"task_cfg": task, "model_cfg": nameless, "dictionaries_symbols": [["a", "b"]]},
            "fine-tuned": {
                "cfg": of(
                    {
                        "model": {
                            "_name": "wav2vec_ctc",
                            "w2v_path": "/somewhere/else.pt",
                            "w2v_args": {"model": model, "task": task},
                            "normalize": "${task.normalize}",
                        },
                        "task": {"_name": "audio_finetuning", "normalize": normalize},
                    }
                )
            },
            "fine-tuned-args": {
                "args": argparse.Namespace(
                    arch="wav2vec_ctc",
                    w2v_path="/somewhere/else.pt",
                    normalize=normalize,
                    w2v_args=argparse.Namespace(**nameless, arch=model["_name"]),
                )
            },
        }[layout]
        content |= {"model_weight" if layout == "s3prl" else "model": weights} | rest
        # Files with "args" are from before torch's zip archives.
        torch.save(content, path, _use_new_zipfile_serialization=not layout.endswith("args"))
    return path


@contextmanager
def omegaconf_classes() -> Iterator[Any]:
    """A function from plain values to objects that pickle as OmegaConf's do; it need not be installed."""
    made = {module: types.ModuleType(f"omegaconf.{module}") for module in ("dictconfig", "listconfig", "nodes", "base")}

    def kind(module: str, name: str) -> Any:
        cls = type(name, (), {"__module__": f"omegaconf.{module}"})
        setattr(made[module], name, cls)
        return cls

    mapping, sequence = kind("dictconfig", "DictConfig"), kind("listconfig", "ListConfig")
    node, metadata = kind("nodes", "AnyNode"), kind("base", "Metadata")

    def make(cls: Any, parent: Any, **state: Any) -> Any:
        thing = cls()
        notes = metadata()
        notes.__dict__.update(ref_type=Any, object_type=dict, optional=True, key=None)
        thing.__dict__.update(_metadata=notes, _parent=parent, **state)
        return thing

    def of(value: Any, parent: Any = None) -> Any:
        if isinstance(value, dict):
            thing = make(mapping, parent)
            thing._content = {key: of(item, thing) for key, item in value.items()}
        elif isinstance(value, list):
            thing = make(sequence, parent)
            thing._content = [of(item, thing) for item in value]
        else:
            thing = make(node, parent, _val=value)
        return thing

    sys.modules.update({f"omegaconf.{name}": module for name, module in made.items()})
    sys.modules["omegaconf"] = types.ModuleType("omegaconf")
    try:
        yield of
    finally:
        for name in ("omegaconf", *(f"omegaconf.{name}" for name in made)):
            del sys.modules[name]
