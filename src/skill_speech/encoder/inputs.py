# SPDX-License-Identifier: Apache-2.0
"""What an encoder is given: made tensors of, or refused in a sentence.

Shapes: B utterances, T samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def as_batch(waveforms: Any, lengths: Any, shortest: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Waveforms (B, T) and, unless no utterance is padded, their true lengths (B,).

    Tensors that are a batch are given back as they are. A program that is being compiled or exported cannot look at its
    inputs and takes them as they are, too.

    Args:
        waveforms: floating-point samples (B, T), or (T,) of one utterance; also an array, or a list of utterances of
            any lengths.
        lengths: whole numbers of samples, one per utterance; those of a list of utterances are known without.
        shortest: samples that an utterance needs.
        like: a weight of the encoder: where arrays and lists go, and the type that float64 becomes.

    Raises:
        ValueError: no utterance, one that is too short, samples that are no floating-point numbers, another number of
            lengths than of utterances, or a length beyond the samples. Lengths on a GPU are not looked at: that would
            stop the CPU until the GPU is done.
    """
    if torch.compiler.is_compiling():
        return waveforms, lengths
    waveforms_BT, own_B = _waveforms(waveforms, like)
    if waveforms_BT.dtype == torch.float64 != like.dtype:
        waveforms_BT = waveforms_BT.to(torch.promote_types(like.dtype, torch.float32))
    if not own_B:
        raise ValueError("waveforms contain no utterance")
    if lengths is None and len(set(own_B)) > 1:
        lengths = own_B
    lengths_B = None if lengths is None else _lengths(lengths, len(own_B))
    known_B = own_B if lengths_B is None or lengths_B.device.type != "cpu" else lengths_B.tolist()
    if min(known_B) < shortest:
        raise ValueError(f"an utterance has {min(known_B)} samples; the encoder needs {shortest}")
    for number, (length, most) in enumerate(zip(known_B, own_B)):
        if length > most:
            raise ValueError(f"the length of utterance {number} is {length}; its waveform has {most} samples")
    return waveforms_BT, None if lengths_B is None else lengths_B.to(waveforms_BT.device)


def as_tensor(values: Any, what: str) -> Tensor:
    """A tensor of what is one, or an array, or nested lists.

    Raises:
        ValueError: it is none of these; `what` says of what.
    """
    if isinstance(values, Tensor):
        return values
    try:
        return torch.tensor(values)  # not as_tensor, which warns of arrays that cannot be written to
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} cannot be converted to a tensor: {error}") from None


def _waveforms(waveforms: Any, like: Tensor) -> tuple[Tensor, list[int]]:
    """Waveforms (B, T), and how long each was given."""
    if isinstance(waveforms, (list, tuple)) and any(_is_utterance(part) for part in waveforms[:1]):
        parts = [as_tensor(part, "waveforms") for part in waveforms]
        for number, part in enumerate(parts):
            if part.dim() != 1:
                raise ValueError(f"utterance {number} has {part.dim()} dimensions; give its samples, of one channel")
            _refuse_other_types(part)
        parts_T = [part.to(like.device, parts[0].dtype) for part in parts]
        return pad_sequence(parts_T, batch_first=True), [len(part) for part in parts]
    given = as_tensor(waveforms, "waveforms")
    if given.dim() not in (1, 2):
        raise ValueError(f"waveforms have {given.dim()} dimensions; give (utterances, samples) or (samples,)")
    _refuse_other_types(given)
    given = given if isinstance(waveforms, Tensor) else given.to(like.device)
    given = given if given.dim() == 2 else given[None]
    return given, [given.shape[1]] * len(given)


def _is_utterance(part: Any) -> bool:
    """Whether it is one, and not a sample."""
    return isinstance(part, (list, tuple)) or getattr(part, "ndim", 0) > 0


def _refuse_other_types(waveforms: Tensor) -> None:
    if not waveforms.is_floating_point():
        kind = str(waveforms.dtype).replace("torch.", "")
        raise ValueError(f"waveforms are {kind}; give floating-point samples between -1 and 1")


def _lengths(lengths: Any, utterances: int) -> Tensor:
    """Lengths (B,)."""
    lengths_B = as_tensor(lengths, "lengths")
    if lengths_B.is_floating_point() or lengths_B.is_complex() or lengths_B.dtype == torch.bool:
        raise ValueError(f"lengths are {lengths_B.dtype}; give whole numbers of samples")
    lengths_B = lengths_B if lengths_B.dim() else lengths_B[None]
    if lengths_B.shape != (utterances,):
        given = "×".join(str(size) for size in lengths_B.shape)
        raise ValueError(f"{given} lengths are given for {utterances} utterances; give one for each")
    return lengths_B
