# SPDX-License-Identifier: Apache-2.0
"""The encoder as an upstream of s3prl."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...encoder.config import EncoderConfig
from ...encoder.encoder import Encoder


class UpstreamExpert(nn.Module):
    """Waveforms in, all hidden states out, as from s3prl's own upstreams of HuBERT and WavLM.

    So no layer is skipped when the upstream is trained too, and the last hidden state of a pre-norm encoder is after
    its final norm.

    Args:
        ckpt: path of model.pt, what `-k` gives.
        model_config: not needed, the checkpoint knows.
        **kwargs: what else s3prl passes to every upstream.
    """

    def __init__(self, ckpt: str, model_config: str | None = None, **kwargs: object) -> None:
        super().__init__()
        checkpoint = torch.load(ckpt, map_location="cpu", weights_only=True)
        self.encoder = Encoder(EncoderConfig.from_dict(checkpoint["config"]).replace(layer_dropout=0.0))
        self.encoder.load_state_dict(checkpoint["weights"])

    def get_downsample_rates(self, key: str) -> int:
        """Samples per frame, the same for every key."""
        return self.encoder.config.hop

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """Encode 16 kHz waveforms (T,) of any lengths; hidden states (B, frames, D), the first layer's input first."""
        lengths_B = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        made = self.encoder(pad_sequence(wavs, batch_first=True), lengths_B)
        last_BTD = made.last_hidden_state_BTD
        return {"hidden_states": [*made.hidden_states[:-1], last_BTD], "last_hidden_state": last_BTD}
