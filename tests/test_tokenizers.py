"""Texts and tokens of CTC heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from skill_speech import InputError
from skill_speech.checkpoints.tokenizers import Tokenizer
from skill_speech.heads import HeadConfig

VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "Ö": 7, "'": 8}


def files(folder: Path, vocabulary: dict[str, int], **settings: object) -> dict[str, bytes]:
    (folder / "v.json").write_text(json.dumps(vocabulary))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "v.json"), **settings).save_pretrained(folder / "saved")
    return {path.name: path.read_bytes() for path in (folder / "saved").iterdir()}


def test_text_is_brought_to_the_vocabulary_and_back(tmp_path: Path) -> None:
    tokenizer = Tokenizer(files(tmp_path, VOCABULARY), HeadConfig("ctc", 9), "m")
    assert tokenizer.normalize("Tee,  to\u0308te-é t'e!") == "TEE TÖTE T'E"
    tokens = tokenizer.encode("Tee,  töte")
    assert tokens == [6, 5, 5, 4, 6, 7, 6, 5]
    frames = [0, 6, 6, 0, 5, 0, 5, 4, 4, 6, 7, 7, 6, 0, 0, 5]
    theirs = tokenizer.tokenizer.decode(frames)
    assert tokenizer.decode(frames) == theirs == "TEE TÖTE"


def test_lower_case_and_only_a_vocabulary(tmp_path: Path) -> None:
    plain = {"[PAD]": 4, "[UNK]": 3, "a": 0, "b": 1, "|": 2}
    settings = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": None, "eos_token": None}
    tokenizer = Tokenizer(files(tmp_path, plain, **settings), HeadConfig("ctc", 5, blank=4), "m")
    assert tokenizer.encode("A bx") == [0, 2, 1]
    assert tokenizer.decode([4, 0, 0, 2, 1, 4, 1]) == "a bb"
    bare = Tokenizer({"vocab.json": json.dumps(VOCABULARY).encode()}, HeadConfig("ctc", 9), "m")
    assert bare.encode("te") == [6, 5]


def test_what_a_tokenizer_adds_is_no_output(tmp_path: Path) -> None:
    """Without a word delimiter of its own in the vocabulary: Transformers numbers it on."""
    plain = {"<pad>": 0, "<unk>": 1, "a": 2, "b": 3}
    tokenizer = Tokenizer(files(tmp_path, plain), HeadConfig("ctc", 4), "m")
    assert max(tokenizer.vocabulary.values()) > 3
    assert tokenizer.encode("ab ba") == [2, 3, 3, 2]


def test_tokens_of_several_characters_are_left_whole(tmp_path: Path) -> None:
    phonemes = {"<pad>": 0, "<unk>": 1, "|": 2, "sh": 3, "e": 4, "eː": 5, "s": 6}
    tokenizer = Tokenizer(files(tmp_path, phonemes), HeadConfig("ctc", 7), "m")
    assert tokenizer.normalize(" she  seː ") == "she seː"


def test_a_blank_that_is_not_the_padding_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Tokenizer(files(tmp_path, VOCABULARY), HeadConfig("ctc", 9, blank=8), "m")
    assert "the blank of its CTC head is output 8, and its tokenizer pads with 0" in caplog.text


def test_a_tokenizer_that_cannot_encode_is_one_line(tmp_path: Path) -> None:
    tokenizer = Tokenizer(files(tmp_path, VOCABULARY), HeadConfig("ctc", 9), "m")

    def fail(*arguments: object, **options: object) -> None:
        raise ImportError("phonemizer is not installed\npip install phonemizer")

    tokenizer.tokenizer = fail
    tokenizer.tokenizer.unk_token_id = 3  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"cannot encode text \(phonemizer is not installed\)"):
        tokenizer.encode("tee")


def test_no_tokenizer_and_damaged_ones_are_refused() -> None:
    with pytest.raises(InputError, match="no vocab"):
        Tokenizer({}, HeadConfig("ctc", 9), "m")
    with pytest.raises(InputError, match="its tokenizer cannot be read"):
        Tokenizer({"vocab.json": b"[1]"}, HeadConfig("ctc", 9), "m")
