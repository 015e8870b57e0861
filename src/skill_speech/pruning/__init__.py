"""Gates, budgets, the controls that meet them, shrinking and surgery."""

from .budget import Budget, Limit, quantity
from .control import CONTROLS, Control, ControlName, Exact, Lagrangian, OneShot
from .gates import KINDS, Gate, HardConcrete, attach_gates, find_gates
from .importance import Importance, ImportanceName, magnitude, sensitivity
from .shrinking import closed_for_good, replace_parameters, shrink, shrink_like
from .size import (
    REFERENCE_SECONDS,
    Widths,
    config_after_surgery,
    count_macs,
    count_parameters,
    macs_by_component,
    parameters_by_component,
)
from .surgery import MissedBudget, MissedBudgetError, check_rounding, fix_gates, gap_to, prune
from .times import Curve, Surface, Times

__all__ = [
    "CONTROLS",
    "KINDS",
    "REFERENCE_SECONDS",
    "Budget",
    "Control",
    "ControlName",
    "Curve",
    "Exact",
    "Gate",
    "HardConcrete",
    "Importance",
    "ImportanceName",
    "Lagrangian",
    "Limit",
    "MissedBudget",
    "MissedBudgetError",
    "OneShot",
    "Surface",
    "Times",
    "Widths",
    "attach_gates",
    "check_rounding",
    "closed_for_good",
    "config_after_surgery",
    "count_macs",
    "count_parameters",
    "find_gates",
    "fix_gates",
    "gap_to",
    "macs_by_component",
    "magnitude",
    "parameters_by_component",
    "prune",
    "quantity",
    "replace_parameters",
    "sensitivity",
    "shrink",
    "shrink_like",
]
