"""Fine-tuned models as people keep them: folders that Transformers 4.57 and 5 write, small and with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.transformers_models import LARGE_STYLE, TINY, build

XVECTOR = {"tdnn_dim": [20, 20, 24], "tdnn_kernel": [5, 3, 1], "tdnn_dilation": [1, 2, 1], "xvector_output_dim": 18}
LABELS = ["no", "yes", "maybe", "stopp", "Ü"]
VOCABULARY = {token: number for number, token in enumerate(["[PAD]", "<s>", "</s>", "[UNK]", "|", *"abcdeÄ'"])}
CLASSES: dict[str, dict[str, Any]] = {
    "ForCTC": {"vocab_size": len(VOCABULARY), "pad_token_id": 0},
    "ForSequenceClassification": {"id2label": dict(enumerate(LABELS)), "classifier_proj_size": 14},
    "ForAudioFrameClassification": {"num_labels": 3},
    "ForXVector": {"num_labels": 7} | XVECTOR,
}


def fine_tuned(kind: str, head: str, **changes: Any) -> Any:
    """A model whose outputs change from frame to frame, as those of a trained one do."""
    model = build(kind, TINY | CLASSES[head] | changes, head)
    last = model.lm_head if head == "ForCTC" else model.classifier
    with torch.no_grad():
        last.weight.normal_(0, 3)
        if getattr(model, "layer_weights", None) is not None:
            model.layer_weights.normal_()
    return model


def save_5(model: Any, folder: Path, *, normalize: bool = False, mask: bool = True) -> Path:
    """As Transformers 5 saves a model and its processor: processor_config.json holds the feature extractor."""
    model.save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=mask)
    if hasattr(model, "lm_head"):
        (folder / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
        tokenizer = transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json", pad_token="[PAD]", unk_token="[UNK]")
        transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    else:
        extractor.save_pretrained(folder)
    return folder


def save_4(
    model: Any, folder: Path, *, normalize: bool = False, mask: bool = True, processor: str = "Wav2Vec2Processor"
) -> Path:
    """As Transformers 4.57 and its predecessors did: other names of weights, a file for each part of the processor."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, name in old.items():
        weights = {weight.replace(new, name): tensor for weight, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    for name in ("dtype", "transformers_version"):
        written.pop(name, None)
    settings = {"torch_dtype": "float32", "transformers_version": "4.57.6"}
    extractor: dict[str, Any] = {
        "do_normalize": normalize,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": mask,
        "sampling_rate": 16000,
    }
    files = {"config.json": written | settings, "preprocessor_config.json": extractor}
    if hasattr(model, "lm_head"):
        extractor["processor_class"] = processor
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "[UNK]"}
        files["special_tokens_map.json"] = special
        files["vocab.json"] = VOCABULARY
        files["tokenizer_config.json"] = {
            **special,
            "clean_up_tokenization_spaces": False,
            "do_lower_case": False,
            "do_normalize": True,
            "model_max_length": 1000000000000000019884624838656,
            "processor_class": processor,
            "replace_word_delimiter_char": " ",
            "return_attention_mask": False,
            "target_lang": None,
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": "|",
        }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
    return folder


MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hubert-ctc": ("Hubert", "ForCTC", {}),
    "wavlm-ctc-adapter": (
        "WavLM",
        "ForCTC",
        LARGE_STYLE | {"conv_bias": False, "add_adapter": True, "output_hidden_size": 32, "num_adapter_layers": 1},
    ),
    "mms-ctc": ("Wav2Vec2", "ForCTC", LARGE_STYLE | {"adapter_attn_dim": 8}),
    "wav2vec2-sequence": ("Wav2Vec2", "ForSequenceClassification", {"use_weighted_layer_sum": True}),
    "data2vec-sequence": (
        "Data2VecAudio",
        "ForSequenceClassification",
        {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7},
    ),
    "wavlm-frame": ("WavLM", "ForAudioFrameClassification", {"use_weighted_layer_sum": True}),
    "unispeech-sat-xvector": ("UniSpeechSat", "ForXVector", LARGE_STYLE | {"use_weighted_layer_sum": True}),
    "wavlm-xvector": ("WavLM", "ForXVector", {}),
}
"""Family, head and what is special about each."""


def model_named(name: str) -> Any:
    """One of `MODELS`."""
    kind, head, changes = MODELS[name]
    return fine_tuned(kind, head, **changes)
