"""Targets, loss and the training module."""

from .loss import DistillationLoss, LossConfig
from .module import Distillation, Stage1Config, Stage2Config, StageConfig
from .outputs import HeadTraining, OutputLoss
from .targets import METHODS, Method, Target, groups_layers, make_targets, needs_clusters

__all__ = [
    "METHODS",
    "Distillation",
    "DistillationLoss",
    "HeadTraining",
    "LossConfig",
    "Method",
    "OutputLoss",
    "Stage1Config",
    "Stage2Config",
    "StageConfig",
    "Target",
    "groups_layers",
    "make_targets",
    "needs_clusters",
]
