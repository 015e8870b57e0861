"""How far the student's layers are from the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import EncoderOutput
from .outputs import Labels, OutputLoss
from .targets import Target


@dataclass(frozen=True)
class LossConfig:
    """Weights of the distance between a projected student state and its target.

    Attributes:
        l1: weight of the mean absolute difference.
        l2: weight of the mean squared difference.
        cosine: weight of the cosine term.
        cosine_form: "raw" is -cos, "log-sigmoid" is -log sigmoid(cos).
    """

    l1: float = 1.0
    l2: float = 0.0
    cosine: float = 1.0
    cosine_form: Literal["raw", "log-sigmoid"] = "raw"

    def weights(self) -> dict[str, float]:
        """The weights by name, without the other settings."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, str)}


class DistillationLoss(nn.Module):
    """Mean over targets of L1(P S, T) - cos(P S, T), averaged over frames (DESIGN: arXiv 2402.16830 on 2305.17651).

    One linear projection P per number in `Target.projection`, initialised to the identity. Every target weighs the
    same, whether it averages one layer or six.

    Args:
        targets: what to match.
        hidden_size: width D of the layers.
        config: weights of the terms.
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
    ) -> None:
        super().__init__()
        self.targets, self.config = tuple(targets), config or LossConfig()
        self.scales = None if scales is None else tuple(float(scale) for scale in scales)
        count = 1 + max(target.projection for target in self.targets)
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
        terms: dict[str, list[Tensor]] = {"l1": [], "l2": [], "cosine": []}
        for target in self.targets:
            projection = self.projections[target.projection]
            predicted_BTD = projection(mean_of(student, target.student, self.scales)).float()
            wanted_BTD = mean_of(teacher, target.teacher, self.scales).float()
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
