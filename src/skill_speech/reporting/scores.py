"""Scores in a model card: for people always, for the hub where they can be compared with others'."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import load_model
from ..evaluation.own_head import FILE, MEASURES, head_table, read_own_head_result
from ..evaluation.published import COLUMNS
from ..evaluation.results import make_table, markdown, results_of
from ..evaluation.upstream import model_fingerprint
from ..heads import SpeechModel
from ..run.folder import evaluation_of
from .model_card import SCORES, harmless, read_card, set_section, write_card

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

logger = logging.getLogger(__name__)

HUB_TASKS = {
    "pr": "automatic-speech-recognition",
    "asr": "automatic-speech-recognition",
    "ks": "audio-classification",
    "qbe": "query-by-example",
    "sid": "audio-classification",
    "asv": "speaker-verification",
    "sd": "speaker-diarization",
    "er": "audio-classification",
    "ic": "audio-classification",
    "sf": "slot-filling",
}
"""What the hub calls SUPERB's tasks; those that it has no name for have the field's."""

HUB_HEADS = {"ctc": "automatic-speech-recognition", "x-vector": "speaker-verification"}
"""What it calls the tasks of heads, where these are no classifiers."""

SUPERB, OWN_DATA = "superb", "own-data"
"""Kinds of data in the metadata: what it is on the hub, and that it is of the user's own."""

OWN_HEAD_SCORES = "Scores of its own head"
"""The section."""


def set_scores(card: ModelCard, results: dict[str, dict[str, Any]]) -> None:
    """Write an encoder's results into its card: all of them as a table, and those that are SUPERB's as metadata.

    Results on synthetic corpora are titled so, and neither they nor those of other settings than the protocol's are
    given to the hub, which would show them beside others'.

    Args:
        card: of the encoder.
        results: task → contents of its JSON, one at least.
    """
    from huggingface_hub import EvalResult

    table = make_table({"this model": results}, None)
    text = f"""**{harmless(table.title)}**

{markdown(table)}

By `skill-speech evaluate`: heads trained on the hidden states of the frozen encoder, in float32."""
    set_section(card, SCORES, text)
    comparable = {
        task: values for task, values in results.items() if not values["synthetic"] and not values["not_the_protocol"]
    }
    found = [
        EvalResult(
            task_type=HUB_TASKS[column.task],
            dataset_type=SUPERB,
            dataset_name="SUPERB",
            dataset_config=column.task,
            dataset_split="test",
            metric_type=column.measure,
            metric_name=column.title.rpartition(" ")[0],
            metric_value=round(comparable[column.task]["metrics"][column.measure], 4),
        )
        for column in COLUMNS
        if column.task in comparable
    ]
    others = [one for one in card.data.get("eval_results") or [] if one.dataset_type != SUPERB]
    _give_results(card, found + others)


def set_own_head(card: ModelCard, result: Mapping[str, Any]) -> None:
    """Write the scores of a model's own head into its card: as a table beside the teacher's, and as metadata.

    Those on synthetic data are titled so, and are not given to the hub.

    Args:
        card: of the model.
        result: contents of own_head.json.
    """
    from huggingface_hub import EvalResult

    shown = head_table(result)
    text = f"""**{harmless(shown.title)}**

{markdown(shown)}

By `skill-speech evaluate --own_head`, in float32, every utterance as if it were alone."""
    set_section(card, OWN_HEAD_SCORES, text, after=SCORES)
    data = harmless(result["data"])
    found = [
        EvalResult(
            task_type=HUB_HEADS.get(result["head"], "audio-classification"),
            dataset_type=OWN_DATA,
            dataset_name=data,
            metric_type=measure,
            metric_name=title.rpartition(" ")[0],
            metric_value=round(result["model"]["metrics"][measure]["value"], 4),
        )
        for measure, title in MEASURES.items()
        if measure in result["model"]["metrics"] and not result["synthetic"]
    ]
    others = [one for one in card.data.get("eval_results") or [] if one.dataset_type != OWN_DATA]
    _give_results(card, others + found)


def _give_results(card: ModelCard, results: list[EvalResult]) -> None:
    """Give the hub results, under the card's own title."""
    title = next((line.removeprefix("# ") for line in card.text.splitlines() if line.startswith("# ")), "")
    card.data["model_name"] = title if results else None
    card.data["eval_results"] = results or None


def update_card(run: Path) -> None:
    """Put what RUN/evaluation has on RUN/model into its card; nothing happens where one of them is not there.

    Raises:
        InputError: the student or its card cannot be read.
    """
    path = run / "model" / "README.md"
    if not path.is_file():
        return
    folder = evaluation_of(run / "model") or evaluation_of(run / "model", FILE)
    if folder is None:
        return
    card = read_card(path)
    found = put_scores(card, load_model(run / "model"), folder)
    if not found:
        logger.warning("%s: no result of %s, so its card is unchanged", folder, run / "model")
        return
    write_card(card, path)
    logger.info("%s: scores of %s", path, ", ".join(found))


def put_scores(card: ModelCard, model: SpeechModel, folder: Path) -> list[str]:
    """Write what a folder of `evaluate` has on exactly this model into a card; what that was.

    Raises:
        InputError: a result is damaged.
    """
    results = results_of(model.encoder, folder)
    if results:
        set_scores(card, results)
    own = own_head_of(model, folder) if model.head is not None else None
    if own is not None:
        set_own_head(card, own)
    return [*results, *(["its own head"] if own is not None else [])]


def own_head_of(model: SpeechModel, folder: Path) -> dict[str, Any] | None:
    """The result of exactly this model's own head in a folder; None if there is none."""
    result = read_own_head_result(folder)
    mine = result is not None and result["settings"].get("model") == model_fingerprint(model)
    return result if mine else None
