"""Gates, budgets, the Lagrangian, shrinking and surgery."""

from .budget import Budget, Lagrangian, human
from .gates import KINDS, Gate, HardConcrete, attach_gates, find_gates
from .shrinking import closed_for_good, replace_parameters, restore_widths, shrink, shrink_like
from .size import (
    REFERENCE_SECONDS,
    Widths,
    config_after_surgery,
    count_macs,
    count_parameters,
    macs_by_component,
    parameters_by_component,
)
from .surgery import check_rounding, fix_gates, prune

__all__ = [
    "KINDS",
    "REFERENCE_SECONDS",
    "Budget",
    "Gate",
    "HardConcrete",
    "Lagrangian",
    "Widths",
    "attach_gates",
    "check_rounding",
    "closed_for_good",
    "config_after_surgery",
    "count_macs",
    "count_parameters",
    "find_gates",
    "fix_gates",
    "human",
    "macs_by_component",
    "parameters_by_component",
    "prune",
    "replace_parameters",
    "restore_widths",
    "shrink",
    "shrink_like",
]
