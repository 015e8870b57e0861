"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .errors import printable
from .profiling import Profile, Timing, short_name
from .quantities import human

if TYPE_CHECKING:
    from .checkpoints import ImportResult
    from .compression import CompressionResult
    from .evaluation.own_head import HeadTable
    from .evaluation.results import Table as EvaluationTable
    from .exporting import Measurement


_SIDE_BY_SIDE = 5  # models


def _words(name: str) -> str:
    """A name that is neither markup nor anything that a terminal obeys."""
    return escape(printable(name))


def profile_table(profiles: Sequence[Profile]) -> Table:
    """Costs of one or two models by component; with two, the first as a share of the second."""
    table = Table(title=f"one utterance of {profiles[0].seconds:g} s, float32, threads: {profiles[0].threads}")
    table.add_column("")
    for profile in profiles:
        table.add_column(_words(short_name(profile.model)), justify="right", overflow="fold")
    both = len(profiles) == 2
    if both:
        table.add_column("share", justify="right")

    def row(name: str, values: Sequence[float], shown: Sequence[str], end_section: bool = False) -> None:
        share = [f"{values[0] / values[1]:.1%}"] if both and values[1] else [""] * both
        table.add_row(name, *shown, *share, end_section=end_section)

    for title, parts in (
        ("parameters", [dict(profile.parameters) for profile in profiles]),
        ("MACs per second", [dict(profile.macs) for profile in profiles]),
    ):
        totals = [float(sum(part.values())) for part in parts]
        row(title, totals, [human(total) for total in totals])
        names = list(dict.fromkeys(name for part in parts for name in part))
        for name in names:
            values = [float(part.get(name, 0)) for part in parts]
            row(f"  {name}", values, [human(value) for value in values], end_section=name == names[-1])
    factors = [profile.real_time_factor for profile in profiles]
    row("real-time factor", factors, [f"{factor:.4f}" for factor in factors])
    if all(profile.memory is not None for profile in profiles):
        memory = [float(profile.memory or 0) for profile in profiles]
        row("peak memory", memory, [f"{value / 2**20:.0f} MiB" for value in memory])
    for timings in zip(*(profile.timings for profile in profiles), strict=True):
        table.add_section()
        pairs = list(zip(profiles, timings, strict=True))
        totals = [timing.total_seconds for timing in timings]
        row(f"optimized, {timings[0].precision}", totals, [_time(profile, timing, None) for profile, timing in pairs])
        for name in timings[0].seconds:
            values = [timing.seconds[name] for timing in timings]
            row(f"  {name}", values, [_time(profile, timing, name) for profile, timing in pairs])
    if any(profile.timings for profile in profiles):
        table.caption = "in parentheses: operations a second as a share of what a plain matrix product reaches here"
    return table


def runtime_table(profile: Profile) -> Table:
    """Runtimes under each other, with their speed relative to the first."""
    threads = f"{profile.threads} thread{'s' * (profile.threads != 1)}"
    table = Table(title=f"{_words(short_name(profile.model))}: one utterance of {profile.seconds:g} s, {threads}")
    for name in ("", "version", "real-time factor", "speed", "peak memory", "error"):
        table.add_column(name, justify="right" if name else "left")
    for cost in profile.runtimes:
        table.add_row(
            cost.name,
            cost.version,
            f"{cost.real_time_factor:.4f}",
            f"{profile.runtimes[0].real_time_factor / cost.real_time_factor:.1f}x",
            f"{cost.memory / 2**20:.0f} MiB",
            f"{cost.difference:.1e}",
        )
    table.caption = "error: of the last hidden state, relative, on noise"
    return table


def _time(profile: Profile, timing: Timing, component: str | None) -> str:
    seconds = timing.total_seconds if component is None else timing.seconds[component]
    share = profile.share_of_peak(timing, component)
    return f"{1000 * seconds:.1f} ms" + ("" if share is None else f" ({share:.0%})")


def import_table(result: ImportResult) -> Table:
    """What an imported source turned out to be, and what it does not say."""
    config = result.config
    table = Table(show_header=False)
    table.add_row("format", _words(result.format))
    table.add_row("family", _words(config.family))
    table.add_row("size", f"{human(result.parameters)} parameters, {config.num_layers} layers of {config.hidden_size}")
    heads, units, channels = (
        [len(layer.heads) for layer in config.layers],
        [layer.units for layer in config.layers],
        [conv.channels for conv in config.convs],
    )
    for name, widths in (("heads", heads), ("feed-forward units", units), ("channels", channels)):
        same = len(set(widths)) == 1
        table.add_row(name, f"{widths[0]} everywhere" if same else " ".join(str(width) for width in widths))
    table.add_row("layer norms", f"{'before' if config.pre_norm else 'after'} each sublayer")
    if result.head is not None:
        table.add_row("head", f"{result.head.kind}, {result.head.outputs} outputs")
    treated = "normalized first" if config.input_normalization else "as they are"
    table.add_row("waveforms", f"{config.sampling_rate:,} Hz, {treated}")
    for number, sentence in enumerate(result.assumed):
        table.add_row("" if number else "assumed", _words(sentence))
    return table


def result_table(result: CompressionResult) -> Table:
    """Teacher and student side by side."""
    teacher, student = result.teacher, result.student
    table = Table(title=f"one utterance of {student.seconds:g} s, float32, threads: {student.threads}")
    table.add_column("")
    for name in ("teacher", "student", "share"):
        table.add_column(name, justify="right")
    for name, one, other in (
        ("parameters", teacher.total_parameters, student.total_parameters),
        ("MACs per second of audio", teacher.total_macs, student.total_macs),
    ):
        table.add_row(name, human(one), human(other), f"{other / one:.1%}")
    faster = teacher.real_time_factor / student.real_time_factor
    factors = f"{teacher.real_time_factor:.4f}", f"{student.real_time_factor:.4f}"
    table.add_row("real-time factor", *factors, f"{faster:.1f}x faster")
    if result.loss is not None:
        table.add_row("distillation loss after surgery", "", f"{result.loss_after_surgery:.4f}", "")
        table.add_row("distillation loss at the end", "", f"{result.loss:.4f}", "")
    else:
        table.caption = "distillation loss: not measured, no speech was held out"
    return table


def measurement_table(measurements: Sequence[Measurement]) -> Table:
    """Forms of one model under each other, with their size and speed relative to the first."""
    first = measurements[0]
    table = Table(title="one utterance of 10 s of noise")
    for name in ("", "size", "real-time factor", "speed", "difference"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for form in measurements:
        table.add_row(
            form.name,
            f"{form.size / 1e6:.1f} MB",
            f"{form.real_time_factor:.4f}",
            f"{first.real_time_factor / form.real_time_factor:.1f}x",
            f"{form.difference:.1e}" if form is not first else "",
        )
    return table


def evaluation_table(table: EvaluationTable | HeadTable) -> Table:
    """Models and their scores on SUPERB's tasks, or of their own heads, with what has to be known of them below."""
    heading, lines = table.cells()
    if len(lines) <= _SIDE_BY_SIDE:  # a column per model fits on every terminal
        rows = list(zip(heading, *lines, strict=True))
        heading, lines = list(rows[0]), [list(row) for row in rows[1:]]
    notes = [*table.notes, *(f"[{number}] {source}" for number, source in enumerate(table.sources(), start=1))]
    shown = Table(title=_words(table.title), caption="\n".join(map(_words, notes)), caption_justify="left")
    for number, name in enumerate(heading):
        shown.add_column(_words(name), justify="left" if number == 0 else "right", overflow="fold")
    for cells in lines:
        shown.add_row(*map(_words, cells))
    return shown
