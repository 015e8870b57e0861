"""Scores in a model card: for people always, for the hub where they can be compared with others'."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import load_model
from ..evaluation.kept import kept
from ..evaluation.own_head import FILE, MEASURES, head_table, read_own_head_result
from ..evaluation.published import COLUMNS
from ..evaluation.results import Table, make_table, markdown, markdown_line, read_results, results_of
from ..evaluation.upstream import model_fingerprint
from ..heads import SpeechModel
from ..markdown import escaped
from ..quantities import human
from ..run.folder import evaluation_of
from ..run.records import read_record
from .model_card import SCORES, harmless, read_card, set_section, write_card
from .runtimes import read_runtimes, runtime_text
from .score_tables import score, shares

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

OWN_HEAD_SCORES, RUNTIME_COSTS = "Scores of its own head", "Runtimes"
"""The sections."""


def set_scores(card: ModelCard, results: dict[str, dict[str, Any]], beside: Mapping[str, Any] | None = None) -> None:
    """Write an encoder's results into its card: all of them as a table, and those that are SUPERB's as metadata.

    Results on synthetic corpora are titled so, and neither they nor those of other settings than the protocol's are
    given to the hub, which would show them beside others'.

    Args:
        card: of the encoder.
        results: task → contents of its JSON, one at least.
        beside: "teacher" and "filterbanks" → the same of these, as far as they were measured on the same data.
    """
    from huggingface_hub import EvalResult

    table = make_table({"this model": results, **(beside or {})}, None)
    text = f"""**{harmless(table.title)}**

{_beside(table)}

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


def _beside(table: Table) -> str:
    """A row for every measure, the models beside each other, then the notes."""
    rows = {row.model: asdict(row) for row in table.rows}
    mine, teacher, floor = (rows.get(name) for name in ("this model", "teacher", "filterbanks"))
    assert mine is not None
    columns = [column for column in table.columns if column.name in mine["scores"]]
    share = None if teacher is None or floor is None else kept(mine, teacher, floor)
    heading, lines = ["", "test items", *rows], []
    lines.append(
        ["parameters", "", *(human(row["parameters"]) if row["parameters"] else "none" for row in rows.values())]
    )
    for column in columns:
        items = mine["items"].get(column.name)
        cells = [score(row, column.name) for row in rows.values()]
        lines.append([column.title, "" if items is None else f"{items:,}", *cells])
    if mine["superb_s"] is not None:
        whole = ("" if row["superb_s"] is None else f"{row['superb_s']:.0f}" for row in rows.values())
        lines.append(["superb_s ↑", "", *whole])
    notes = [*table.notes]
    if share is not None:
        heading.append("kept")
        lines = [[*line, ""] for line in lines]
        for line, column in zip(lines[1:], columns, strict=False):
            line[-1] = shares(share.by_measure.get(column.name))
        if share.overall is not None:
            lines.append([f"mean of {share.tasks} tasks", *[""] * (len(heading) - 2), shares(share.overall)])
        notes.append("Kept: 0 % is filterbanks, 100 % the teacher.")
    if any(row["intervals"] for row in rows.values()):
        notes.append("In brackets: 95 % intervals over the test items; another seed is not in them.")
    said = [markdown_line(heading), markdown_line(["---", *["---:"] * (len(heading) - 1)]), *map(markdown_line, lines)]
    return "\n".join([*said, "", *(f"{escaped(note)}  " for note in notes)])


def update_card(run: Path) -> None:
    """Put what RUN/evaluation and RUN/runtimes.json have on RUN/model into its card; nothing where there is neither.

    Raises:
        InputError: the student, its card or one of those files cannot be read.
    """
    path = run / "model" / "README.md"
    if not path.is_file():
        return
    folder = evaluation_of(run / "model") or evaluation_of(run / "model", FILE)
    runtimes = read_runtimes(run)
    if folder is None and runtimes is None:
        return
    card, told = read_card(path), []
    if runtimes is not None:
        set_section(card, RUNTIME_COSTS, runtime_text(runtimes), after="Size and speed")
        told.append("costs in runtimes")
    found = [] if folder is None else put_scores(card, load_model(run / "model"), folder, run)
    if folder is not None and not found:
        logger.warning("%s: no result of %s, so its card has none", folder, run / "model")
    if found:
        told.append(f"scores of {', '.join(found)}")
    if told:
        write_card(card, path)
        logger.info("%s: %s", path, "; ".join(told))


def put_scores(card: ModelCard, model: SpeechModel, folder: Path, run: Path | None) -> list[str]:
    """Write what a folder of `evaluate` has on exactly this model into a card; what that was.

    Args:
        card: of the model.
        model: whose results are looked for.
        folder: of `evaluate`.
        run: that the model is of, whose teacher's scores stand beside; None for another model.

    Raises:
        InputError: a result is damaged.
    """
    results = results_of(model.encoder, folder)
    if results:
        set_scores(card, results, _others(results, folder, run))
    own = own_head_of(model, folder) if model.head is not None else None
    if own is not None:
        set_own_head(card, own)
    return [*results, *(["its own head"] if own is not None else [])]


def _others(mine: Mapping[str, Any], folder: Path, run: Path | None) -> dict[str, Any]:
    """Results of the teacher and of filterbanks in the same folder, in the model's tasks; told by their parameters."""
    roles = {0: "filterbanks"}
    if run is not None and (run / "result.json").is_file():
        outcome = read_record(run / "result.json", "outcome")
        roles[sum(outcome["teacher"]["parameters"].values())] = "teacher"
    found = {}
    for tasks in read_results(folder).values():
        role = roles.get(next(iter(tasks.values()))["parameters"])
        shared = {task: values for task, values in tasks.items() if task in mine}
        if role is not None and shared:
            found[role] = shared
    return {role: found[role] for role in ("teacher", "filterbanks") if role in found}


def own_head_of(model: SpeechModel, folder: Path) -> dict[str, Any] | None:
    """The result of exactly this model's own head in a folder; None if there is none."""
    result = read_own_head_result(folder)
    mine = result is not None and result["settings"].get("model") == model_fingerprint(model)
    return result if mine else None
