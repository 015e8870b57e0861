"""What is evaluated, as the tasks see it: waveforms in, the hidden states of every layer out.

Legend of the tensor suffixes: B utterances, T samples or frames, L hidden states, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..checkpoints import load_encoder
from ..encoder import Encoder
from ..errors import InputError
from ..heads import SpeechModel
from ..kernels import optimize
from ..limits import refuse_other_rates
from .filterbanks import HOP, WINDOW, Filterbanks

FILTERBANKS = "fbank"
"""The name of the baseline, which stands where a model is asked for."""


class Upstream(Protocol):
    """A frozen source of hidden states.

    Attributes:
        name: in tables and of its folder.
        source: what the user gave.
        fingerprint: of everything that the hidden states depend on.
        num_states: hidden states L per utterance.
        width: features D of each.
        hop: samples from one frame to the next.
        parameters: how many it has.
        device: where it computes.
    """

    name: str
    source: str
    fingerprint: str
    num_states: int
    width: int
    hop: int
    parameters: int
    device: torch.device

    def num_frames(self, samples: int) -> int:
        """Frames that it makes of so many samples."""
        ...

    def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states (L, T, D) of every waveform (T,), float32, each as if it were alone."""
        ...


def open_upstream(model: str, device: torch.device) -> Upstream:
    """The upstream that a user names: [NAME=]SOURCE, where SOURCE is "fbank" or what `load_encoder` takes.

    Raises:
        InputError: nothing can be loaded from there.
    """
    name, source = split_name(model)
    if source == FILTERBANKS:
        return FilterbankUpstream(name, device)
    return EncoderUpstream(name, source, device)


def open_device(device: str | None) -> torch.device:
    """The device that a user names, by default an accelerator if there is one.

    Raises:
        InputError: it is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r}: {str(error).splitlines()[0]}; leave --device out") from None
    return chosen


def split_name(model: str) -> tuple[str, str]:
    """Name and source of [NAME=]SOURCE.

    Without a name it is the last part of the source; of RUN/model, where `compress` leaves a student, it is RUN.
    """
    name, equals, source = model.partition("=")
    if not equals or Path(model).exists():
        path = Path(model)
        named = path.resolve() if path.exists() else path
        name, source = (named.parent.name if named.name == "model" and path.exists() else named.name), model
    if not name or not source or name.startswith(".") or "/" in name:
        raise InputError(f"{model!r}: give a model as SOURCE or NAME=SOURCE, the name without a slash")
    return name, source


class EncoderUpstream:
    """An encoder of the wav2vec 2.0 family.

    Its hidden states are the input of the first layer and the outputs of all layers, the last one after the final norm
    of a pre-norm model: what s3prl takes.
    """

    def __init__(self, name: str, source: str, device: torch.device) -> None:
        # Padding must not be seen: an utterance has the same states in every batch, or they could not be kept.
        encoder = load_encoder(source, length_aware=True).to(device)
        refuse_other_rates(encoder.config.sampling_rate, source)
        self.fingerprint = fingerprint(encoder)
        # In float32 the states are the plain encoder's but for rounding.
        self.encoder = optimize(encoder, "float32")
        config = self.encoder.config
        self.name, self.source, self.device = name, source, device
        self.num_states, self.width, self.hop = config.num_layers + 1, config.hidden_size, config.hop
        self.parameters = self.encoder.num_parameters()

    def num_frames(self, samples: int) -> int:
        """Frames of so many samples; what is shorter than one frame is padded to one."""
        return self.encoder.config.num_frames(max(samples, self.encoder.config.receptive_field))

    @torch.no_grad()
    def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states (L, T, D) of every waveform (T,)."""
        lengths_B = torch.tensor([len(waveform_T) for waveform_T in waveforms])
        waveforms_BT = _padded(waveforms, self.encoder.config.receptive_field).to(self.device)
        lengths_B = lengths_B.clamp(min=self.encoder.config.receptive_field).to(self.device)
        out = self.encoder(waveforms_BT, None if len(waveforms) == 1 else lengths_B)
        states_BLTD = torch.stack((*out.hidden_states[:-1], out.last_hidden_state_BTD), dim=1)
        frames = out.lengths_B.tolist()
        return [states_LTD[:, :count] for states_LTD, count in zip(states_BLTD, frames, strict=True)]


class FilterbankUpstream:
    """Log-mel filterbanks: one hidden state, a frame every 10 ms."""

    num_states, width, hop, parameters = 1, Filterbanks.width, HOP, 0
    source = fingerprint = FILTERBANKS

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.filterbanks = Filterbanks().to(device)

    def num_frames(self, samples: int) -> int:
        """Frames of so many samples; what is shorter than one frame is padded to one."""
        return (max(samples, WINDOW) - WINDOW) // HOP + 1

    @torch.no_grad()
    def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Features (1, T, D) of every waveform (T,)."""
        padded = [_padded([waveform_T], WINDOW)[0].to(self.device) for waveform_T in waveforms]
        return [self.filterbanks(waveform_T)[None] for waveform_T in padded]


def _padded(waveforms: Sequence[Tensor], shortest: int) -> Tensor:
    waveforms_BT = pad_sequence(list(waveforms), batch_first=True)
    return torch.nn.functional.pad(waveforms_BT, (0, max(0, shortest - waveforms_BT.shape[1])))


def fingerprint(encoder: Encoder) -> str:
    """Of an encoder's weights and configuration; encoders are evaluated length-aware, whatever they are otherwise."""
    config = encoder.config.replace(length_aware=True)
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def model_fingerprint(model: SpeechModel) -> str:
    """Of an encoder, its head, and the files that its outputs are read by."""
    digest = hashlib.sha256(fingerprint(model.encoder).encode())
    if model.head is not None:
        digest.update(json.dumps(model.head.config.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(model.head.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    for name, content in sorted(model.files.items()):
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()[:16]
