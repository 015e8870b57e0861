"""The teacher's units, predicted: cross-entropy on the k-means clusters of one of its layers, beside the distance.

HuBERT's own objective (arXiv 2106.07447) with the teacher's states for targets (DiceHuBERT, arXiv 2507.02911).
Shapes: B utterances, T frames, D features, N frames of any utterances, K units.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from ..encoder import Encoder, EncoderOutput
from ..errors import InputError

if TYPE_CHECKING:
    from ..data import AudioBatch

FRAMES_PER_UNIT = 100
"""Frames that k-means looks at, times the units: more of them move the centroids hardly."""


@dataclass(frozen=True)
class UnitsConfig:
    """Units of the teacher that the student predicts in stage 2.

    Attributes:
        count: Number of units (k-means clusters), 0 for none; by default, the method's own.
        layer: Teacher layer to cluster; by default, the one at three quarters of the depth.
        weight: Weight of the cross-entropy.
        seconds: Seconds of audio to cluster.
    """

    count: int | None = None
    layer: int | None = None
    weight: float = 0.1
    seconds: float = 600.0

    def layer_of(self, num_layers: int) -> int:
        """The layer, for a teacher of that depth.

        Raises:
            InputError: there is no such layer.
        """
        if self.layer is None:
            return round(0.75 * num_layers)
        if self.layer > num_layers:
            raise InputError(f"units.layer is {self.layer}; this teacher's last layer is {num_layers}")
        return self.layer


class UnitLoss(nn.Module):
    """Cross-entropy between the student's guess, a linear map of its last layer, and the teacher's unit of each frame.

    Args:
        centroids_KD: of the units.
        layer: of the teacher whose states they cluster.
        weight: in what is minimized.
    """

    def __init__(self, centroids_KD: Tensor, layer: int, weight: float) -> None:
        super().__init__()
        self.layer, self.weight = layer, weight
        self.register_buffer("centroids_KD", centroids_KD.float(), persistent=False)
        self.centroids_KD: Tensor
        self.guess = nn.Linear(centroids_KD.shape[1], len(centroids_KD))

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, counts_BT: Tensor | None = None) -> Tensor:
        """The mean over frames (0-d).

        Args:
            student, teacher: of the same waveforms.
            counts_BT: True for frames that count; None for all.
        """
        logits_BTK = self.guess(student.layers[-1]).float()
        units_BT = units_of(teacher.layers[self.layer], self.centroids_KD)
        if counts_BT is not None:
            units_BT = units_BT.where(counts_BT, -100)
            if not bool(counts_BT.any()):
                return logits_BTK.sum() * 0.0
        return F.cross_entropy(logits_BTK.flatten(0, 1), units_BT.flatten(), ignore_index=-100)


def units_of(states_BTD: Tensor, centroids_KD: Tensor) -> Tensor:
    """The nearest centroid of each frame (B, T)."""
    with torch.autocast(states_BTD.device.type, enabled=False):
        # ‖x - c‖² without ‖x‖², which is the same for all centroids.
        return (2 * states_BTD.float() @ centroids_KD.T - centroids_KD.square().sum(1)).argmax(-1)


def find_units(teacher: Encoder, batches: Iterable[AudioBatch], layer: int, count: int, seed: int) -> Tensor:
    """Cluster the states of a layer with k-means (k-means++, 20 iterations): centroids (count, D), float32 on the CPU.

    Args:
        teacher: in evaluation mode.
        batches: audio, of which so many frames are drawn as are of use.
        layer: number of the layer, 0 for h_0.
        count: of units.
        seed: of the frames and the first centroids.

    Raises:
        InputError: too few frames.
    """
    device, frames = next(teacher.parameters()).device, []
    with torch.inference_mode():
        for batch in batches:
            out = teacher(batch.waveforms_BT.to(device), batch.lengths_B.to(device))
            states_BTD = out.layers[layer]
            valid_BT = torch.arange(states_BTD.shape[1], device=device) < out.lengths_B[:, None]
            frames.append(states_BTD[valid_BT].float().cpu())
    x_ND = torch.cat(frames) if frames else torch.zeros(0, 1)
    if len(x_ND) < count:
        raise InputError(f"{len(x_ND)} frames of speech are too few for {count} units; give more audio or fewer units")
    generator = torch.Generator().manual_seed(seed)
    x_ND = x_ND[torch.randperm(len(x_ND), generator=generator)[: FRAMES_PER_UNIT * count]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a unit without frames is never a target
        centroids, _ = kmeans2(x_ND.numpy(), first_centroids(x_ND, count, generator).numpy(), iter=20, minit="matrix")
    return torch.from_numpy(centroids).float()


def first_centroids(x_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Frames to start k-means from (count, D), each drawn in proportion to its squared distance from those before it.

    k-means++ (Arthur & Vassilvitskii 2007). SciPy's own compares all frames with all centroids again for each new one,
    which takes an hour for 500 units of a Base model.
    """
    chosen = [int(torch.randint(len(x_ND), (1,), generator=generator))]
    apart_N, squares_N = torch.full((len(x_ND),), torch.inf), x_ND.square().sum(1)
    while len(chosen) < count:
        newest_D = x_ND[chosen[-1]]
        distance_N = squares_N - 2 * (x_ND @ newest_D) + newest_D.square().sum()
        apart_N = torch.minimum(apart_N, distance_N.clamp(min=0))
        apart_N[chosen[-1]] = 0
        # All the same where fewer different frames are left than centroids are wanted.
        weights_N = apart_N.double() if float(apart_N.sum()) > 0 else torch.ones(len(x_ND), dtype=torch.float64)
        drawn = torch.rand(1, dtype=torch.float64, generator=generator) * weights_N.sum()
        chosen.append(min(int(torch.searchsorted(weights_N.cumsum(0), drawn)), len(x_ND) - 1))
    return x_ND[chosen]
