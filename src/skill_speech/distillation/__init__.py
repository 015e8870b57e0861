"""Targets, loss and the training module."""

from .loss import DistillationLoss, LossConfig
from .module import Distillation, StageConfig
from .targets import METHODS, Method, Target, groups_layers, make_targets, needs_clusters

__all__ = [
    "METHODS",
    "Distillation",
    "DistillationLoss",
    "LossConfig",
    "Method",
    "StageConfig",
    "Target",
    "groups_layers",
    "make_targets",
    "needs_clusters",
]
