"""Query by example: spoken queries found in spoken documents by dynamic time warping, layer by layer.

Legend of the tensor suffixes: Q queries, N documents, L layers, I, J frames of a query and of a document, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..corpora import TaskData
from ..metrics import max_term_weighted_value
from ..protocol import QueryConfig
from ..states import HiddenStates

CELLS = 8_000_000
"""Frame pairs of a query and the documents that it is compared with at a time."""


def search(
    data: TaskData, config: QueryConfig, states: Mapping[str, HiddenStates], progress: Callable[[], object]
) -> dict[str, Any]:
    """The MTWV of the layer and distance that are best on the development queries.

    Args:
        data: queries and documents, and which match.
        config: distances to try.
        states: hidden states of the splits, with all frames.
        progress: called after every layer of the development queries, and after the test queries.

    Returns:
        "mtwv" on the test queries, "layer", "distance", and "dev": layer → distance → MTWV.
    """
    upstream = states["queries_dev"].upstream
    dev: dict[int, dict[str, float]] = {}
    for layer in range(upstream.num_states):
        dev[layer] = _values(data, "dev", config.distances, config, states, layer)
        progress()
    layer, distance = max(
        ((layer, distance) for layer in dev for distance in config.distances), key=lambda pair: dev[pair[0]][pair[1]]
    )
    test = _values(data, "test", (distance,), config, states, layer)
    progress()
    return {"mtwv": test[distance], "layer": layer, "distance": distance, "dev": dev}


def detection_scores(
    queries: Sequence[Tensor],
    documents: Sequence[Tensor],
    distances: Sequence[str],
    *,
    min_frames: int = 5,
) -> dict[str, Tensor]:
    """How surely each query is in each document (Q, N), by distance: the negative cost of the best path.

    Every feature is first brought to zero mean and unit variance over all frames of queries and documents, and the
    scores of a query over all documents as well. A query of fewer than `min_frames` frames scores 0 everywhere.

    Args:
        queries, documents: features (frames, D).
        distances: "cosine_exp", "cosine", "euclidean".
    """
    mean_D, deviation_D = _moments([*queries, *documents])
    queries = [(query_ID - mean_D) / deviation_D for query_ID in queries]
    order = sorted(range(len(documents)), key=lambda number: -len(documents[number]))
    scores = {distance: torch.zeros(len(queries), len(documents)) for distance in distances}
    for group in _groups(order, [len(documents[number]) for number in order], max(map(len, queries))):
        documents_NJD = pad_sequence([(documents[number] - mean_D) / deviation_D for number in group], batch_first=True)
        lengths_N = torch.tensor([len(documents[number]) for number in group])
        for row, query_ID in enumerate(queries):
            if len(query_ID) >= min_frames:
                for distance, costs_NIJ in _frame_distances(query_ID, documents_NJD, distances):
                    scores[distance][row, group] = -subsequence_cost(costs_NIJ, lengths_N).cpu()
    for scores_QN in scores.values():
        deviation_Q1 = scores_QN.std(1, correction=0, keepdim=True).clamp(min=1e-9)
        scores_QN.copy_((scores_QN - scores_QN.mean(1, keepdim=True)) / deviation_Q1)
    return scores


def subsequence_cost(costs_NIJ: Tensor, lengths_N: Tensor) -> Tensor:
    """The smallest mean cost per query frame of any path through the documents (N,).

    The costs of a query frame are first brought to 0 … 1 over the document. A path takes every query frame once, may
    start and end anywhere in the document, and stays, advances by one or skips one document frame from a query frame to
    the next (the asymmetric steps of Sakoe & Chiba 1978 without slope constraint).

    Args:
        costs_NIJ: distances of all pairs of frames.
        lengths_N: frames of each document; what follows is padding.
    """
    padding_N1J = (torch.arange(costs_NIJ.shape[2]) >= lengths_N[:, None])[:, None].to(costs_NIJ.device)
    lowest_NI1 = costs_NIJ.masked_fill(padding_N1J, torch.inf).amin(2, keepdim=True)
    highest_NI1 = costs_NIJ.masked_fill(padding_N1J, -torch.inf).amax(2, keepdim=True)
    costs_NIJ = (costs_NIJ - lowest_NI1) / (highest_NI1 - lowest_NI1).clamp(min=1e-9)
    costs_NIJ = costs_NIJ.masked_fill(padding_N1J, torch.inf)
    sums_NJ = costs_NIJ[:, 0].clone()
    for costs_NJ in costs_NIJ.unbind(1)[1:]:
        before_NJ = sums_NJ.clone()
        torch.minimum(before_NJ[:, 1:], sums_NJ[:, :-1], out=before_NJ[:, 1:])
        torch.minimum(before_NJ[:, 2:], sums_NJ[:, :-2], out=before_NJ[:, 2:])
        sums_NJ = before_NJ + costs_NJ
    return sums_NJ.amin(1) / costs_NIJ.shape[1]


def _values(
    data: TaskData,
    split: str,
    distances: Sequence[str],
    config: QueryConfig,
    states: Mapping[str, HiddenStates],
    layer: int,
) -> dict[str, float]:
    """MTWV of one layer by distance, over all queries and documents of the ground truth, those not searched missed."""
    queries, documents = states[f"queries_{split}"], states["documents"]
    found = detection_scores(
        _features(queries, layer), _features(documents, layer), distances, min_frames=config.min_frames
    )
    rows = {name: row for row, name in enumerate(data.extra["queries"][split])}
    columns = {name: column for column, name in enumerate(data.extra["documents"])}
    matches_QN = np.zeros((len(rows), len(columns)), dtype=bool)
    for query, document in data.extra["matches"][split]:
        matches_QN[rows[query], columns[document]] = True
    searched = np.ix_([rows[cut.id] for cut in queries.cuts], [columns[cut.id] for cut in documents.cuts])
    values = {}
    for distance, scores in found.items():
        scores_QN = np.full(matches_QN.shape, -np.inf)
        scores_QN[searched] = scores.numpy()
        values[distance] = max_term_weighted_value(scores_QN, matches_QN)
    return values


def _features(states: HiddenStates, layer: int) -> list[Tensor]:
    """One hidden state (frames, D) of every utterance."""
    device = states.upstream.device
    parts = (states.get([index])[0] for index in range(len(states)))
    return [states_LTD[layer].float().to(device) for states_LTD in parts]


def _frame_distances(query_ID: Tensor, documents_NJD: Tensor, distances: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Each distance of all pairs of frames (N, I, J)."""
    products_NIJ = query_ID @ documents_NJD.transpose(1, 2)
    query_norms_I1 = query_ID.norm(dim=1)[:, None]
    document_norms_N1J = documents_NJD.norm(dim=2)[:, None]
    for distance in distances:
        if distance == "euclidean":
            squares_NIJ = query_norms_I1.square() + document_norms_N1J.square() - 2 * products_NIJ
            yield distance, squares_NIJ.clamp(min=0).sqrt()
        else:
            cosines_NIJ = products_NIJ / (query_norms_I1 * document_norms_N1J).clamp(min=1e-9)
            yield distance, 1 - cosines_NIJ if distance == "cosine" else (1 - cosines_NIJ).exp() - 1


def _moments(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature over all frames, (D,) each."""
    count = sum(map(len, features))
    mean_D = torch.stack([x_TD.sum(0, dtype=torch.float64) for x_TD in features]).sum(0) / count
    squares_D = torch.stack([(x_TD - mean_D).square().sum(0) for x_TD in features]).sum(0)
    return mean_D.float(), (squares_D / max(1, count - 1)).sqrt().clamp(min=1e-9).float()


def _groups(order: Sequence[int], lengths: Sequence[int], query_frames: int) -> list[list[int]]:
    """Documents of similar length, longest first, as many at a time as memory takes."""
    groups: list[list[int]] = []
    longest = 0
    for number, length in zip(order, lengths, strict=True):
        if not groups or (len(groups[-1]) + 1) * longest * query_frames > CELLS or length < 0.7 * longest:
            groups.append([])
            longest = length
        groups[-1].append(number)
    return groups
