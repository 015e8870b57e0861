"""The analysis folder of a run: similarity, clusters and their figures.

Shapes: L layers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..files import atomic_write, write_json
from ..run.records import read_record
from .cka import View
from .clusters import LayerClusters, cluster_layers


@dataclass(frozen=True)
class LayerAnalysis:
    """What is known of the layers of a teacher.

    Attributes:
        cka_LL: the similarity that they are grouped by.
        clusters: their groups.
        view: "raw" or "normalized", the frames that cka_LL is of.
        other_LL: the similarity of the other kind of frames; None if it was not measured.
    """

    cka_LL: NDArray[np.float64]
    clusters: LayerClusters
    view: View = "raw"
    other_LL: NDArray[np.float64] | None = None

    @property
    def other_view(self) -> View:
        """What other_LL is of."""
        return "normalized" if self.view == "raw" else "raw"

    def other_clusters(self) -> LayerClusters:
        """As many groups by the other similarity."""
        assert self.other_LL is not None
        own = self.clusters
        return cluster_layers(
            self.other_LL,
            len(own.groups),
            linkage=own.method,  # type: ignore[arg-type]
            contiguous=own.contiguous,
            first_layer=own.layers[0],
        )


def save_analysis(
    folder: str | os.PathLike[str], analysis: LayerAnalysis, scales_L: ArrayLike | None = None
) -> list[str]:
    """Write the arrays, the figures and, last, clusters.json; the names of the files.

    Each file is written whole or not at all; where clusters.json is, the others are.
    """
    # matplotlib takes long to import and only this needs it.
    from ..figures.output import save_figure
    from ..figures.plots import dendrogram, similarity_map

    folder, names = Path(folder), []
    cka_LL, clusters = np.asarray(analysis.cka_LL, dtype=np.float64), analysis.clusters
    arrays = {"cka.npy": cka_LL, "linkage.npy": clusters.linkage}
    figures = {"similarity": similarity_map(cka_LL, clusters), "dendrogram": dendrogram(clusters)}
    if analysis.other_LL is not None:
        arrays["cka-other.npy"] = np.asarray(analysis.other_LL, dtype=np.float64)
        title = f"Similarity of layers, {analysis.other_view} frames"
        figures["similarity-other"] = similarity_map(analysis.other_LL, analysis.other_clusters(), title)
    if scales_L is not None:
        arrays["scales.npy"] = np.asarray(scales_L, dtype=np.float64)
    for name, matrix in arrays.items():
        with atomic_write(folder / name) as temporary:
            np.save(temporary, matrix)
        names.append(name)
    for stem, figure in figures.items():
        for suffix in ("svg", "png"):
            with atomic_write(folder / f"{stem}.{suffix}") as temporary:
                save_figure(figure, temporary)
            names.append(f"{stem}.{suffix}")
    write_json(folder / "clusters.json", {"view": analysis.view} | clusters.to_dict())
    return [*names, "clusters.json"]


def load_analysis(folder: str | os.PathLike[str]) -> LayerAnalysis:
    """What `save_analysis` wrote.

    Raises:
        InputError: there is no analysis, or it cannot be read.
    """
    folder = Path(folder)
    for name in ("clusters.json", "cka.npy"):
        if not (folder / name).exists():
            raise InputError(f"{folder}: no analysis here ({name} is missing); run analyze")
    values = read_record(folder / "clusters.json", "clusters")
    try:
        cka_LL, clusters = _read_array(folder / "cka.npy"), LayerClusters.from_dict(values)
        _refuse_contradictions(cka_LL, clusters)
        other = folder / "cka-other.npy"
        other_LL = _read_array(other) if other.exists() else None
        if other_LL is not None and (other_LL.shape != cka_LL.shape or not np.isfinite(other_LL).all()):
            raise ValueError("cka-other.npy has different layers from cka.npy")
        view = values.get("view", "raw")
        if view not in get_args(View):
            raise ValueError(f"view is {view!r}; known: {', '.join(get_args(View))}")
        return LayerAnalysis(cka_LL, clusters, view, other_LL)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: the analysis cannot be read ({error}); delete it and run analyze") from error


def _refuse_contradictions(cka_LL: NDArray[np.float64], clusters: LayerClusters) -> None:
    """See that a similarity, groups and merges are of the same layers.

    Raises:
        ValueError: they are not.
    """
    layers = [layer for group in clusters.groups for layer in group]
    L, nodes = len(layers), clusters.linkage[:, :2].ravel()
    if cka_LL.shape != (L, L) or not np.isfinite(cka_LL).all():
        raise ValueError(f"cka.npy is not a finite number for each pair of {L} layers")
    first = min(layers, default=0)
    if sorted(layers) != list(range(first, first + L)) or not all(clusters.groups) or first > 1:
        raise ValueError("clusters.json does not have each layer once")
    # Every node but the last one goes into one merge, which is later than itself.
    if sorted(nodes) != list(range(2 * L - 2)) or any(nodes >= np.repeat(np.arange(L, 2 * L - 1), 2)):
        raise ValueError("clusters.json has merges of different layers")


def load_scales(folder: str | os.PathLike[str]) -> NDArray[np.float64]:
    """The spread of the layers h_0 … h_L that `save_analysis` wrote.

    Raises:
        InputError: it is not there, or it cannot be read.
    """
    path = Path(folder) / "scales.npy"
    try:
        scales_L = _read_array(path)
        if scales_L.ndim != 1 or not (np.isfinite(scales_L) & (scales_L > 0)).all():
            raise ValueError("not one positive number for each layer")
        return scales_L
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the layers' scales cannot be read ({error}); delete {folder} and analyze") from error


def _read_array(path: Path) -> NDArray[np.float64]:
    """An array of numbers.

    Raises:
        ValueError: it is none, or damaged.
        OSError: it cannot be read.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    # What a damaged header is to NumPy, and to the tokenizer it is read with, depends on where it is damaged.
    except Exception as error:
        raise ValueError(f"{path.name} is damaged: {type(error).__name__}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"{path.name} contains no numbers")
    return array.astype(np.float64)
