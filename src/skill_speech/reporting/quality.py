"""Size against quality: the runs of a page, their teachers, and published models where these may stand beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..evaluation.kept import kept
from ..evaluation.metrics.bootstrap import Estimate
from ..evaluation.own_head import MEASURES
from ..evaluation.own_head.table import FRACTIONS
from ..evaluation.published import COLUMNS, filterbanks, published_rows, reference
from ..quantities import human
from .evidence import Evidence
from .markup import details, figure, legend, panels, paragraph, table
from .pictures import Spot, spots_picture


class Chart(NamedTuple):
    """One picture.

    Attributes:
        title: of it.
        over: what is drawn upwards.
        spots: models.
        floor: a value with a name that has no parameters, a line; None for none.
        note: what is not drawn, and why.
        digits: of values in words.
    """

    title: str
    over: str
    spots: list[Spot]
    floor: tuple[str, float] | None
    note: str
    digits: int = 0


def size_and_quality(runs: Sequence[Evidence]) -> str:
    """A chart for each kind of scores that the runs have."""
    charts = [*_of_tasks(runs), *_of_own_heads(runs)]
    if charts:
        return panels([_figure(chart) for chart in charts])
    if any(run.scores is not None for run in runs):
        return paragraph(
            "Not drawn: one number for quality needs the scores of teacher, student and filterbanks from one "
            "evaluation. Evaluate what is missing (fbank for filterbanks) into RUN/evaluation and write the report "
            "again.",
            "absent",
        )
    return paragraph("Not evaluated: quality is unknown.", "absent")


def _of_tasks(runs: Sequence[Evidence]) -> list[Chart]:
    """One chart for all runs that were scored on the same data, beside the same teacher."""
    together: dict[Any, list[Evidence]] = {}
    for run in runs:
        if run.scores is not None:
            data = tuple(sorted(run.scores.data.items()))
            together.setdefault((run.scores.title, data, run.teacher.total_parameters), []).append(run)
    charts = [
        _published(several) if not several[0].scores.incomparable else _shares(several)  # type: ignore[union-attr]
        for several in together.values()
    ]
    return [chart for chart in charts if chart is not None]


def _shares(runs: Sequence[Evidence]) -> Chart | None:
    """Between filterbanks and the teacher of the same evaluation."""
    spots: list[Spot] = []
    tasks: set[int] = set()
    for run in runs:
        found, teacher = run.kept, run.teacher_row
        if run.scores is None or found is None or found.overall is None or teacher is None:
            continue
        tasks.add(found.tasks)
        floor = next(row for row in run.scores.rows if run.role(row) == "filterbanks")
        for row in run.scores.rows:
            if row.get("source") or run.role(row) == "filterbanks":
                continue
            share = kept(row, teacher, floor).overall
            # The end of a scale has no interval.
            if share is not None:
                share = Estimate(share.value, math.nan, math.nan) if row is teacher else share
                spots.append(_spot(run, row, _times(share, 100), len(runs) > 1))
    if not spots:
        return None
    why = runs[0].scores.incomparable if runs[0].scores is not None else ""
    several = ", ".join(map(str, sorted(tasks)))
    return Chart(
        "Parameters and what is kept of the teacher",
        f"kept, % (mean of {several} task{'s' * (several != '1')})",
        _once(spots),
        ("filterbanks", 0.0),
        f"Published models are not drawn: {why}.",
    )


def _published(runs: Sequence[Evidence]) -> Chart | None:
    """On SUPERB's scale, over the measures that all runs have; published models beside them."""
    rows = [(run, row) for run in runs if run.scores for row in run.scores.rows if not row.get("source")]
    rows = [(run, row) for run, row in rows if run.role(row) != "filterbanks"]
    names = [column.name for column in COLUMNS if rows and all(column.name in row["scores"] for _, row in rows)]
    if not names:
        return None
    ends = [{"scores": {name: row["scores"][name] for name in names}} for row in (reference(), filterbanks())]
    spots = []
    for run, row in rows:
        found = kept(row, *ends).overall
        if found is not None:
            spots.append(_spot(run, row, _times(found, 1000), len(runs) > 1))
    sources = []
    for row in published_rows():
        scores = {name: row[name] for name in names if name in row}
        if row["params"] and len(scores) == len(names):
            found = kept({"scores": scores}, *ends).overall
            if found is not None:
                sources.append(row["source"])
                number = list(dict.fromkeys(sources)).index(row["source"]) + 1
                spots.append(Spot(f"{row['model']} [{number}]", "published", row["params"] * 1e6, _times(found, 1000)))
    tasks = {column.task: column.title.split()[0] for column in COLUMNS if column.name in names}
    return Chart(
        "Parameters and SUPERB score",
        "points",
        _once(spots),
        None,  # so far below all others that these would be one heap
        f"Over {', '.join(tasks.values())}: 0 is filterbanks, 1000 the best of wav2vec 2.0 and HuBERT in every "
        f"measure. {' '.join(f'[{number}] {one}.' for number, one in enumerate(dict.fromkeys(sources), 1))}",
    )


def _of_own_heads(runs: Sequence[Evidence]) -> list[Chart]:
    """The first measure of the models' own heads, of all runs that were scored on the same data."""
    together: dict[Any, list[tuple[Evidence, dict[str, Any]]]] = {}
    for run in runs:
        if run.own_head is not None:
            data = run.own_head["settings"].get("data", run.own_head["data"])
            together.setdefault((run.own_head["head"], data), []).append((run, run.own_head))
    charts = []
    for several in together.values():
        first = several[0][1]
        measure = next((name for name in MEASURES if name in first["model"]["metrics"]), None)
        if measure is None:
            continue
        spots = []
        for run, result in several:
            for kind, one in (("student", result["model"]), ("teacher", result["teacher"])):
                if one is not None and measure in one["metrics"]:
                    name = run.name if len(several) > 1 and kind == "student" else kind
                    spots.append(Spot(name, kind, one["parameters"], Estimate(**one["metrics"][measure])))
        unit = "" if measure in FRACTIONS else ", %"
        synthetic = f"SYNTHETIC ({first['synthetic']}). " if first["synthetic"] else ""
        charts.append(
            Chart(
                f"Parameters and {MEASURES[measure].rpartition(' ')[0]} of the model's own head",
                f"{MEASURES[measure].rpartition(' ')[0]}{unit} "
                f"({'higher' if MEASURES[measure].endswith('↑') else 'lower'} is better)",
                _once(spots),
                None,
                f"{synthetic}On {first['data']}; nothing that is published was measured on it.",
                4 if measure in FRACTIONS else 1,
            )
        )
    return charts


def _spot(run: Evidence, row: dict[str, Any], value: Estimate, several: bool) -> Spot:
    role = run.role(row)
    kind = role if role in ("student", "teacher") else "other"
    return Spot(run.name if several and role == "student" else str(row["model"]), kind, row["parameters"], value)


def _once(spots: Sequence[Spot]) -> list[Spot]:
    """Without those that several runs share: one teacher is one dot."""
    return list({(spot.name, spot.kind, spot.parameters, spot.value.value): spot for spot in spots}.values())


def _times(found: Estimate, factor: float) -> Estimate:
    return Estimate(*(factor * part for part in found))


def _figure(chart: Chart) -> str:
    kinds = list(dict.fromkeys(spot.kind for spot in chart.spots))
    marks = legend([(kind if kind != "other" else "other models", f"mark {kind}") for kind in kinds])
    label = f"{chart.title}: " + "; ".join(
        f"{spot.name}, {human(spot.parameters)} parameters: {said(spot.value, chart.digits)}" for spot in chart.spots
    )
    rows = [
        [spot.name, spot.kind, human(spot.parameters), said(spot.value, chart.digits)]
        for spot in sorted(chart.spots, key=lambda spot: spot.parameters)
    ]
    numbers = details("Sizes and scores as a table", table(["model", "", "parameters", chart.over], rows))
    bars = " Bars are 95 % intervals." if any(math.isfinite(spot.value.low) for spot in chart.spots) else ""
    picture = spots_picture(label, chart.spots, chart.over, floor=chart.floor, digits=chart.digits)
    return figure(chart.title, picture, f"{chart.note}{bars}", numbers, marks)


def said(value: Estimate, digits: int) -> str:
    """A value with its interval."""
    interval = f" [{value.low:.{digits}f}, {value.high:.{digits}f}]" if math.isfinite(value.low) else ""
    return f"{value.value:.{digits}f}{interval}"
