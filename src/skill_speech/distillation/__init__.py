"""Targets, loss and the training module."""

from .loss import DistillationLoss, LossConfig
from .module import Distillation, StageConfig
from .targets import METHODS, Method, Target, make_targets, needs_clusters

__all__ = [
    "METHODS",
    "Distillation",
    "DistillationLoss",
    "LossConfig",
    "Method",
    "StageConfig",
    "Target",
    "make_targets",
    "needs_clusters",
]
