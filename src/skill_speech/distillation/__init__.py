"""Targets, loss and the training module."""

from .inputs import Input, InputConfig, StudentInput
from .loss import Distance, DistillationLoss, LossConfig
from .methods import METHODS, Method, Objective
from .module import Distillation, Stage1Config, Stage2Config, StageConfig
from .outputs import HeadTraining, OutputLoss
from .targets import Target, Targets, check_layers, groups_layers, layer_numbers, make_targets, needs_clusters
from .units import UnitLoss, UnitsConfig

__all__ = [
    "METHODS",
    "Distance",
    "Distillation",
    "DistillationLoss",
    "HeadTraining",
    "Input",
    "InputConfig",
    "LossConfig",
    "Method",
    "Objective",
    "OutputLoss",
    "Stage1Config",
    "Stage2Config",
    "StageConfig",
    "StudentInput",
    "Target",
    "Targets",
    "UnitLoss",
    "UnitsConfig",
    "check_layers",
    "groups_layers",
    "layer_numbers",
    "make_targets",
    "needs_clusters",
]
