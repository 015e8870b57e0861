"""Discrete units per frame, what masked prediction predicts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import MiniBatchKMeans

from lab.corpus import Utterance
from lab.features import mfcc
from skill_speech import Encoder

Units = list[npt.NDArray[np.int64]]


def mfcc_units(corpus: list[Utterance], clusters: int, seed: int) -> Units:
    """k-means on MFCC: HuBERT's first iteration."""
    return _cluster(corpus, lambda utterance: mfcc(utterance.waveform()), clusters, seed)


def layer_units(corpus: list[Utterance], encoder: Encoder, layer: int, clusters: int, seed: int) -> Units:
    """k-means on an inner layer of an earlier model: HuBERT's second iteration."""
    encoder.eval()

    def features(utterance: Utterance) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return encoder(utterance.waveform()[None]).layers[layer][0].numpy()

    return _cluster(corpus, features, clusters, seed)


def phoneme_units(corpus: list[Utterance]) -> tuple[Units, list[str]]:
    """The true phoneme of every frame, and the inventory; they can stand in for the first iteration."""
    inventory = sorted({phoneme for utterance in corpus for phoneme in utterance.phonemes} | {""})
    number = {phoneme: index for index, phoneme in enumerate(inventory)}
    return [np.array([number[p] for p in utterance.frame_phonemes()]) for utterance in corpus], inventory


def speaker_units(corpus: list[Utterance]) -> Units:
    """The speaker of every frame: what a teacher has to know of voices."""
    number = {speaker: index for index, speaker in enumerate(sorted({utterance.speaker for utterance in corpus}))}
    return [np.full(utterance.frames, number[utterance.speaker]) for utterance in corpus]


def _cluster(
    corpus: list[Utterance],
    features: Callable[[Utterance], npt.NDArray[np.float32]],
    clusters: int,
    seed: int,
    sample: int = 400,
) -> Units:
    """Fit k-means on a sample of utterances, then label all of them."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(corpus))[:sample]
    data = np.concatenate([features(corpus[index]) for index in chosen])
    mean, scale = data.mean(0), data.std(0) + 1e-5
    kmeans = MiniBatchKMeans(clusters, batch_size=10_000, n_init=3, random_state=seed)
    kmeans.fit((data - mean) / scale)
    return [kmeans.predict((features(utterance) - mean) / scale).astype(np.int64) for utterance in corpus]
