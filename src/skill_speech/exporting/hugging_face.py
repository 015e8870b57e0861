"""A folder that Transformers loads, with or without skill_speech beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoints.heads import PROBLEMS
from ..heads import HeadConfig, SpeechModel
from .processors import processor_files


def register() -> None:
    """Tell Transformers' auto classes what skill-speech models are, with each of the heads and without.

    Transformers then loads them with the code that is installed and asks for no `trust_remote_code`.
    """
    import transformers

    from .travel import modeling_skill_speech as models
    from .travel.configuration_skill_speech import AUTO_MAP, SkillSpeechConfig

    transformers.AutoConfig.register(SkillSpeechConfig.model_type, SkillSpeechConfig, exist_ok=True)
    for auto, place in AUTO_MAP.items():
        if auto != "AutoConfig":
            model = getattr(models, place.partition(".")[2])
            getattr(transformers, auto).register(SkillSpeechConfig, model, exist_ok=True)


def save_transformers(model: SpeechModel, folder: Path, source: str) -> None:
    """Write config.json, model.safetensors, the processor's files and the code that they need.

    Args:
        model: in evaluation mode.
        folder: that exists.
        source: of the model, for messages.
    """
    from transformers import Wav2Vec2FeatureExtractor
    from transformers.utils import logging

    from .travel import modeling_skill_speech as models
    from .travel.configuration_skill_speech import SkillSpeechConfig

    encoder, head = model.encoder, model.head
    values = {} if head is None else head_values(head.config)
    config = SkillSpeechConfig(**encoder.config.to_dict(), **values)
    theirs: Any
    if head is None:
        theirs = models.SkillSpeechModel(config)
        theirs.encoder.load_state_dict(encoder.state_dict())
    else:
        theirs = models.OF_KIND[head.config.kind](config)
        prefix = "skill_speech.encoder."
        weights = {f"{prefix}{name}": tensor for name, tensor in encoder.state_dict().items()}
        theirs.load_state_dict(weights | head.state_dict())
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # there is no progress in writing one file
    try:
        theirs.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
    normalizes = config.extractor_normalizes
    if head is None:
        Wav2Vec2FeatureExtractor(
            sampling_rate=encoder.config.sampling_rate, do_normalize=normalizes, return_attention_mask=True
        ).save_pretrained(folder)
        return
    files = processor_files(model.files, head.config, encoder.config, normalizes=normalizes, source=source)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def head_values(head: HeadConfig) -> dict[str, Any]:
    """What Transformers' configuration says of a head, the inverse of what `read_head` makes of it."""
    values: dict[str, Any] = {}
    if head.adapter is not None:
        values |= {
            "add_adapter": True,
            "num_adapter_layers": head.adapter.layers,
            "adapter_kernel_size": head.adapter.kernel,
            "adapter_stride": head.adapter.stride,
            "output_hidden_size": head.adapter.width,
        }
    if head.kind == "ctc":
        return values | {"vocab_size": head.outputs, "pad_token_id": head.blank, "final_dropout": head.dropout}
    values["use_weighted_layer_sum"] = head.weighted_layer_sum
    values |= {"id2label": dict(enumerate(head.labels))} if head.labels else {"num_labels": head.outputs}
    if head.labels:
        values["label2id"] = {label: number for number, label in enumerate(head.labels)}
    if head.kind == "x-vector":
        return values | {
            "tdnn_dim": [layer.width for layer in head.tdnn],
            "tdnn_kernel": [layer.kernel for layer in head.tdnn],
            "tdnn_dilation": [layer.dilation for layer in head.tdnn],
            "xvector_output_dim": head.embedding,
        }
    values["problem_type"] = next(theirs for theirs, ours in PROBLEMS.items() if ours == head.problem)
    return values | ({"classifier_proj_size": head.projection} if head.kind == "sequence" else {})
