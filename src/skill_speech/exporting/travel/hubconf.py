# SPDX-License-Identifier: Apache-2.0
"""The names under which s3prl finds the upstream."""

from __future__ import annotations

from .expert import UpstreamExpert as _UpstreamExpert


def skill_speech_local(ckpt: str, model_config: str | None = None, **kwargs: object) -> _UpstreamExpert:
    """The upstream with the weights in `ckpt`: the path of model.pt."""
    return _UpstreamExpert(ckpt, model_config, **kwargs)
