"""Which units of the student are worth removing in the middle of stage 1."""

from __future__ import annotations

from torch import Tensor

from ..encoder import Encoder
from ..pruning import Budget, Widths, closed_for_good, count_macs
from ..pruning.size import as_float

# Share of the student's multiply-accumulates that a cut has to save: where the student is compiled, every cut has it
# compiled again.
LEAST_GAIN = 0.02


def worth_removing(student: Encoder, below: float, budget: Budget, round_to: int = 1) -> dict[str, Tensor]:
    """`closed_for_good`, or nothing where too little would be saved."""
    kept = closed_for_good(student, below, budget, round_to)
    before, after = Widths.of(student.config), Widths.of(student.config)
    for name, index in kept.items():
        kind, number = name.split(".")
        getattr(after, kind)[int(number)] = len(index)
    costs = [as_float(count_macs(student.config, widths)) for widths in (before, after)]
    return kept if costs[1] <= (1 - LEAST_GAIN) * costs[0] else {}
