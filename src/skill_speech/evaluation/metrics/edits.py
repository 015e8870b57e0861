"""Error rates by edit distance: substitutions, deletions and insertions over the length of all references together.

Legend of the suffixes: N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER of texts whose words stand between spaces, by jiwer."""
    import jiwer

    return 100 * float(jiwer.wer(list(references), list(hypotheses)))


def phoneme_error_rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    """PER of sequences of phonemes."""
    return word_error_rate([" ".join(phones) for phones in references], [" ".join(phones) for phones in hypotheses])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CER of texts, every space counted, by jiwer."""
    return 100 * float(_characters(list(references), list(hypotheses)).cer)


def word_edits(references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.int64]:
    """Errors and words of each reference (N, 2), by jiwer; of an empty one, every word that was heard is an error."""
    import jiwer

    return _edits(jiwer.process_words, lambda text: len(text.split()), references, hypotheses)


def character_edits(references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.int64]:
    """Errors and characters of each reference (N, 2), every space counted, by jiwer."""
    return _edits(_characters, len, references, hypotheses)


def _characters(references: list[str], hypotheses: list[str]) -> Any:
    import jiwer

    # Unless it is told otherwise jiwer strips the texts first.
    characters = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])
    return jiwer.process_characters(
        references, hypotheses, reference_transform=characters, hypothesis_transform=characters
    )


def _edits(
    process: Callable[[list[str], list[str]], Any],
    length: Callable[[str], int],
    references: Sequence[str],
    hypotheses: Sequence[str],
) -> NDArray[np.int64]:
    counts_N2 = np.array([(length(text), 0) for text in hypotheses], dtype=np.int64).reshape(-1, 2)
    # Earlier versions of jiwer refuse empty references.
    some = [number for number, text in enumerate(references) if length(text)]
    if some:
        output = process([references[number] for number in some], [hypotheses[number] for number in some])
        for number, chunks in zip(some, output.alignments, strict=True):
            # What is inserted has no part of the reference, and what is deleted none of the hypothesis.
            errors = sum(
                max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                for chunk in chunks
                if chunk.type != "equal"
            )
            counts_N2[number] = errors, length(references[number])
    return counts_N2
