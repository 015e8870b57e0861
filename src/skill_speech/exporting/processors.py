"""What goes along with a model that has a head: its tokenizer and its feature extractor, as Transformers loads them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from ..encoder import EncoderConfig
from ..heads import HeadConfig

logger = logging.getLogger(__name__)

EXTRACTOR, PROCESSOR, TOKENIZER = "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"
VOCABULARIES = ("vocab.json", "tokenizer.json")
WITH_LANGUAGE_MODEL = "WithLM"


def processor_files(
    files: Mapping[str, bytes], head: HeadConfig, encoder: EncoderConfig, *, normalizes: bool, source: str
) -> dict[str, bytes]:
    """A model's files for a folder whose model_type tells Transformers nothing of tokenizers and processors.

    What Transformers takes from the model_type where a file is silent stands in the files here. Code that they name is
    left out, and so is a language model.

    Args:
        files: of the model, as `SpeechModel.files` has them.
        head: its head's configuration.
        encoder: its encoder's.
        normalizes: whether the feature extractor brings waveforms to zero mean and unit variance.
        source: for messages.

    Returns:
        The files by name. The feature extractor's settings are in preprocessor_config.json, wherever they were: all
        versions of Transformers look there.
    """
    kept = {name: content for name, content in files.items() if name not in (EXTRACTOR, PROCESSOR, TOKENIZER)}
    extractor, processor, tokenizer = (json.loads(files.get(name, b"{}")) for name in (EXTRACTOR, PROCESSOR, TOKENIZER))
    named = [values.get("processor_class") for values in (processor, extractor, tokenizer)]
    if any(str(name).endswith(WITH_LANGUAGE_MODEL) for name in named):
        logger.warning("warning: %s: its language model is not exported; texts are decoded without one", source)
    if "auto_map" in processor | extractor | tokenizer:
        logger.warning("warning: %s: the code of its own processor is not exported; Transformers' is used", source)
    settings = {**extractor, **(processor.get("feature_extractor") or {})} or _fresh_extractor(encoder)
    settings.setdefault("feature_extractor_type", "Wav2Vec2FeatureExtractor")
    settings["do_normalize"] = normalizes
    settings["return_attention_mask"] = bool(settings.get("return_attention_mask")) or encoder.length_aware
    made = {EXTRACTOR: settings}
    if head.kind == "ctc" and any(name in files for name in VOCABULARIES):
        own = "auto_map" in tokenizer and "vocab.json" in files
        tokenizer["tokenizer_class"] = "Wav2Vec2CTCTokenizer" if own else _tokenizer_class(tokenizer)
        made[TOKENIZER] = tokenizer
        name = next((str(name) for name in named if name), "Wav2Vec2Processor")
        for values in made.values():
            values["processor_class"] = name.removesuffix(WITH_LANGUAGE_MODEL)
    elif head.kind == "ctc":
        logger.warning("warning: %s: no vocab.json there, so its outputs have no names and no pipeline runs", source)
    for values in made.values():
        values.pop("auto_map", None)
    texts = {name: json.dumps(values, ensure_ascii=False, indent=2) + "\n" for name, values in made.items()}
    return kept | {name: text.encode() for name, text in texts.items()}


def _fresh_extractor(encoder: EncoderConfig) -> dict[str, Any]:
    from transformers import Wav2Vec2FeatureExtractor

    made: dict[str, Any] = Wav2Vec2FeatureExtractor(
        sampling_rate=encoder.sampling_rate, return_attention_mask=True
    ).to_dict()
    return made


def _tokenizer_class(tokenizer: Mapping[str, Any]) -> str:
    return str(tokenizer.get("tokenizer_class") or "Wav2Vec2CTCTokenizer")
