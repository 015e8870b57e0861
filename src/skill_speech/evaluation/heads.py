"""What is trained on frozen features: the weighted sum of hidden states, and s3prl's heads of all tasks.

Legend of the tensor suffixes: B utterances, T frames, L hidden states, D features, C classes or channels, K models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class Downstream(nn.Module):
    """A head and the weights of the hidden states that it reads.

    Attributes:
        weights_L: before the softmax, zeros at the start; of a single hidden state there are none.
        head: of the task.
    """

    def __init__(self, num_states: int, head: nn.Module) -> None:
        super().__init__()
        self.weights_L = nn.Parameter(torch.zeros(num_states)) if num_states > 1 else None
        self.head = head

    def layer_weights(self) -> Tensor:
        """How much of each hidden state is in the sum (L,)."""
        if self.weights_L is None:
            return torch.ones(1, device=next(self.parameters()).device)
        return self.weights_L.softmax(0)


def weighted_sums(models: Sequence[Downstream], states: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The features that each model makes of the hidden states of a batch: K tensors (B, T, D), zeros in the padding.

    The states are read and widened to float32 once for all models.

    Args:
        models: K of them.
        states: hidden states (L, T, D) of every utterance, on the CPU.
        device: of the models.
    """
    L, _, D = states[0].shape
    lengths = [states_LTD.shape[1] for states_LTD in states]
    all_LTD = torch.empty(L, sum(lengths), D, device=device)
    start = 0
    for states_LTD, length in zip(states, lengths, strict=True):
        all_LTD[:, start : start + length] = states_LTD.to(device)
        start += length
    weights_KL = torch.stack([model.layer_weights() for model in models])
    sums_KTD = (weights_KL @ all_LTD.flatten(1)).view(len(models), -1, D)
    return [pad_sequence(sums_TD.split(lengths), batch_first=True) for sums_TD in sums_KTD]


class BidirectionalLSTM(nn.Module):
    """One bidirectional LSTM layer over utterances of different lengths.

    Each direction is a layer of its own, and the backward one reads every utterance turned round. torch's packed
    sequences do the same, but on a CPU they leave the fast kernels: at a width of 1024 they take eight times as long.
    """

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(width, hidden_size, batch_first=True)
        self.backwards = nn.LSTM(width, hidden_size, batch_first=True)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """(B, T, D) → (B, T, 2 · hidden size); what comes out of the padding means nothing."""
        turned_BT = _turned(lengths_B, x_BTD.shape[1]).to(x_BTD.device)
        rows_B1 = torch.arange(len(x_BTD), device=x_BTD.device)[:, None]
        forwards_BTD, _ = self.forwards(x_BTD)
        backwards_BTD, _ = self.backwards(x_BTD[rows_B1, turned_BT])
        return torch.cat([forwards_BTD, backwards_BTD[rows_B1, turned_BT]], dim=2)


class CTCHead(nn.Module):
    """Linear layer, bidirectional LSTM layers (or none) with dropout after each, linear layer."""

    def __init__(
        self, width: int, classes: int, *, projection_size: int, hidden_size: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(width, projection_size)
        widths = [projection_size] + [2 * hidden_size] * layers
        self.recurrent = nn.ModuleList(BidirectionalLSTM(below, hidden_size) for below in widths[:-1])
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(widths[-1], classes)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Features → scores of the classes (B, T, C)."""
        x_BTD = self.projection(x_BTD)
        for lstm in self.recurrent:
            x_BTD = self.dropout(lstm(x_BTD, lengths_B))
        return self.output(x_BTD)


class PooledHead(nn.Module):
    """Linear layer, mean over time, linear layer, nothing in between."""

    def __init__(self, width: int, classes: int, *, projection_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, projection_size)
        self.output = nn.Linear(projection_size, classes)

    def forward(self, x_BTD: Tensor, weights_BT: Tensor) -> Tensor:
        """Features, and how many frames each stands for (0 for padding) → scores of the classes (B, C).

        The mean is taken first, which is the same and cheaper.
        """
        mean_BD = torch.einsum("btd,bt->bd", x_BTD, weights_BT) / weights_BT.sum(1, keepdim=True)
        return self.output(self.projection(mean_BD))


class DiarizationHead(nn.Module):
    """LSTM in time's direction and a linear layer: one score per speaker and frame."""

    def __init__(self, width: int, speakers: int, *, hidden_size: int, layers: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(width, hidden_size, num_layers=layers, batch_first=True)
        self.output = nn.Linear(hidden_size, speakers)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Features → scores before the sigmoid (B, T, speakers)."""
        return self.output(self.recurrent(x_BTD)[0])


class XVector(nn.Module):
    """Frame layers over growing contexts, mean and standard deviation over time, two linear layers.

    Snyder et al. 2018. The contexts are 5 frames, 3 frames two apart, 3 frames three apart, and twice a single frame:
    14 frames fewer come out than go in.
    """

    context = 14

    def __init__(self, width: int, *, projection_size: int, pooled_size: int) -> None:
        super().__init__()
        size = projection_size
        self.projection = nn.Linear(width, size)
        self.frame_layers = nn.ModuleList(
            nn.Conv1d(size, outputs, kernel, dilation=dilation)
            for outputs, kernel, dilation in (
                (size, 5, 1),
                (size, 3, 2),
                (size, 3, 3),
                (size, 1, 1),
                (pooled_size, 1, 1),
            )
        )
        self.embedding = nn.Linear(2 * pooled_size, size)
        self.output = nn.Linear(size, size)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Features → what the loss is taken of (B, D)."""
        return F.relu(self.output(self.embed(x_BTD, lengths_B)))

    def embed(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Features → embeddings of the speakers (B, D), from the layer before the last."""
        x_BCT = self.projection(x_BTD).transpose(1, 2)
        for layer in self.frame_layers:
            x_BCT = F.relu(layer(x_BCT))
        lengths_B = lengths_B.to(x_BCT.device) - self.context
        valid_B1T = (torch.arange(x_BCT.shape[2], device=x_BCT.device) < lengths_B[:, None])[:, None]
        count_B1 = lengths_B[:, None]
        mean_BC = (x_BCT * valid_B1T).sum(2) / count_B1
        squares_BC = ((x_BCT - mean_BC[..., None]).square() * valid_B1T).sum(2)
        # Of one frame there is no deviation; and the root has no slope at zero, where a unit is silent throughout.
        deviation_BC = (squares_BC / (count_B1 - 1).clamp(min=1) + 1e-12).sqrt()
        return F.relu(self.embedding(torch.cat([mean_BC, deviation_BC], dim=1)))


class AdditiveMarginSoftmax(nn.Module):
    """Cross-entropy of scaled cosines, the true one made smaller by a margin (Wang et al. 2018, eq. 6)."""

    def __init__(self, width: int, classes: int, *, scale: float, margin: float) -> None:
        super().__init__()
        self.weight_CD = nn.Parameter(torch.empty(classes, width))
        nn.init.xavier_normal_(self.weight_CD)
        self.scale, self.margin = scale, margin

    def forward(self, x_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Mean loss of embeddings (B, D) and their classes (B,)."""
        cosines_BC = F.normalize(x_BD, dim=1) @ F.normalize(self.weight_CD, dim=1).T
        margins_BC = F.one_hot(labels_B, len(self.weight_CD)) * self.margin
        return F.cross_entropy(self.scale * (cosines_BC - margins_BC), labels_B)


def _turned(lengths_B: Tensor, frames: int) -> Tensor:
    """Places of the frames of utterances read backwards (B, T); padding stays: [2 1 0 3] for 3 frames of 4."""
    places_T = torch.arange(frames, device=lengths_B.device)
    backwards_BT = lengths_B[:, None] - 1 - places_T
    return torch.where(backwards_BT >= 0, backwards_BT, places_T)
