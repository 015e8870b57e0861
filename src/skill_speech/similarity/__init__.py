"""How similar an encoder's layers are (linear CKA) and which of them belong together."""

from .analysis import LayerAnalysis, load_analysis, load_scales, save_analysis
from .cka import ExactCKA, MinibatchCKA, Similarity, View, compare_layers, estimate_cka, unbiased_hsic
from .clusters import Borders, LayerClusters, agreement, cluster_layers, equal_partition, medoid
from .scales import LayerScales

__all__ = [
    "Borders",
    "ExactCKA",
    "LayerAnalysis",
    "LayerClusters",
    "LayerScales",
    "MinibatchCKA",
    "Similarity",
    "View",
    "agreement",
    "cluster_layers",
    "compare_layers",
    "equal_partition",
    "estimate_cka",
    "load_analysis",
    "load_scales",
    "medoid",
    "save_analysis",
    "unbiased_hsic",
]
