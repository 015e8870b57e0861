"""What was asked for and what was done, in the words that the model card and the report share."""

from __future__ import annotations

from typing import Any


def heard(result: dict[str, Any]) -> str:
    """Updates and audio of a stage's result.json: 900 steps, 1.21 h of audio.

    Of the audio it counts what the student was given, on all ranks. Batches are cropped to their shortest utterance:
    the settings' `steps` times `batch_seconds` is more.
    """
    return f"{result['steps']} steps, {result['audio_seconds'] / 3600:.3g} h of audio"


def asked_for(settings: dict[str, Any]) -> str:
    """The budget, as on the command line without the dashes."""
    names = ("sparsity", "params", "macs", "speedup", "latency")
    return ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name) is not None)


def told_times(outcome: dict[str, Any]) -> str:
    """A budget of time, what the table says of the student, and what was measured; "" without such a budget."""
    if "times" not in outcome:
        return ""
    times, machine = outcome["times"], outcome["times"]["machine"]
    measured = [1000 * outcome[who]["real_time_factor"] for who in ("student", "teacher")]
    budget, student = (
        f"{times[name]:.3g} ms for a second of audio ({times['teacher'] / times[name]:.2f}× as fast as the teacher)"
        for name in ("budget", "student")
    )
    return (
        f"time: the budget is {budget}; by the table of component times ({machine['processor']}, threads: "
        f"{machine['threads']}, {machine['precision']}, an utterance of {times['utterance']:g} s) "
        f"the student takes {student}; measured at the end: {measured[0]:.3g} ms, the teacher {measured[1]:.3g} ms "
        f"({measured[1] / measured[0]:.2f}×)"
    )
