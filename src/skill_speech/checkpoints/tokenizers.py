"""What the outputs of a CTC head stand for: from text to tokens and back, by the model's own tokenizer."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..heads import HeadConfig

logger = logging.getLogger(__name__)

SPECIAL = re.compile(r"<.+>|\[.+\]")
"""Tokens that stand for no text, by their look."""


class Tokenizer:
    """The tokenizer of a model with a CTC head.

    Args:
        files: of the model, as `SpeechModel.files` has them.
        head: its head's configuration.
        source: for messages.

    Raises:
        InputError: there is no tokenizer among them, or it cannot be read.
    """

    def __init__(self, files: Mapping[str, bytes], head: HeadConfig, source: str) -> None:
        if "vocab.json" not in files and "tokenizer.json" not in files:
            raise InputError(f"{source}: no vocab.json: the tokens of its CTC head are unknown")
        self.source, self.blank, self.outputs = source, head.blank, head.outputs
        self.tokenizer = _load(files, source)
        self.vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        special = set(self.tokenizer.all_special_tokens)
        plain = [token for token in self.vocabulary if token not in special and not SPECIAL.fullmatch(token)]
        # With tokens of several characters (phonemes, say) a text is not a row of letters.
        self._letters = set(plain) if all(len(token) == 1 for token in plain) else set()
        if self.tokenizer.pad_token_id is not None and self.tokenizer.pad_token_id != self.blank:
            logger.warning(
                "warning: %s: the blank of its CTC head is output %d, and its tokenizer pads with %d: texts that "
                "Transformers decodes will differ",
                *(source, self.blank, self.tokenizer.pad_token_id),
            )
        self._cased = {letter for letter in self._letters if letter.lower() != letter.upper()}

    def normalize(self, text: str) -> str:
        """A text as the vocabulary can write it: in its case, without characters that it does not have.

        Where tokens are longer than a character (phonemes, say), only white space is put in order.
        """
        text = unicodedata.normalize("NFC", text)
        if self._letters:
            if self._cased and all(letter == letter.upper() for letter in self._cased):
                text = text.upper()
            elif self._cased and all(letter == letter.lower() for letter in self._cased):
                text = text.lower()
            text = "".join(
                one if one in self._letters else " " if one.isspace() or one in "-–—" else "" for one in text
            )
        return " ".join(text.split())

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, none of which is the blank or stands for what is unknown; all of them are outputs.

        Raises:
            InputError: the tokenizer cannot do it: one of phonemes needs a package, for one.
        """
        unknown = {self.blank, self.tokenizer.unk_token_id}
        try:
            tokens = self.tokenizer(self.normalize(text), add_special_tokens=False)["input_ids"]
        except Exception as error:  # of whatever somebody else's tokenizer needs
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self.source}: its tokenizer cannot encode text ({reason})") from None
        # A tokenizer adds special tokens that it misses, and numbers them on from the vocabulary.
        return [token for token in tokens if token not in unknown and 0 <= token < self.outputs]

    def decode(self, outputs: Sequence[int]) -> str:
        """The text of the most probable outputs, frame by frame: repeats are one, and blanks nothing."""
        kept, before = [], None
        for output in outputs:
            if output != before and output != self.blank:
                kept.append(int(output))
            before = output
        text = self.tokenizer.decode(kept, group_tokens=False, skip_special_tokens=True)
        return " ".join(str(text).split())


def _load(files: Mapping[str, bytes], source: str) -> Any:
    from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer

    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    # Code that a file names is never run.
    plain = {name: value for name, value in settings.items() if name not in ("auto_map", "processor_class")}
    named = str(plain.get("tokenizer_class") or "Wav2Vec2CTCTokenizer")
    kind = Wav2Vec2CTCTokenizer if named.startswith("Wav2Vec2CTCTokenizer") else AutoTokenizer
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(plain), encoding="utf-8")
        try:
            return kind.from_pretrained(folder)
        except Exception as error:  # of whatever reads what somebody else wrote
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{source}: its tokenizer cannot be read ({reason})") from None
