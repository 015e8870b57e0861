"""The sections of the HTML report, in the order in which they are read; each shows all runs of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..evaluation.published import COLUMNS
from ..figures.output import inline_svg
from ..figures.plots import dendrogram, layer_weight_map, similarity_map
from ..figures.shapes import cluster_color, readable_on
from ..profiling import Profile
from ..quantities import duration, human
from ..similarity import LayerClusters, View
from .evidence import STAGES, Evidence, Scores
from .markup import Markup, details, figure, legend, panels, paragraph, section, table
from .pictures import Bar, Series, budget_picture, heads_picture, lines_picture, survivors_picture
from .quality import size_and_quality
from .runtimes import HEADING, read_runtimes, runtime_caption, runtime_rows
from .score_tables import own_head_of, scores_compared, scores_of
from .stages import heard, told_times
from .verdict import made_by, next_steps, verdict, warnings

# Files named on a page; bad_audio.json has more.
MOST_FILES = 200


class Section(NamedTuple):
    """A section: its anchor, its title, and what writes it."""

    name: str
    title: str
    write: Callable[[Sequence[Evidence]], str]


def write_sections(runs: Sequence[Evidence]) -> str:
    """All of them."""
    return "".join(section(one.name, one.title, one.write(runs)) for one in SECTIONS)


def _per_run(runs: Sequence[Evidence], write: Callable[[Evidence], str], *, beside: bool = True) -> str:
    """The same of every run; with its name where there are several, next to each other if that is of use."""
    if len(runs) == 1:
        return write(runs[0])
    parts = [f"<h3>{escape(run.name)}</h3>{write(run)}" for run in runs]
    return panels(parts) if beside else "".join(f'<div class="run">{part}</div>' for part in parts)


def _outcome(runs: Sequence[Evidence]) -> str:
    costs = _stats(runs[0]) if len(runs) == 1 else _comparison(runs) + scores_compared(runs)
    return _per_run(runs, _verdict, beside=False) + costs + _runtimes(runs) + _per_run(runs, scores_of, beside=False)


def _runtimes(runs: Sequence[Evidence]) -> str:
    """Tables of those runs that were measured in several runtimes."""
    parts = []
    for run in runs:
        values = read_runtimes(run.folder)
        if values is not None:
            name = f"{run.name}: " if len(runs) > 1 else ""
            parts.append(table(HEADING, runtime_rows(values), caption=name + runtime_caption(values)))
    return "".join(parts)


def _verdict(run: Evidence) -> str:
    """The outcome in words, and what to mind."""
    said = paragraph(verdict(run), "verdict")
    # In words too, for those who do not see the color.
    wrong = "".join(f"<li><strong>Warning:</strong> {escape(one)}</li>" for one in warnings(run))
    return said + (f'<ul class="warnings" aria-label="Warnings">{wrong}</ul>' if wrong else "")


def _next_steps(runs: Sequence[Evidence]) -> str:
    def write(run: Evidence) -> str:
        made = f"Finished on {run.finished[:10]}" if run.finished else "When it finished was not recorded"
        again = f"<p>{escape(made)}. To make the same run again:</p><p><code>{escape(made_by(run))}</code></p>"
        listed = "".join(
            f"<li>{escape(why)}:<br><code>{escape(command)}</code></li>" for why, command in next_steps(run)
        )
        return f'{again}<p>Next:</p><ul class="steps">{listed}</ul>'

    return _per_run(runs, write, beside=False)


def _stats(run: Evidence) -> str:
    teacher, student = run.teacher, run.student
    cards = [
        (
            "Parameters",
            human(student.total_parameters),
            f"{_share(student.total_parameters, teacher.total_parameters)} of the teacher's "
            f"{human(teacher.total_parameters)}",
        ),
        (
            "MACs per second of audio",
            human(student.total_macs),
            f"{_share(student.total_macs, teacher.total_macs)} of the teacher's {human(teacher.total_macs)}",
        ),
        (
            "Speed",
            f"{run.speedup:.1f}×",
            f"real-time factor {student.real_time_factor:.4f}, teacher {teacher.real_time_factor:.4f}; "
            f"{_timed(student)}",
        ),
        _loss_card(run),
    ]
    if run.outcome.get("head"):
        head, before = run.outcome["head"], run.outcome["outputs_after_surgery"]
        note = f"of the {head['kind']} head on held-out speech, {_loss(before)} after surgery; 0 is the teacher's"
        cards.append(("Distance of the outputs", _loss(run.outcome["outputs"]), note))
    said = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="figure">{escape(value)}</dd><dd class="more">{escape(more)}</dd></div>'
        for name, value, more in cards
    )
    told = told_times(run.outcome)
    note = paragraph(told[:1].upper() + told[1:] + ".", "note") if told else ""
    return f'<dl class="stats">{said}</dl>{note}'


def _loss_card(run: Evidence) -> tuple[str, str, str]:
    """How far stage 2 has come: the loss itself says little to anybody, since its scale is that of the targets."""
    after = run.outcome["loss"]
    if after is None:
        return "Distillation loss", "–", "no speech was held out to measure it"
    weights = run.settings.get("loss", {})
    bounded = weights.get("cosine_form") == "raw" and run.settings.get("distance", "l1-cosine") != "temporal"
    least = f"; it cannot be lower than {0 - float(weights['cosine']):g}" if bounded else ""
    change = _loss_change(run)
    if change is None:
        return "Distillation loss", _loss(after), f"on held-out speech{least}"
    return "Loss since surgery", change[0], f"{change[1]} on held-out speech{least}"


def _loss_change(run: Evidence) -> tuple[str, str] | None:
    """By what stage 2 changed the loss, and from where to where; None where that was not measured."""
    before, after = run.outcome["loss_after_surgery"], run.outcome["loss"]
    if before is None or after is None or not math.isfinite(before) or not math.isfinite(after):
        return None
    return f"{after - before:+.4f}".replace("-", "−"), f"from {_loss(before)} to {_loss(after)}"


def _changed(run: Evidence) -> str:
    change = _loss_change(run)
    return _loss(run.outcome["loss"]) if change is None else f"{change[0]} ({change[1]})"


def _comparison(runs: Sequence[Evidence]) -> str:
    heading = ["run", "method", "parameters", "share", "MACs / s", "share", "speed", "loss since surgery"]
    rows = [
        [
            run.name,
            str(run.settings["method"]),
            human(run.student.total_parameters),
            _share(run.student.total_parameters, run.teacher.total_parameters),
            human(run.student.total_macs),
            _share(run.student.total_macs, run.teacher.total_macs),
            f"{run.speedup:.1f}×",
            _changed(run),
        ]
        for run in runs
    ]
    parts = [table(heading, rows, caption="shares and speed against the teacher")]
    if not _same(runs, "teacher"):
        parts.append(paragraph("The runs have different teachers.", "note"))
    if not all(
        _same(runs, key)
        for key in ("method", "teacher", "loss", "clusters", "keep_layers", "scale_layers", "share_projections")
    ):
        parts.append(
            paragraph(
                "Losses of runs with other targets, weights or teachers do not measure the same thing: compare the "
                "scores of tasks.",
                "note",
            )
        )
    if len({(run.student.threads, run.student.seconds) for run in runs}) > 1:
        parts.append(paragraph("Speeds were measured with different threads or lengths.", "note"))
    return "".join(parts)


def _own_head(runs: Sequence[Evidence]) -> str:
    return _per_run(runs, own_head_of, beside=False)


def _similarity(runs: Sequence[Evidence]) -> str:
    def write(run: Evidence) -> str:
        if run.analysis is None:
            method = run.settings["method"]
            return paragraph(f"The method {method} does not look at similarity: this run has no analysis.", "absent")
        found = run.analysis
        measured = [found.cka_LL] if found.other_LL is None else [found.cka_LL, found.other_LL]
        lowest = min(float(cka_LL.min()) for cka_LL in measured)
        maps = [_map_figure(found.cka_LL, found.clusters, found.view, lowest)]
        if found.other_LL is not None:
            maps.append(_map_figure(found.other_LL, found.other_clusters(), found.other_view, lowest))
        return panels(maps) + panels([_tree_figure(found.clusters), _clusters(found.clusters)])

    return _per_run(runs, write)


def _map_figure(cka_LL: NDArray[np.float64], groups: LayerClusters, view: View, lowest: float) -> str:
    names = [f"h_{layer}" for layer in groups.layers]
    rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(names, cka_LL.tolist(), strict=True)]
    numbers = details("The map as a table", table(["", *names], rows, caption="linear CKA"))
    frames = "features as they are" if view == "raw" else "frames normalized to mean 0 and variance 1"
    caption = (
        f"Linear CKA of the teacher's layers, {frames}. A full border is a run of neighboring layers of a cluster; a "
        "dashed one joins the runs of a cluster that has several."
    )
    return figure(
        f"Similarity, {view} frames", inline_svg(similarity_map(cka_LL, groups, "", lowest)), caption, numbers
    )


def _tree_figure(groups: LayerClusters) -> str:
    L, K = len(groups.layers), len(groups.groups)
    members = {row: f"h_{layer}" for row, layer in enumerate(groups.layers)}
    rows = []
    for number, (one, other, height, _) in enumerate(groups.linkage.tolist()):
        members[L + number] = f"{members[int(one)]}, {members[int(other)]}"
        below = "below" if number < L - K else "above"
        rows.append([str(number + 1), members[int(one)], members[int(other)], f"{height:.4f}", below])
    heading = ["merge", "one group", "other group", "1 − CKA", "the cut"]
    numbers = details("The merges as a table", table(heading, rows, caption=_linkage(groups), numbers=False))
    caption = (
        f"Distance 1 − CKA at which groups of layers merge, {_linkage(groups)}. The dashed line, at "
        f"{groups.threshold:.3f}, cuts the tree into {K} cluster{'s' if K > 1 else ''}."
    )
    return figure("Dendrogram", inline_svg(dendrogram(groups, "")), caption, numbers)


def _clusters(groups: LayerClusters) -> str:
    rows = [
        [
            _badge(number),
            ", ".join(f"h_{layer}" for layer in group),
            f"{mean:.3f}",
            f"h_{medoid}",
        ]
        for number, (group, mean, medoid) in enumerate(zip(groups.groups, groups.mean_cka, groups.medoids, strict=True))
    ]
    listed = table(["cluster", "layers", "mean CKA", "medoid"], rows, name="clusters", numbers=False)
    said = [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in (groups.reason, str(groups.borders))]
    return listed + paragraph(" ".join(said), "note")


def _badge(number: int) -> Markup:
    color = cluster_color(number)
    return Markup(f'<span class="badge" style="background: {color}; color: {readable_on(color)}">{number + 1}</span>')


def _linkage(groups: LayerClusters) -> str:
    return f"{groups.method} linkage" + (", neighbors only" if groups.contiguous else "")


def _kept(runs: Sequence[Evidence]) -> str:
    def write(run: Evidence) -> str:
        values = run.outcome.get("similarity")
        if not values:
            return paragraph("This run did not compare student and teacher at its end.", "absent")
        points = [(float(layer), value) for layer, value in enumerate(values)]
        least = min(range(len(values)), key=values.__getitem__)
        speech = "training speech, as none was held out" if run.outcome["loss"] is None else "held-out speech"
        lowest = f"lowest in h_{least} ({values[least]:.3f})"
        label = f"CKA between student and teacher in layers h_0 to h_{len(values) - 1}; {lowest}."
        numbers = details(
            "Likeness as a table",
            table(["layer", "CKA"], [[f"h_{number}", f"{one:.4f}"] for number, one in enumerate(values)]),
        )
        caption = (
            "Linear CKA between each layer of the student and the same layer of the teacher, on up to a minute of "
            f"{speech}: {sum(values) / len(values):.3f} on average, {lowest}. 1: equal up to rotation and scale."
        )
        picture = lines_picture(label, [Series("CKA", "main", points, marked=True)], bounds=(0.0, 1.0), over="layer")
        return figure("Similarity of student and teacher, layer by layer", picture, caption, numbers)

    return _per_run(runs, write)


def _survivors(runs: Sequence[Evidence]) -> str:
    def write(run: Evidence) -> str:
        if run.widths is None:
            return paragraph("This run did not record its widths: it was made by an earlier version.", "absent")
        before, after = run.widths
        numbering = "Layers are numbered from 1, as h_1 … h_L."
        rows = [
            [str(row), f"{len(had)}", f"{len(kept)}", " ".join(map(str, kept)) or "none"]
            for row, (had, kept) in enumerate(zip(before.heads, after.heads, strict=True), 1)
        ]
        heads = figure(
            "Attention heads",
            heads_picture(before.heads, after.heads),
            f"{_left(sum(map(len, after.heads)), sum(map(len, before.heads)))}. A full square is a head that is kept. "
            + numbering,
            details("Heads as a table", table(["layer", "before", "after", "kept"], rows)),
        )
        units = _counts("Feed-forward units", "feed-forward units", before.units, after.units, numbering)
        numbered = "Convolutions from the waveform on."
        channels = _counts("Convolution channels", "channels", before.channels, after.channels, numbered)
        return panels([heads, units, channels])

    return _per_run(runs, write)


def _counts(title: str, what: str, before: Sequence[int], after: Sequence[int], numbering: str) -> str:
    rows = [
        [str(row), str(had), str(kept), _share(kept, had)]
        for row, (had, kept) in enumerate(zip(before, after, strict=True), 1)
    ]
    numbers = details(f"{title.split()[-1].capitalize()} as a table", table(["layer", "before", "after", "left"], rows))
    caption = f"{_left(sum(after), sum(before))}. The pale bar is the teacher. {numbering}"
    return figure(title, survivors_picture(what, before, after), caption, numbers)


def _training(runs: Sequence[Evidence]) -> str:
    values = [y for run in runs for stage in STAGES for line in _loss_points(run, stage) for _, y in line]
    # One scale for all, so that stages and runs can be compared by eye.
    bounds = (min(values), max(values)) if values else (0.0, 1.0)

    def write(run: Evidence) -> str:
        losses = [_loss_figure(run, stage, bounds) for stage in STAGES]
        return panels([_sparsity_figure(run), *losses])

    return _per_run(runs, write)


def _sparsity_points(run: Evidence) -> list[dict[str, float]]:
    """Rows of stage 1 with the sparsity, without the names of their parts."""
    rows = [{name.rpartition("/")[2]: value for name, value in row.items()} for row in run.metrics["stage1"]]
    return [row for row in rows if "sparsity_expected" in row and "sparsity_target" in row]


def _sparsity_figure(run: Evidence) -> str:
    rows = _sparsity_points(run)
    if not rows:
        return paragraph("This run started after stage 1, in which units are pruned.", "absent")
    expected = [(row["step"], row["sparsity_expected"]) for row in rows]
    target = [(row["step"], row["sparsity_target"]) for row in rows]
    label = (
        f"Expected sparsity over the steps of stage 1, from {expected[0][1]:.1%} to {expected[-1][1]:.1%}; its target "
        f"rises from {target[0][1]:.1%} to {target[-1][1]:.1%}."
    )
    lines = [Series("target", "aim", target), Series("expected", "main", expected)]
    heights = [y for line in lines for _, y in line.points]
    last = rows[-1]
    caption = (
        f"At step {last['step']:g} of stage 1 expected {last['sparsity_expected']:.2%}, target "
        f"{last['sparsity_target']:.2%}, of the quantity that the budget limits."
    )
    names = [name for name in ("sparsity_expected", "sparsity_target", "lambda1", "lambda2", "price") if name in last]
    cells = [[f"{row['step']:g}", *(f"{row[name]:.4f}" for name in names)] for row in rows]
    numbers = details("Sparsity and multipliers as a table", table(["step", *names], cells))
    marks = legend([("expected", "main"), ("target", "aim")])
    picture = lines_picture(label, lines, bounds=(min(0.0, *heights), max(heights)), percent=True)
    return figure("Sparsity, expected against target", picture, caption, numbers, marks)


def _loss_points(run: Evidence, stage: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Distillation loss on training batches and on held-out speech, with the steps."""
    found = []
    for part in ("train", "validation"):
        key = f"{part}/distillation"
        found.append([(row["step"], row[key]) for row in run.metrics[stage] if key in row])
    return found[0], found[1]


def _loss_figure(run: Evidence, stage: str, bounds: tuple[float, float]) -> str:
    title = f"Loss in stage {STAGES.index(stage) + 1}"
    training, held_out = _loss_points(run, stage)
    if not training:
        return paragraph(f"This run started after {stage}.", "absent")
    series = [Series("training", "second" if held_out else "main", training)]
    label = f"{title}, distillation loss on training batches from {training[0][1]:.4f} to {training[-1][1]:.4f}"
    entries = [("training batches", series[0].kind)]
    if held_out:
        series.append(Series("held-out", "main", held_out, marked=True))
        entries.append(("held-out speech", "main"))
        label += f"; on held-out speech from {held_out[0][1]:.4f} to {held_out[-1][1]:.4f}"
    result = run.outcome["stages"].get(stage, {})
    caption = f"{heard(result)}, {duration(result['seconds'])}." if result else ""
    names = list(dict.fromkeys(name for row in run.metrics[stage] for name in row if name != "step"))
    # What is validated are the terms of the loss, whichever there are.
    terms = {name.partition("/")[2] for name in names if name.startswith("validation/")}
    terms |= {"distillation", "l1", "l2", "cosine", "penalty"}
    shown = [name for name in names if name.partition("/")[2] in terms]
    rows = [
        [f"{row['step']:g}", *(f"{row[name]:.4f}" if name in row else "" for name in shown)]
        for row in run.metrics[stage]
    ]
    numbers = details(f"{title} as a table", table(["step", *shown], rows))
    return figure(title, lines_picture(f"{label}.", series, bounds=bounds), caption, numbers, legend(entries))


def _budget(runs: Sequence[Evidence]) -> str:
    def write(run: Evidence) -> str:
        parts = []
        for title, what, one, other in (
            ("Parameters", "parameters", run.teacher.parameters, run.student.parameters),
            ("Multiply-accumulates", "MACs per second of audio", run.teacher.macs, run.student.macs),
        ):
            bars = [Bar(name, float(before), float(other[name])) for name, before in one.items()]
            words = {value: human(value) for bar in bars for value in (bar.before, bar.after)}
            rows = [
                [bar.name, f"{bar.before:,.0f}", f"{bar.after:,.0f}", _share(bar.after, bar.before)] for bar in bars
            ]
            whole, left = sum(bar.before for bar in bars), sum(bar.after for bar in bars)
            rows.append(["all", f"{whole:,.0f}", f"{left:,.0f}", _share(left, whole)])
            numbers = details(f"{title} as a table", table([what, "teacher", "student", "left"], rows))
            caption = f"{human(left)} of {human(whole)} {what}."
            marks = legend([("teacher", "before"), ("student", "after")])
            parts.append(figure(title, budget_picture(what, bars, words), caption, numbers, marks))
        return panels(parts)

    return _per_run(runs, write)


def _layer_weights(runs: Sequence[Evidence]) -> str:
    def write(run: Evidence) -> str:
        scores = run.scores
        if scores is None or not scores.layer_weights:
            return paragraph("No task was evaluated: the layers that tasks read are unknown.", "absent")
        drawn = [_weights_figure(model, weights, scores) for model, weights in scores.layer_weights.items()]
        return panels(drawn)

    return _per_run(runs, write)


def _weights_figure(model: str, weights: dict[str, list[float]], scores: Scores) -> str:
    # Heads of one model see the same hidden states; a result of another depth would be another model's.
    states = max(map(len, weights.values()))
    ordered = sorted((task for task in weights if len(weights[task]) == states), key=_task_order)
    shown = {task: weights[task] for task in ordered}
    rows = [[task.upper(), *(f"{value:.3f}" for value in shown[task])] for task in ordered]
    heading = ["", "input", *(f"h_{state}" for state in range(1, states))]
    numbers = details("The weights as a table", table(heading, rows))
    caption = f"Darker is more. {scores.title}."
    return figure(model, inline_svg(layer_weight_map(model, shown)), caption, numbers)


def _task_order(task: str) -> tuple[int, str]:
    tasks = [column.task for column in COLUMNS]
    return (tasks.index(task) if task in tasks else len(tasks), task)


def _audio(runs: Sequence[Evidence]) -> str:
    def write(run: Evidence) -> str:
        audio = run.outcome.get("audio")
        if not audio:
            return paragraph("This run did not record problems with its audio.", "absent")
        read = "; ".join(f"{part}: {found['read']:,} cuts read" for part, found in audio.items())
        parts = [paragraph(f"{read}.", "note")]
        parts += [_problems(audio, left_out=True), _problems(audio, left_out=False), _converted(audio)]
        parts += [
            paragraph(
                f"{stage}: {values['skipped']} of {values['steps']} updates were left out because the loss or a "
                f"gradient was not finite; {values.get('returns', 0)} returns to an earlier state.",
                "warning",
            )
            for stage, values in run.outcome["stages"].items()
            if values.get("skipped")
        ]
        return "".join(parts)

    return _per_run(runs, write, beside=False)


def _problems(audio: dict[str, Any], *, left_out: bool) -> str:
    """What was wrong with audio that was left out, or with audio that was used nevertheless."""
    rows, files = [], []
    for part, found in audio.items():
        for kind, values in found["kinds"].items():
            if values["left_out"] == left_out:
                rows.append([part, kind, f"{values['cuts']:,}", f"{len(values['files']):,}"])
                files += [[part, kind, path, said.removeprefix(f"{path}: ")] for path, said in values["files"].items()]
    title = "Left out" if left_out else "Used, although odd"
    if not rows:
        return paragraph(f"{title}: none.", "note")
    listed = table(["part of the run", "problem", "cuts", "files"], rows, caption=title)
    heading = ["part of the run", "problem", "file", "message"]
    shown = table(heading, files[:MOST_FILES], name=f"files, {title.lower()}", numbers=False)
    return listed + (details(f"The files: {title.lower()}", shown) if files else "")


def _converted(audio: dict[str, Any]) -> str:
    """What was brought into the form that encoders take, which is nothing odd."""
    rows = [
        [part, kind, f"{count:,}"]
        for part, found in audio.items()
        for kind, count in found["converted"].items()
        if count
    ]
    return table(["part of the run", "", "cuts"], rows, caption="Converted") if rows else ""


def _configuration(runs: Sequence[Evidence]) -> str:
    flat = [_flat(run.settings) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    rows = {key: [_said(settings.get(key)) for settings in flat] for key in keys}
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.rpartition(".")[0], []).append(key)
    parts = []
    if len(runs) > 1:
        differing = [[key, *rows[key]] for key in keys if len(set(rows[key])) > 1]
        heading = ["setting", *(run.name for run in runs)]
        parts.append(table(heading, differing, caption="what differs", numbers=False))
    blocks = []
    for group, members in groups.items():
        cells = [[key.rpartition(".")[2], *rows[key]] for key in members]
        marked = [number for number, (_, *values) in enumerate(cells) if len(set(values)) > 1]
        heading = ["", *(run.name if len(runs) > 1 else "" for run in runs)]
        listed = table(heading, cells, caption=group or "the run", numbers=False, marked=marked)
        blocks.append(f"<div>{listed}</div>")
    every = f'<div class="settings">{"".join(blocks)}</div>' if len(runs) == 1 else "".join(blocks)
    parts.append(every if len(runs) == 1 else details("All settings", every))
    return "".join(parts)


def _environment(runs: Sequence[Evidence]) -> str:
    listed = [_environment_of(run) for run in runs]
    keys = list(dict.fromkeys(key for values in listed for key in values))
    rows = [[key, *(values.get(key, "not recorded") for values in listed)] for key in keys]
    heading = ["", *(run.name if len(runs) > 1 else "" for run in runs)]
    marked = [number for number, (_, *values) in enumerate(rows) if len(set(values)) > 1]
    return table(heading, rows, caption="where and how long", numbers=False, marked=marked)


def _environment_of(run: Evidence) -> dict[str, str]:
    values: dict[str, str] = {}
    recorded = run.outcome.get("environment")
    if recorded:
        values = {**recorded["versions"], "platform": recorded["platform"]}
        if recorded.get("processor"):  # runs of earlier versions do not have it
            values["processor"] = recorded["processor"]
        values |= {"CPUs": str(recorded["cpus"]), "threads": str(recorded["threads"])}
        values["accelerator"] = str(recorded["accelerator"] or "none")
    for stage, result in run.outcome["stages"].items():
        values[f"{stage}, time"] = duration(result["seconds"])
        values[f"{stage}, peak memory"] = f"{result['peak_memory'] / 2**20:,.0f} MiB"
    values["speed measured on"] = _timed(run.student)
    values["finished"] = run.finished or "not recorded"
    return values


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _said(value: Any) -> str:
    """A setting as it is written in YAML, but for none."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _same(runs: Sequence[Evidence], key: str) -> bool:
    return all(run.settings.get(key) == runs[0].settings.get(key) for run in runs)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _left(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} are left ({_share(part, whole)})"


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _timed(profile: Profile) -> str:
    return (
        f"one utterance of {profile.seconds:g} s, float32, {profile.threads} CPU thread{'s' * (profile.threads != 1)}"
    )


SECTIONS = (
    Section("outcome", "Outcome", _outcome),
    Section("own-head", "The model's own head", _own_head),
    Section("quality", "Size and quality", size_and_quality),
    Section("similarity", "Layers and their clusters", _similarity),
    Section("kept", "Likeness to the teacher", _kept),
    Section("survivors", "Survivors per layer", _survivors),
    Section("training", "Sparsity and losses", _training),
    Section("budget", "Budget by component", _budget),
    Section("layer-weights", "Layers that tasks read", _layer_weights),
    Section("audio", "Audio", _audio),
    Section("configuration", "Configuration", _configuration),
    Section("environment", "Environment", _environment),
    Section("next", "Command, date, next steps", _next_steps),
)
