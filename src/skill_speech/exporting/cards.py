"""The model card of an exported folder: the model's own, adapted to the folder that it will be in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import IN_FOLDER
from ..errors import InputError
from ..heads import SpeechModel
from ..kernels.rounding import Rounding, rounded_maps
from ..reporting.model_card import LOADING, pipeline_tag, plain_card, read_card, set_section
from ..run.folder import evaluation_of, run_of
from .loading import LIBRARIES, how_to_load
from .measuring import Measurement

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

logger = logging.getLogger(__name__)


def card_of(loaded: SpeechModel, model: str, scores: str | None) -> ModelCard:
    """The model's own card, or a plain one, with the scores that there are."""
    path = Path(model)
    path = (path.parent if path.name in IN_FOLDER else path) / "README.md"
    card = read_card(path) if path.is_file() else plain_card(loaded, model)
    folder = Path(scores) if scores is not None else evaluation_of(model) or evaluation_of(model, "own_head.json")
    if folder is None:
        return card
    from ..reporting.scores import put_scores

    found = put_scores(card, loaded, folder, run_of(model))
    if found:
        logger.info("model card: scores of %s from %s", ", ".join(found), folder)
    elif scores is not None:
        raise InputError(
            f"{folder}: no result of {model}; skill-speech evaluate {model} --data CORPORA --output {folder} makes one"
        )
    return card


def adapt_card(
    card: ModelCard,
    loaded: SpeechModel,
    format: str,
    quantize: Rounding | None,
    hidden_states: str | None,
    repository: str | None,
    measurements: Sequence[Measurement],
) -> None:
    """Let a card speak of the folder that it will be in."""
    head = None if loaded.head is None else loaded.head.config
    text = how_to_load(
        format,
        width=loaded.encoder.config.hidden_size,
        head=head,
        hidden_states=hidden_states,
        quantize=quantize if any(rounded_maps(loaded.encoder)) else None,
        measurements=measurements,
        repository=repository,
    )
    set_section(card, LOADING, text)
    card.data["library_name"] = LIBRARIES.get(format)
    if head is not None or card.data.get("pipeline_tag") is not None:
        card.data["pipeline_tag"] = pipeline_tag(None if head is None else head.kind)
    if quantize and card.data.get("base_model") and not card.data.get("base_model_relation"):
        card.data["base_model_relation"] = "quantized"
    if quantize:  # scores are those of the float32 encoder
        card.data["model_name"] = card.data["eval_results"] = None
