"""How far the student's layers are from the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import EncoderOutput
from .outputs import Labels, OutputLoss
from .targets import Target
from .units import UnitLoss

Distance = Literal["l1-cosine", "temporal", "both"]


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of the distance between student and teacher; which of them count, `distance` says.

    Attributes:
        l1: Weight of the mean absolute difference.
        l2: Weight of the mean squared difference.
        cosine: Weight of the cosine term.
        temporal: Weight of the mean squared difference between the frame-to-frame cosine similarities of student and
            teacher.
        cosine_form: Form of the cosine term: "raw" is -cos, "log-sigmoid" is -log sigmoid(cos).
        target_weights: Weights of the targets: "equal", or "learned" together with the student, which gives less weight
            to targets that stay far off.
        normalize_frames: Normalize each frame of each layer to zero mean and unit variance before averaging layers.
    """

    l1: float = 1.0
    l2: float = 0.0
    cosine: float = 1.0
    temporal: float = 10.0
    cosine_form: Literal["raw", "log-sigmoid"] = "raw"
    target_weights: Literal["equal", "learned"] = "equal"
    normalize_frames: bool = False

    def weights(self) -> dict[str, float]:
        """The weights of the terms by name, without the other settings."""
        return {name: getattr(self, name) for name in ("l1", "l2", "cosine", "temporal")}

    def of(self, distance: Distance) -> LossConfig:
        """The same with nothing for the terms that are no part of a distance."""
        terms = {"l1-cosine": ("l1", "l2", "cosine"), "temporal": ("temporal",)}.get(distance, tuple(self.weights()))
        nothing: dict[str, Any] = {name: 0.0 for name in self.weights() if name not in terms}
        return replace(self, **nothing)


class DistillationLoss(nn.Module):
    """Mean over targets of L1(P S, T) - cos(P S, T), averaged over frames (DESIGN: arXiv 2402.16830 on 2305.17651).

    One linear projection P per number in `Target.projection`, initialized to the identity; no P where that is None.
    Every target weighs the same, whether it averages one layer or six, unless the weights are learned: then the mean
    over targets k of exp(-s_k) d_k + s_k is minimized (Kendall, Gal & Cipolla, arXiv 1705.07115), d_k ≥ 0 being the
    distance with 1 - cos for -cos. With a weight for it, the temporal relation of the frames is compared as well,
    without a projection: see `temporal_distance`.

    Args:
        targets: what to match.
        hidden_size: width D of the layers.
        config: weights of the terms.
        distance: which of the terms count.
        outputs: between the heads of student and teacher, where there are any.
        scales: what the states of each layer h_0 … h_L are divided by, on both sides, before they are averaged; None
            for the states as they are. See `skill_speech.similarity.LayerScales` for why.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        hidden_size: int,
        config: LossConfig | None = None,
        scales: Sequence[float] | None = None,
        outputs: OutputLoss | None = None,
        distance: Distance = "l1-cosine",
    ) -> None:
        super().__init__()
        self.targets, self.config = tuple(targets), (config or LossConfig()).of(distance)
        self.scales = None if scales is None else tuple(float(scale) for scale in scales)
        count = len({target.projection for target in self.targets} - {None})
        self.projections = nn.ModuleList(_identity(hidden_size) for _ in range(count))
        self.outputs = outputs
        self.units: UnitLoss | None = None
        learned = self.config.target_weights == "learned"
        self.log_variances_K = nn.Parameter(torch.zeros(len(self.targets))) if learned else None

    def forward(
        self,
        student: EncoderOutput,
        teacher: EncoderOutput,
        valid_BT: Tensor | None = None,
        labels: Labels = (),
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized (0-d), and its terms: "distillation" of the layers, "units", and those of `OutputLoss`.

        Args:
            student, teacher: of the same waveforms.
            valid_BT: True for frames that count; None for all.
            labels: transcript or labels of each utterance, for the head.
            mask_BT: True for frames that the student did not hear: their units are guessed; None for all.
        """
        terms, total = self._compare(student.layers, teacher.layers, valid_BT)
        if self.units is not None:
            counts_BT = valid_BT if mask_BT is None else mask_BT if valid_BT is None else mask_BT & valid_BT
            terms["units"] = self.units(student, teacher, counts_BT)
            total = total + self.units.weight * terms["units"]
        if self.outputs is None:
            return total, terms
        more = self.outputs(student, teacher, labels, padded=valid_BT is not None)
        return total + self.outputs.weighed(more), terms | more

    def of_layers(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], valid_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The distance of the layers and its terms, each 0-d: "distillation", "l1", "l2", "cosine", "temporal".

        Args:
            student, teacher: h_0 … h_L of each, all (B, T, D).
            valid_BT: True for frames that count; None for all.
        """
        return self._compare(student, teacher, valid_BT)[0]

    def _compare(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], valid_BT: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms, and what is minimized."""
        terms: dict[str, list[Tensor]] = {"l1": [], "l2": [], "cosine": [], "temporal": []}
        for target in self.targets:
            mean_BTD = self._mean(student, target.student)
            wanted_BTD = self._mean(teacher, target.teacher).float()
            if self.config.temporal:
                terms["temporal"].append(temporal_distance(mean_BTD, wanted_BTD, valid_BT))
            if not (self.config.l1 or self.config.l2 or self.config.cosine):
                continue
            if target.projection is not None:
                mean_BTD = self.projections[target.projection](mean_BTD)
            predicted_BTD = mean_BTD.float()
            if self.config.l1:
                terms["l1"].append(_frame_mean((predicted_BTD - wanted_BTD).abs().mean(-1), valid_BT))
            if self.config.l2:
                terms["l2"].append(_frame_mean((predicted_BTD - wanted_BTD).square().mean(-1), valid_BT))
            if self.config.cosine:
                cosine_BT = F.cosine_similarity(predicted_BTD, wanted_BTD, dim=-1)
                distance_BT = -cosine_BT if self.config.cosine_form == "raw" else -F.logsigmoid(cosine_BT)
                terms["cosine"].append(_frame_mean(distance_BT, valid_BT))
        of_targets = {name: torch.stack(values) for name, values in terms.items() if values}
        means = {name: values_K.mean() for name, values_K in of_targets.items()}
        distance = torch.stack([getattr(self.config, name) * value for name, value in means.items()]).sum()
        shown = {"distillation": distance, **means}
        if self.log_variances_K is None:
            return shown, distance
        distances_K = sum(getattr(self.config, name) * values_K for name, values_K in of_targets.items())
        if self.config.cosine_form == "raw":
            distances_K = distances_K + self.config.cosine
        weights_K = (-self.log_variances_K).exp()
        for number, weight in enumerate(weights_K.detach(), start=1):
            shown[f"weight_{number}"] = weight
        return shown, (weights_K * distances_K + self.log_variances_K).mean()

    def _mean(self, states: Sequence[Tensor], layers: Sequence[int]) -> Tensor:
        return mean_of(states, layers, self.scales, self.config.normalize_frames)

    def targets_of(self, output: EncoderOutput) -> list[Tensor]:
        """What a teacher's output gives to match (B, T, D), one for each target."""
        return [self._mean(output.layers, target.teacher) for target in self.targets]


def temporal_distance(student_BTD: Tensor, teacher_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
    """Mean squared difference of the cosines between frames t and u, over all pairs of an utterance's frames (0-d).

    With frames of length 1 in the rows of S and T, what is compared are the matrices of frames by frames S Sᵀ and T Tᵀ
    (temporal relation: STaR, arXiv 2312.09040). They are never made. With E = S - T and P = S + T:

        ‖S Sᵀ - T Tᵀ‖² = ¼ ‖E Pᵀ + P Eᵀ‖² = ½ (⟨Eᵀ E, Pᵀ P⟩ + ⟨Eᵀ P, Pᵀ E⟩)

    where the matrices on the right are of features by features, however long the utterance is; and as all of it shrinks
    with E, the products lose nothing in bfloat16, which a difference of large numbers would.
    """
    with torch.autocast(student_BTD.device.type, enabled=False):
        s_BTD, t_BTD = (F.normalize(x_BTD.float(), dim=-1) for x_BTD in (student_BTD, teacher_BTD))
        B, T, _ = s_BTD.shape
        frames_B = torch.full((B,), float(T), device=s_BTD.device)
        if valid_BT is not None:
            s_BTD, t_BTD = (x_BTD * valid_BT[..., None] for x_BTD in (s_BTD, t_BTD))
            frames_B = valid_BT.sum(-1).float()
        e_BTD, p_BTD = s_BTD - t_BTD, s_BTD + t_BTD
    e_BDT = e_BTD.transpose(1, 2)
    ee_BDD, pp_BDD, ep_BDD = e_BDT @ e_BTD, p_BTD.transpose(1, 2) @ p_BTD, e_BDT @ p_BTD
    # Every pair of frames counts the same, in short utterances and long ones.
    apart = (ee_BDD.float() * pp_BDD.float()).sum() + (ep_BDD.float() * ep_BDD.float().transpose(1, 2)).sum()
    return 0.5 * apart / frames_B.square().sum()


def _identity(width: int) -> nn.Linear:
    projection = nn.Linear(width, width)
    nn.init.eye_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


def mean_of(
    states: Sequence[Tensor],
    layers: Sequence[int],
    scales: Sequence[float] | None = None,
    normalize_frames: bool = False,
) -> Tensor:
    """Mean of some layers' states (B, T, D), each divided by its scale, its frames brought to mean 0 and variance 1."""
    chosen = [states[layer] if scales is None else states[layer] / scales[layer] for layer in layers]
    if normalize_frames:
        chosen = [F.layer_norm(state_BTD, state_BTD.shape[-1:]) for state_BTD in chosen]
    total = chosen[0]
    for state_BTD in chosen[1:]:
        total = total + state_BTD
    return total / len(layers) if len(layers) > 1 else total


def _frame_mean(x_BT: Tensor, valid_BT: Tensor | None) -> Tensor:
    if valid_BT is None:
        return x_BT.mean()
    return (x_BT * valid_BT).sum() / valid_BT.sum()
