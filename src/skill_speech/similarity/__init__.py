"""How similar an encoder's layers are (linear CKA) and which of them belong together."""

from .analysis import load_analysis, save_analysis
from .cka import ExactCKA, MinibatchCKA, estimate_cka, unbiased_hsic
from .clusters import LayerClusters, cluster_layers, equal_partition, medoid

__all__ = [
    "ExactCKA",
    "LayerClusters",
    "MinibatchCKA",
    "cluster_layers",
    "equal_partition",
    "estimate_cka",
    "load_analysis",
    "medoid",
    "save_analysis",
    "unbiased_hsic",
]
