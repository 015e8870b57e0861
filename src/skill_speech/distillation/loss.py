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

Distance = Literal["l1-cosine", "temporal", "both"]


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of the distance between student and teacher; which of them count, `distance` says.

    Attributes:
        l1: weight of the mean absolute difference.
        l2: weight of the mean squared difference.
        cosine: weight of the cosine term.
        temporal: weight of the mean squared difference of the cosines between all pairs of frames.
        cosine_form: "raw" is -cos, "log-sigmoid" is -log sigmoid(cos).
    """

    l1: float = 1.0
    l2: float = 0.0
    cosine: float = 1.0
    temporal: float = 10.0
    cosine_form: Literal["raw", "log-sigmoid"] = "raw"

    def weights(self) -> dict[str, float]:
        """The weights by name, without the other settings."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, str)}

    def of(self, distance: Distance) -> LossConfig:
        """The same with nothing for the terms that are no part of a distance."""
        terms = {"l1-cosine": ("l1", "l2", "cosine"), "temporal": ("temporal",)}.get(distance, tuple(self.weights()))
        nothing: dict[str, Any] = {name: 0.0 for name in self.weights() if name not in terms}
        return replace(self, **nothing)


class DistillationLoss(nn.Module):
    """Mean over targets of L1(P S, T) - cos(P S, T), averaged over frames (DESIGN: arXiv 2402.16830 on 2305.17651).

    One linear projection P per number in `Target.projection`, initialised to the identity; no P where that is None.
    Every target weighs the same, whether it averages one layer or six. With a weight for it, the temporal relation of
    the frames is compared as well, without a projection: see `temporal_distance`.

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

    def forward(
        self,
        student: EncoderOutput,
        teacher: EncoderOutput,
        valid_BT: Tensor | None = None,
        labels: Labels = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised (0-d), and the terms of it: "distillation" of the layers and, with a head, of `OutputLoss`.

        Args:
            student, teacher: of the same waveforms.
            valid_BT: True for frames that count; None for all.
            labels: transcript or labels of each utterance, for the head.
        """
        terms = self.of_layers(student.layers, teacher.layers, valid_BT)
        if self.outputs is None:
            return terms["distillation"], terms
        more = self.outputs(student, teacher, labels)
        return terms["distillation"] + self.outputs.weighed(more), terms | more

    def of_layers(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], valid_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The distance of the layers and its terms, each 0-d: "distillation", "l1", "l2", "cosine".

        Args:
            student, teacher: h_0 … h_L of each, all (B, T, D).
            valid_BT: True for frames that count; None for all.
        """
        terms: dict[str, list[Tensor]] = {"l1": [], "l2": [], "cosine": [], "temporal": []}
        for target in self.targets:
            mean_BTD = mean_of(student, target.student, self.scales)
            wanted_BTD = mean_of(teacher, target.teacher, self.scales).float()
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
        means = {name: torch.stack(values).mean() for name, values in terms.items() if values}
        weighted = [getattr(self.config, name) * value for name, value in means.items()]
        return {"distillation": torch.stack(weighted).sum(), **means}

    def targets_of(self, output: EncoderOutput) -> list[Tensor]:
        """What a teacher's output gives to match (B, T, D), one for each target."""
        return [mean_of(output.layers, target.teacher, self.scales) for target in self.targets]


def temporal_distance(student_BTD: Tensor, teacher_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
    """Mean squared difference of the cosines between frames t and u, over all pairs of an utterance's frames (0-d).

    With frames of length 1 in the rows of S and T, what is compared are the matrices of frames by frames S Sᵀ and T Tᵀ
    (temporal relation: STaR, arXiv 2312.09040). They are never made:

        ‖S Sᵀ - T Tᵀ‖² = ‖Sᵀ S‖² - 2 ‖Sᵀ T‖² + ‖Tᵀ T‖²

    where the matrices on the right are of features by features, however long the utterance is.
    """
    with torch.autocast(student_BTD.device.type, enabled=False):  # a small difference of large numbers
        s_BTD, t_BTD = (F.normalize(x_BTD.float(), dim=-1) for x_BTD in (student_BTD, teacher_BTD))
        B, T, _ = s_BTD.shape
        frames_B = torch.full((B,), float(T), device=s_BTD.device)
        if valid_BT is not None:
            s_BTD, t_BTD = (x_BTD * valid_BT[..., None] for x_BTD in (s_BTD, t_BTD))
            frames_B = valid_BT.sum(-1).float()
        squares_B = [
            (x_BTD.transpose(1, 2) @ y_BTD).square().sum((1, 2))
            for x_BTD, y_BTD in ((s_BTD, s_BTD), (s_BTD, t_BTD), (t_BTD, t_BTD))
        ]
        apart_B = squares_B[0] - 2 * squares_B[1] + squares_B[2]
        # Every pair of frames counts the same, in short utterances and long ones.
        return apart_B.sum() / frames_B.square().sum()


def _identity(width: int) -> nn.Linear:
    projection = nn.Linear(width, width)
    nn.init.eye_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


def mean_of(states: Sequence[Tensor], layers: Sequence[int], scales: Sequence[float] | None = None) -> Tensor:
    """Mean of some layers' states (B, T, D), each divided by its scale where there are scales."""
    chosen = [states[layer] if scales is None else states[layer] / scales[layer] for layer in layers]
    total = chosen[0]
    for state_BTD in chosen[1:]:
        total = total + state_BTD
    return total / len(layers) if len(layers) > 1 else total


def _frame_mean(x_BT: Tensor, valid_BT: Tensor | None) -> Tensor:
    if valid_BT is None:
        return x_BT.mean()
    return (x_BT * valid_BT).sum() / valid_BT.sum()
