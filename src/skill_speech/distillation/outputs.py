"""The outputs of a fine-tuned model, distilled beside its layers; and the labels, where there are any.

Shapes: B utterances, T frames, V outputs, D width of an embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import EncoderOutput
from ..heads import Head, HeadConfig, HeadOutput, XVectorHead, margin_softmax_loss

Labels = Sequence[tuple[Any, ...] | None]
"""Of each utterance of a batch its labels, or its transcript; None where nothing is said of them."""
Encode = Callable[[tuple[Any, ...]], list[int] | None]
"""From an utterance's transcript or labels to the outputs that stand for them; None if none does."""
OF_UTTERANCES = 0.1
"""Default weight of the outputs of a sequence classifier. At 1 the layers are learned worse, and with them the task."""


@dataclass(frozen=True)
class HeadTraining:
    """The head of a fine-tuned teacher: whether the student keeps it, and how its outputs are distilled.

    Attributes:
        keep: Keep the teacher's head in the student and distill its outputs along with the layers; otherwise the head
            is dropped.
        outputs: Weight of the distance between student and teacher outputs: the KL divergence KL(teacher || student) of
            the probabilities of each frame or utterance, the squared error of regression outputs, and 1 - cos of
            speaker embeddings. By default, 0.1 for sequence classification heads and 1 for others.
        temperature: Distillation temperature: logits are divided by it, and the divergence is multiplied by its square
            (Hinton et al. 2015).
        labels: Weight of the supervised loss (CTC or cross-entropy) on data with transcripts or labels; 0 uses none. If
            above 0, utterances are padded to the longest of the batch instead of cropped to the shortest.
        learning_rate: Peak learning rate of the head; by default, that of the stage.
    """

    keep: bool = True
    outputs: float | None = None
    temperature: float = 1.0
    labels: float = 0.0
    learning_rate: float | None = None


class OutputLoss(nn.Module):
    """How far the student's outputs are from the teacher's, and from the labels.

    Args:
        teacher: the head, which is frozen; the student's begins as a copy of it.
        config: weights and temperature.
        encode: from the text or label of an utterance to its outputs; needed where the labels weigh something.
    """

    def __init__(self, teacher: Head, config: HeadTraining, encode: Encode | None = None) -> None:
        super().__init__()
        # Not a submodule: the teacher does not belong into the checkpoints.
        self._teacher = [copy.deepcopy(teacher).eval().requires_grad_(False)]
        self.head, self.config, self.encode = copy.deepcopy(teacher).requires_grad_(True), config, encode
        usual = OF_UTTERANCES if teacher.config.kind == "sequence" else 1.0
        self.weight = usual if config.outputs is None else config.outputs

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, labels: Labels = (), padded: bool = True
    ) -> dict[str, Tensor]:
        """The terms, each 0-d: "outputs" and, where labels weigh something and there are any, "labels".

        Args:
            student, teacher: of the same waveforms.
            labels: transcript or labels of each utterance.
            padded: utterances may be shorter than the batch; otherwise nothing is asked of their lengths, so that
                tensors without contents will do.
        """
        device = student.last_hidden_state_BTD.device
        student, teacher, labels = self._long_enough(student, teacher, labels, padded)
        if not len(student.lengths_B):
            return {}
        with torch.autocast(device.type, enabled=False):  # a head costs next to nothing, and its softmax is touchy
            with torch.no_grad():
                wanted = self._teacher[0].to(device)(self._in_float32(teacher))
            made: HeadOutput = self.head(self._in_float32(student))
            terms = {"outputs": distance(made, wanted, self.head.config, self.config.temperature)}
            if self.config.labels and labels:
                assert self.encode is not None
                targets = [None if given is None else self.encode(given) for given in labels]
                loss = labeled_loss(made, targets, self.head)
                terms |= {} if loss is None else {"labels": loss}
        return terms

    def weighed(self, terms: dict[str, Tensor]) -> Tensor | float:
        """What the terms add to what is minimized (0-d)."""
        weights = {"outputs": self.weight, "labels": self.config.labels}
        return sum((weights[name] * terms[name] for name in weights if name in terms), 0.0)

    def _in_float32(self, output: EncoderOutput) -> EncoderOutput:
        """What the head reads of an output of bf16 kernels or autocast."""
        last_BTD = output.last_hidden_state_BTD.float()
        if self.head.layer_weights is None:
            return output._replace(last_hidden_state_BTD=last_BTD)
        layers = tuple(state_BTD.float() for state_BTD in output.layer_outputs)
        embedded_BTD = output.embedded_BTD.float()
        return output._replace(embedded_BTD=embedded_BTD, layer_outputs=layers, last_hidden_state_BTD=last_BTD)

    def _long_enough(
        self, student: EncoderOutput, teacher: EncoderOutput, labels: Labels, padded: bool
    ) -> tuple[EncoderOutput, EncoderOutput, Labels]:
        """Without utterances that are too short for the head."""
        B, T, _ = student.last_hidden_state_BTD.shape
        if self.head.least_frames > T:
            rows: list[int] = []
        elif padded:
            rows = (student.lengths_B >= self.head.least_frames).nonzero().flatten().tolist()
        else:
            rows = list(range(B))
        if len(rows) == B:
            return student, teacher, labels
        kept = [labels[row] for row in rows] if labels else labels
        return _rows(student, rows), _rows(teacher, rows), kept


def _rows(output: EncoderOutput, rows: list[int]) -> EncoderOutput:
    return EncoderOutput(
        features_BTD=output.features_BTD[rows],
        embedded_BTD=output.embedded_BTD[rows],
        layer_outputs=tuple(state_BTD[rows] for state_BTD in output.layer_outputs),
        last_hidden_state_BTD=output.last_hidden_state_BTD[rows],
        lengths_B=output.lengths_B[rows],
    )


def distance(student: HeadOutput, teacher: HeadOutput, config: HeadConfig, temperature: float = 1.0) -> Tensor:
    """How far outputs are apart (0-d), averaged over utterances, or over all valid frames.

    With logits s and t and p = softmax(t / τ), q = softmax(s / τ), of the blank as of any output:
    τ² Σ_v p_v (log p_v - log q_v). Where any number of labels may hold, the sum over labels of the divergences of
    yes and no; numbers that are predicted: the squared error; speaker embeddings, and what follows them: 1 - cos.
    """
    if config.kind == "x-vector":
        # The output of the classifier after the embedding counts as much, so that it is trained too.
        pairs = ((student.embeddings_BD, teacher.embeddings_BD), (student.logits, teacher.logits))
        cosines = [
            F.cosine_similarity(mine, wanted, dim=-1)
            for mine, wanted in pairs
            if mine is not None and wanted is not None
        ]
        return (1 - torch.stack(cosines)).mean()
    if config.problem == "regression":
        apart = (student.logits - teacher.logits).square().mean(-1)
    elif config.problem == "multi-label":
        logits, wanted = student.logits / temperature, teacher.logits / temperature
        cross = F.binary_cross_entropy_with_logits(logits, wanted.sigmoid(), reduction="none")
        own = F.binary_cross_entropy_with_logits(wanted, wanted.sigmoid(), reduction="none")
        apart = temperature**2 * (cross - own).sum(-1)
    else:
        log_q, log_p = (logits.div(temperature).log_softmax(-1) for logits in (student.logits, teacher.logits))
        apart = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
    if student.lengths_B is None:
        return apart.mean()
    valid_BT = torch.arange(apart.shape[1], device=apart.device) < student.lengths_B[:, None]
    return apart.masked_fill(~valid_BT, 0).sum() / valid_BT.sum()


def labeled_loss(made: HeadOutput, targets: Sequence[Sequence[int] | None], head: Head) -> Tensor | None:
    """The loss of the labels (0-d), a mean over the utterances that have one; None if none has.

    CTC's is divided by the number of tokens, and that of a transcript that does not fit into its frames is 0. A speaker
    embedding's is the additive margin softmax.

    Args:
        made: by the head.
        targets: outputs of each utterance: its tokens, or its labels, which can be none where any number of them may
            hold; None where they are not known.
        head: whose outputs they are.
    """
    config, device = head.config, made.logits.device
    several = config.problem == "multi-label"
    pairs = [(row, target) for row, target in enumerate(targets) if target is not None and (several or target)]
    if not pairs:
        return None
    rows, known = [row for row, _ in pairs], [target for _, target in pairs]
    logits = made.logits[rows]
    if config.kind == "ctc":
        assert made.lengths_B is not None
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's is not deterministic
            return F.ctc_loss(
                logits.log_softmax(-1).transpose(0, 1),
                torch.tensor([token for target in known for token in target], device=device),
                made.lengths_B[rows],
                torch.tensor([len(target) for target in known], device=device),
                blank=config.blank,
                reduction="mean",
                zero_infinity=True,
            )
    if several:
        wanted = torch.zeros_like(logits)
        for row, target in enumerate(known):
            wanted[row, list(target)] = 1
        return F.binary_cross_entropy_with_logits(logits, wanted)
    classes_B = torch.tensor([target[0] for target in known], device=device)
    if config.kind == "x-vector":
        assert isinstance(head, XVectorHead)
        return margin_softmax_loss(head.objective(logits), classes_B)
    return F.cross_entropy(logits, classes_B)
