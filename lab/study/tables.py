"""Every table of the study from its records: Markdown and JSON in the results' folder, and the marked places in docs/.

A place is a pair of comments, `<!-- study: NAME -->` and `<!-- end -->`; what lies between them is written anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any, NamedTuple

import numpy as np

from lab.study.figures import draw_figures
from lab.study.grid import Study
from skill_speech.evaluation.kept import MARGIN, gain
from skill_speech.evaluation.published import COLUMNS, Column
from skill_speech.files import atomic_write, write_json
from skill_speech.quantities import human
from skill_speech.similarity import cluster_layers, equal_partition

Record = dict[str, Any]

NAMES = {"skill": "SKILL", "dphubert": "DPHuBERT"}
GATES = "sparsity at the end of stage 1, %"
"""Title of what the gates had come to when surgery cut the rest."""


class Scores:
    """SUPERB's kind of score with the lab's own ends: 0 for filterbanks, 1000 for the teacher, in every task.

    Both ends are means over the seeds there are. A task in which the teacher is not clearly better than filterbanks
    says nothing about a student and is left out, and named.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.floor = _means([record for record in records if record["kind"] == "fbank"])
        self.teachers = {
            name: _means([record for record in records if record["kind"] == "teacher" and record["teacher"] == name])
            for name in sorted({record["teacher"] for record in records if record["kind"] == "teacher"})
        }

    def columns(self, teacher: str) -> list[Column]:
        """The measures that count."""
        top = self.teachers.get(teacher, {})
        return [
            column
            for column in COLUMNS
            if column.name in top and column.name in self.floor and gain(column, self.floor, top) > MARGIN
        ]

    def share(self, record: Record, column: Column) -> float | None:
        """A measure between filterbanks (0) and teacher (1000); None where it does not count or is missing."""
        if column not in self.columns(record["teacher"]) or column.name not in record["metrics"]:
            return None
        floor, top = self.floor[column.name], self.teachers[record["teacher"]][column.name]
        return 1000 * (record["metrics"][column.name] - floor) / (top - floor)

    def of(self, record: Record, tasks: Collection[str]) -> float | None:
        """The score of a record over some tasks; None without its baselines or one of them."""
        by_task: dict[str, list[float]] = {}
        for column in self.columns(record["teacher"]):
            if column.task not in tasks:
                continue
            share = self.share(record, column)
            if share is None:
                return None
            by_task.setdefault(column.task, []).append(share)
        return mean(mean(shares) for shares in by_task.values()) if by_task else None


def write_tables(study: Study, results: Path) -> None:
    """headline.json, the tables and the figures, from RESULTS/records/*.json; then the marked places."""
    paths = sorted((results / "records").glob("*.json"))
    everything = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    records = [record for record in everything if record["kind"] in ("student", "teacher", "fbank")]
    calibration = next((record for record in everything if record["kind"] == "calibration"), None)
    scores = Scores(records)
    cells = {cell.id: cell for cell in study.cells()}
    missing = [name for name in cells if name not in {record["id"] for record in records}]
    of_group = {group["name"]: _of_group(group, study, records, scores) for group in study.groups}
    tables = {"baselines": _baselines(records, scores), "missing": _missing(missing, len(cells))}
    if "headline" in of_group:
        tables |= {"headline": _headline(of_group["headline"], scores), "summary": _summary(of_group["headline"])}
        tables["fidelity"] = _fidelity(records)
    if "sparsity" in of_group:
        tables["sparsity"] = _sparsity(study, of_group["sparsity"])
        tables["stage1"] = _stage1(study, [*of_group["sparsity"], *of_group.get("early-surgery", [])])
    if "early-surgery" in of_group:
        tables["early-surgery"] = _by_seed(study, of_group["early-surgery"])
    tables |= {name: _variants(study, of_group[name]) for name in ("ablations", "objectives") if name in of_group}
    if study.calibration:
        tables |= {"calibration": _calibration(calibration), "clusters": _clusters(calibration)}
    if pilots := [json.loads(path.read_text(encoding="utf-8")) for path in (results / "pilot").glob("*.json")]:
        tables["pilot"] = _pilot(pilots)
    if "headline" in of_group:
        kept = ("id", "kind", "teacher", "method", "sparsity", "seed", "params", "score", "metrics")
        write_json(results / "headline.json", [{name: one[name] for name in kept} for one in of_group["headline"]])
    heading = [f"{study.note.capitalize()}.", ""] if study.note else []
    for name, lines in tables.items():
        with atomic_write(results / f"{name}.md") as temporary:
            temporary.write_text("\n".join([*heading, *lines]) + "\n", encoding="utf-8")
    draw_figures(results, records, of_group, calibration, scores.share, study.note)
    for page in study.pages:
        _fill(Path(page), tables)


def _of_group(group: dict[str, Any], study: Study, records: Sequence[Record], scores: Scores) -> list[Record]:
    """A group's records, whatever their seeds, with their scores over the group's tasks."""
    tasks = group.get("tasks", study.tasks).split(",")
    kinds = {
        (cell.kind, cell.teacher, cell.variant, cell.sparsity) for cell in study.cells() if group["name"] in cell.groups
    }
    return [
        record
        | {
            "score": scores.of(record, tasks),
            "score_in_noise": scores.of(record | {"metrics": record.get("metrics_in_noise", {})}, tasks),
            "tasks": tasks,
        }
        for record in records
        if (record["kind"], record["teacher"], record["method"], record["sparsity"]) in kinds
    ]


def _headline(records: Sequence[Record], scores: Scores) -> list[str]:
    columns = _columns(records)
    lines = [_row(["teacher", "", "params", "seeds", *(column.title for column in columns), "score ↑"])]
    lines.append(_row(["---"] * 2 + ["---:"] * (len(columns) + 3)))
    fbank = [record for record in records if record["kind"] == "fbank"]
    if fbank:
        lines.append(_line("", "filterbanks", fbank, columns))
    for teacher in sorted({record["teacher"] for record in records} - {""}):
        mine = [record for record in records if record["teacher"] == teacher]
        lines.append(_line(teacher, "teacher", [one for one in mine if one["kind"] == "teacher"], columns))
        methods = list(dict.fromkeys(record["method"] for record in mine if record["kind"] == "student"))
        for method in sorted(methods, key=lambda name: name != "skill"):
            lines.append(
                _line(teacher, NAMES.get(method, method), [one for one in mine if one["method"] == method], columns)
            )
    lines.append("")
    for teacher in sorted({record["teacher"] for record in records} - {""}):
        lines.append(_verdict(teacher, records, columns))
        left_out = [column.title for column in columns if column not in scores.columns(teacher)]
        if left_out:
            lines.append(
                f"Left out of the score of {teacher}, whose teacher is hardly better there: {', '.join(left_out)}.  "
            )
    return lines


def _summary(records: Sequence[Record]) -> list[str]:
    """The scores of both methods alone, and what their difference means."""
    lines = [_row(["teacher", "parameters", "a student's", "SKILL", "DPHuBERT", "difference"])]
    lines.append(_row(["---"] + ["---:"] * 4 + ["---"]))
    for one in records:
        pairs = _pairs(one["teacher"], records)
        if one["kind"] == "teacher" and len(pairs) > 1:
            better, difference, spread = _compare([(ours["score"], theirs["score"]) for ours, theirs in pairs])
            said = f"{difference:+.0f}, spread {spread:.0f}: {f'{NAMES[better]} is better' if better else 'a tie'}"
            scores = [_spread([pair[side]["score"] for pair in pairs], 0) for side in (0, 1)]
            size = human(mean(student["params"] for pair in pairs for student in pair))
            lines.append(_row([one["teacher"], human(one["params"]), size, *scores, said]))
    return lines


def _verdict(teacher: str, records: Sequence[Record], columns: Sequence[Column]) -> str:
    """Who is better, by score and by measure: a difference below the spread of the seeds is a tie."""
    pairs = _pairs(teacher, records)
    if len(pairs) < 2:
        return f"{teacher}: fewer than two seeds of both methods: no verdict.  "
    better, difference, spread = _compare([(ours["score"], theirs["score"]) for ours, theirs in pairs])
    said = f"{NAMES[better]} is better" if better else "a tie"
    clear: dict[str, list[str]] = {"skill": [], "dphubert": []}
    for column in columns:
        sign = 1 if column.higher_is_better else -1
        found, *_ = _compare([tuple(sign * one["metrics"][column.name] for one in pair) for pair in pairs])
        if found:
            clear[found].append(column.title.rstrip(" ↑↓"))
    tasks = "; ".join(f"{NAMES[method]} in {', '.join(names)}" for method, names in clear.items() if names)
    return (
        f"{teacher}: {said} ({difference:+.0f}, spread {spread:.0f}, {len(pairs)} seeds). "
        f"Single measures, beyond their spread: {tasks or 'none'}.  "
    )


def _pairs(teacher: str, records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """The scored students of SKILL and of DPHuBERT with the same seed."""
    by_method = {
        name: {
            one["seed"]: one
            for one in records
            if (one["teacher"], one["method"]) == (teacher, name) and one["score"] is not None
        }
        for name in NAMES
    }
    seeds = sorted(set(by_method["skill"]) & set(by_method["dphubert"]))
    return [(by_method["skill"][seed], by_method["dphubert"][seed]) for seed in seeds]


def _compare(pairs: Sequence[tuple[float, ...]]) -> tuple[str, float, float]:
    """The better method, "" where the means differ by no more than the seeds' spread; the difference; the spread."""
    ours, theirs = zip(*pairs, strict=True)
    difference, spread = mean(ours) - mean(theirs), (stdev(ours) ** 2 + stdev(theirs) ** 2) ** 0.5
    return ("" if abs(difference) <= spread else "skill" if difference > 0 else "dphubert"), difference, spread


def _sparsity(study: Study, records: Sequence[Record]) -> list[str]:
    students = [record for record in records if record["kind"] == "student"]
    shares = sorted({share for group in study.groups if group["name"] == "sparsity" for share in group["sparsities"]})
    lines = [_row(["teacher", "method", *(f"{share:.0%}" for share in shares)])]
    lines.append(_row(["---", "---", *["---:"] * len(shares)]))
    for teacher, method in sorted({(one["teacher"], one["method"]) for one in students}, key=_skill_first):
        mine = [one for one in students if (one["teacher"], one["method"]) == (teacher, method)]
        by_share = [[one["score"] for one in mine if one["sparsity"] == share and _scored(one)] for share in shares]
        cells = [f"{_spread(values, 0)} ({len(values)})" if values else "not run" for values in by_share]
        lines.append(_row([teacher, NAMES.get(method, method), *cells]))
    return [*lines, "", f"{_tasks(records)} In brackets: seeds."]


def _variants(study: Study, records: Sequence[Record]) -> list[str]:
    """One row per variant and share removed; less than two standard errors from SKILL is a tie.

    Variants differ in how much their seeds do: the spread is that of the two that are compared, where both have several
    seeds, and that of all variants together where not.
    """
    students = [record for record in records if record["kind"] == "student"]
    if not students:
        return ["Not run."]
    columns = [column for column in _columns(students) if column.task in students[0]["tasks"]]
    measured = [one for one in MEASURED if any(one.values_of([student]) for student in students)]
    titles = ["teacher", "removed", "variant", "seeds", "params", "MACs/s", *(column.title for column in columns)]
    titles += [title for one in measured for title in (one.title, "to SKILL")]
    lines = [_row([*titles, GATES]), _row(["---"] * 3 + ["---:"] * (len(titles) - 2))]
    by_variant: dict[tuple[str, float | None, str], list[Record]] = {}
    for one in students:
        by_variant.setdefault((one["teacher"], one["sparsity"], one["method"]), []).append(one)
    order = list(study.variants)
    for teacher, share, method in sorted(
        by_variant, key=lambda key: (key[0], key[1] is None, key[1] or 0.0, order.index(key[2]))
    ):
        mine, skill = by_variant[teacher, share, method], by_variant.get((teacher, share, "skill"), [])
        cells = [teacher, "" if share is None else f"{share:.0%}", NAMES.get(method, method), str(len(mine))]
        cells += [human(mean(one[name] for one in mine)) for name in ("params", "macs")] + _cells(mine, columns)
        for measure in measured:
            values, base = measure.values_of(mine), measure.values_of(skill)
            everybody = [measure.values_of(same) for (*of, _), same in by_variant.items() if of == [teacher, share]]
            pair = [values, base]
            spread = _pooled([[*one.values()] for one in (pair if min(map(len, pair)) > 1 else everybody)])
            said = "" if method == "skill" else _to_base(values, base, spread, measure.digits)
            cells += [_spread([*values.values()], measure.digits), said]
        lines.append(_row([*cells, _spread([*_gates_of(mine).values()], 1)]))
    return [
        *lines,
        "",
        f"{_tasks(records)} To SKILL: against its students of the same size with the same seeds. (tie): less than two "
        "standard errors, by the spread of the seeds of the two, or of all variants if one of them has a single seed.",
    ]


def _by_seed(study: Study, records: Sequence[Record]) -> list[str]:
    """Score and knowledge of every student of a group, seed by seed: pairs of one seed are to be compared."""
    students = [record for record in records if record["kind"] == "student"]
    if not students:
        return ["Not run."]
    seeds = sorted({one["seed"] for one in students})
    numbered = ", ".join(map(str, seeds))
    titles = [f"score of seeds {numbered} ↑", "mean", f"known of the teacher, %, of seeds {numbered} ↑", "mean"]
    titles += [f"{GATES}, of seeds {numbered}", "loss after surgery ↓"]
    lines = [_row(["teacher", "variant", "updates", *titles]), _row([*["---"] * 3, *["---:"] * len(titles)])]
    order = list(study.variants)
    for teacher, method in sorted(
        {(one["teacher"], one["method"]) for one in students}, key=lambda key: order.index(key[1])
    ):
        mine = [one for one in students if (one["teacher"], one["method"]) == (teacher, method)]
        cells = [teacher, NAMES.get(method, method)]
        cells.append(" + ".join(str(mine[0]["compress"][stage]["steps"]) for stage in ("stage1", "stage2")))
        for values, digits in ((_scores_of(mine), 0), (_known_of(mine), 1)):
            cells.append(_each(values, seeds, digits))
            cells.append(_spread([*values.values()], digits))
        cells.append(_each(_gates_of(mine), seeds, 1))
        cells.append(_each({one["seed"]: one["loss_after_surgery"] for one in mine}, seeds, 2))
        lines.append(_row(cells))
    return lines


def _stage1(study: Study, records: Sequence[Record]) -> list[str]:
    """How far stage 1 got in the students from which most is removed, and what it cost to cut the rest."""
    students = {one["id"]: one for one in records if one["kind"] == "student" and one["sparsity"] is not None}
    if not students:
        return ["Not run."]
    most = max(one["sparsity"] for one in students.values())
    mine = [one for one in students.values() if one["sparsity"] == most]
    order = list(study.variants)
    lines = [_row([f"{most:.0%} removed", "variant", "seeds", GATES, "loss after surgery ↓", "loss at the end ↓"])]
    lines.append(_row(["---"] * 6))
    for teacher, method in sorted(
        {(one["teacher"], one["method"]) for one in mine}, key=lambda key: (key[0], order.index(key[1]))
    ):
        same = [one for one in mine if (one["teacher"], one["method"]) == (teacher, method)]
        seeds = sorted(one["seed"] for one in same)
        cells = [teacher, NAMES.get(method, method), ", ".join(map(str, seeds)), _each(_gates_of(same), seeds, 1)]
        for loss in ("loss_after_surgery", "loss"):
            cells.append(_each({one["seed"]: one[loss] for one in same}, seeds, 2))
        lines.append(_row(cells))
    return lines


def _each(values: Mapping[int, float], seeds: Sequence[int], digits: int) -> str:
    """Seed by seed."""
    return ", ".join(_number(values.get(seed), digits) or "not run" for seed in seeds)


def _to_base(values: Mapping[int, float], base: Mapping[int, float], spread: float | None, digits: int) -> str:
    """The mean difference over the seeds that both have, said to be a tie below two standard errors."""
    seeds = sorted(set(values) & set(base))
    if not seeds or spread is None:
        return ""
    difference, noise = mean(values[seed] - base[seed] for seed in seeds), spread * (2 / len(seeds)) ** 0.5
    return f"{difference:+.{digits}f}{' (tie)' if abs(difference) <= 2 * noise else ''}"


def _pooled(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups, all of them together; None where no group has two values."""
    several = [values for values in groups if len(values) > 1]
    if not several:
        return None
    return (sum(variance(one) * (len(one) - 1) for one in several) / sum(len(one) - 1 for one in several)) ** 0.5


def _scored(record: Record) -> bool:
    return record["score"] is not None


def _scores_of(records: Sequence[Record], name: str = "score") -> dict[int, float]:
    """Scores by seed."""
    return {one["seed"]: one[name] for one in records if one.get(name) is not None}


def _known_of(records: Sequence[Record], name: str = "explained") -> dict[int, float]:
    """Per cent of the variance of the teacher's layers that students explain, mean over the layers, by seed."""
    known = {one["seed"]: one.get("fidelity", {}).get(name) for one in records}
    return {seed: 100 * mean(layers) for seed, layers in known.items() if layers}


class Measure(NamedTuple):
    """What variants are compared by: its title, its values by seed, and its digits after the point."""

    title: str
    values_of: Callable[[Sequence[Record]], dict[int, float]]
    digits: int


MEASURED = (
    Measure("score ↑", _scores_of, 0),
    Measure("known of the teacher, % ↑", _known_of, 1),
    Measure("score in noise ↑", partial(_scores_of, name="score_in_noise"), 0),
    Measure("known in noise, % ↑", partial(_known_of, name="explained_in_noise"), 1),
)


def _gates_of(records: Sequence[Record]) -> dict[int, float]:
    """Per cent of the teacher's parameters that the gates had removed at the last look of stage 1, by seed.

    Of a budget of MACs the gates' share is one of MACs and is left out.
    """
    curves = {
        one["seed"]: one.get("curves", {}).get("stage1", {}).get("train/sparsity_expected")
        for one in records
        if one["sparsity"] is not None
    }
    return {seed: 100 * curve[-1][1] for seed, curve in curves.items() if curve}


def _tasks(records: Sequence[Record]) -> str:
    return f"Scores over {', '.join(name.upper() for name in records[0]['tasks'])}." if records else ""


def _fidelity(records: Sequence[Record]) -> list[str]:
    """Per cent of the variance of every teacher layer that a student explains, means over the seeds."""
    groups: dict[tuple[str, str, float], list[list[float]]] = {}
    gates: dict[tuple[str, str, float], list[float]] = {}
    for one in records:
        if one["kind"] == "student" and "fidelity" in one and one["method"] in NAMES:
            key = (one["teacher"], one["method"], one["sparsity"])
            groups.setdefault(key, []).append(one["fidelity"]["explained"])
            gates.setdefault(key, []).extend(_gates_of([one]).values())
    if not groups:
        return ["Not run."]
    layers = range(max(len(curve) for curves in groups.values() for curve in curves))
    lines = [_row(["teacher", "removed", "method", "seeds", *(f"h_{layer}" for layer in layers), "mean", GATES])]
    lines.append(_row(["---", "---:", "---"] + ["---:"] * (len(layers) + 3)))
    for teacher, method, share in sorted(groups, key=lambda key: (key[0], key[2], key[1] != "skill")):
        curves = groups[teacher, method, share]
        numbers = [_number(100 * mean(values), 1) for values in zip(*curves, strict=True)]
        numbers += [_spread([100 * mean(curve) for curve in curves], 1), _spread(gates[teacher, method, share], 1)]
        lines.append(_row([teacher, f"{share:.0%}", NAMES[method], str(len(curves)), *numbers]))
    return lines


def _calibration(record: Record | None) -> list[str]:
    if record is None:
        return ["Not run."]
    lines = [_row(["teacher", "audio", "largest difference of CKA", "mean difference", "agreement of clusters"])]
    lines.append(_row(["---", "---:", "---:", "---:", "---:"]))
    for name, teacher in record["teachers"].items():
        for seconds in record["options"]["seconds"]:
            rows = [row for row in teacher["samples"] if row["seconds"] == seconds]
            lines.append(
                _row(
                    [
                        name,
                        f"{seconds:g} s",
                        f"{max(row['largest_difference'] for row in rows):.4f}",
                        f"{mean(row['mean_difference'] for row in rows):.4f}",
                        f"{mean(row['agreement'] for row in rows):.2f}",
                    ]
                )
            )
    return lines


def _clusters(record: Record | None) -> list[str]:
    """The clusters of every way to make them, from the similarities of the largest sample."""
    if record is None:
        return ["Not run."]
    teachers = {name: np.array(teacher["cka"]) for name, teacher in record["teachers"].items()}
    ways: list[tuple[str, dict[str, Any]]] = [(f"average linkage, K = {K}", {"clusters": K}) for K in (2, 3, 4, 6, 9)]
    ways += [
        ("average linkage, neighbors only, K = 4", {"clusters": 4, "contiguous": True}),
        ("complete linkage, K = 4", {"clusters": 4, "linkage": "complete"}),
        ("single linkage, K = 4", {"clusters": 4, "linkage": "single"}),
        ("average linkage, K = 4, without h_0", {"clusters": 4, "first_layer": 1}),
    ]
    lines = [_row(["layers grouped by", *teachers]), _row(["---"] * (len(teachers) + 1))]
    for name, way in ways:
        first = way.get("first_layer", 0)
        found = [cluster_layers(cka_LL[first:, first:], **way).groups for cka_LL in teachers.values()]
        lines.append(_row([name, *(", ".join(_layers(group) for group in groups) for groups in found)]))
    groups = [equal_partition(range(len(cka_LL)), 4) for cka_LL in teachers.values()]
    return [*lines, _row(["equal partition, K = 4", *(", ".join(map(_layers, found)) for found in groups)])]


def _layers(group: Sequence[int]) -> str:
    """1–4 for neighbors, 1+3+4 for layers with a gap."""
    if len(group) > 1 and list(group) == list(range(group[0], group[-1] + 1)):
        return f"{group[0]}–{group[-1]}"
    return "+".join(map(str, group))


def _pilot(records: Sequence[Record]) -> list[str]:
    """How much more steps gain, in loss and in tasks."""
    if not records:
        return ["Not run."]
    columns = _columns(records)
    lines = [_row(["updates of both stages", "loss after surgery", "after stage 2", *(one.title for one in columns)])]
    lines.append(_row(["---:"] * (len(columns) + 3)))
    for record in sorted(records, key=lambda one: _steps(one)):
        stages = [record["compress"][stage]["steps"] for stage in ("stage1", "stage2")]
        losses = [f"{record[name]:.4f}" for name in ("loss_after_surgery", "loss")]
        scores = [_number(record["metrics"][column.name], 1) for column in columns]
        lines.append(_row([" + ".join(map(str, stages)), *losses, *scores]))
    return lines


def _steps(record: Record) -> int:
    return int(record["compress"]["stage1"]["steps"])


def _baselines(records: Sequence[Record], scores: Scores) -> list[str]:
    columns = _columns(records)
    lines = [_row(["model", "seeds", *(column.title for column in columns)])]
    lines.append(_row(["---", "---:", *["---:"] * len(columns)]))
    for name in ("", *scores.teachers):
        kind = "teacher" if name else "fbank"
        mine = [one for one in records if one["kind"] == kind and one["teacher"] == name]
        if mine:
            lines.append(_row([name or "filterbanks", str(len(mine)), *_cells(mine, columns)]))
        noisy = [one | {"metrics": one["metrics_in_noise"]} for one in mine if "metrics_in_noise" in one]
        if noisy:
            lines.append(_row([f"{name}, in noise", str(len(noisy)), *_cells(noisy, columns)]))
    return lines


def _missing(missing: Sequence[str], count: int) -> list[str]:
    if not missing:
        return [f"All {count} cells were run."]
    return [f"Not run, {len(missing)} of {count} cells: {', '.join(missing)}."]


def _line(teacher: str, name: str, records: Sequence[Record], columns: Sequence[Column]) -> str:
    if not records:
        return _row([teacher, name, "not run"])
    size = human(mean(record["params"] for record in records)) if records[0]["params"] else "0"
    scored = [record["score"] for record in records if record["score"] is not None]
    score = (
        _spread(scored, 0)
        if scored and records[0]["kind"] == "student"
        else {"fbank": "0", "teacher": "1000"}.get(records[0]["kind"], "")
    )
    return _row([teacher, name, size, str(len(records)), *_cells(records, columns), score])


def _cells(records: Sequence[Record], columns: Sequence[Column]) -> list[str]:
    values = [[one["metrics"][column.name] for one in records if column.name in one["metrics"]] for column in columns]
    return [_spread(numbers, 1) for numbers in values]


def _columns(records: Sequence[Record]) -> list[Column]:
    return [column for column in COLUMNS if any(column.name in record["metrics"] for record in records)]


def _means(records: Sequence[Record]) -> dict[str, float]:
    names = {name for record in records for name in record["metrics"]}
    return {name: mean(one["metrics"][name] for one in records if name in one["metrics"]) for name in names}


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def _skill_first(names: tuple[str, str]) -> tuple[str, bool, str]:
    teacher, method = names
    return teacher, method != "skill", method


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _fill(page: Path, tables: dict[str, list[str]]) -> None:
    """Write the tables into the places that a page has for them."""
    if not page.exists():
        return
    before = text = page.read_text(encoding="utf-8")
    for name, lines in tables.items():
        place = re.compile(rf"(<!-- study: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = place.sub(lambda found, lines=lines: found[1] + "\n".join(lines) + "\n" + found[2], text)
    if text != before:
        with atomic_write(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
