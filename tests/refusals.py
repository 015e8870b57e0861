"""What `load_encoder` says of a source that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from skill_speech import load_encoder
from skill_speech.errors import InputError


def refused(source: Path) -> str:
    """The one line of the refusal."""
    with pytest.raises(InputError) as caught:
        load_encoder(source)
    message = str(caught.value)
    assert "\n" not in message
    return message
