"""Scores in a model card: for people always, for the hub where they can be compared with others'."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import load_encoder
from ..evaluation.published import COLUMNS
from ..evaluation.results import make_table, markdown, results_of
from ..run.folder import evaluation_of
from .model_card import SCORES, harmless, read_card, set_section, write_card

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

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
    title = next((line.removeprefix("# ") for line in card.text.splitlines() if line.startswith("# ")), "")
    card.data["model_name"] = title if comparable else None
    card.data["eval_results"] = [
        EvalResult(
            task_type=HUB_TASKS[column.task],
            dataset_type="superb",
            dataset_name="SUPERB",
            dataset_config=column.task,
            dataset_split="test",
            metric_type=column.measure,
            metric_name=column.title.rpartition(" ")[0],
            metric_value=round(comparable[column.task]["metrics"][column.measure], 4),
        )
        for column in COLUMNS
        if column.task in comparable
    ] or None


def update_card(run: Path) -> None:
    """Put what RUN/evaluation has on RUN/model into its card; nothing happens where one of them is not there.

    Raises:
        InputError: the student or its card cannot be read.
    """
    evaluation, path = evaluation_of(run / "model"), run / "model" / "README.md"
    if evaluation is None or not path.is_file():
        return
    results = results_of(load_encoder(run / "model"), evaluation)
    if not results:
        logger.warning("%s: no result of %s, whose card stays as it is", evaluation, run / "model")
        return
    card = read_card(path)
    set_scores(card, results)
    write_card(card, path)
    logger.info("%s: scores of %s", path, ", ".join(results))
