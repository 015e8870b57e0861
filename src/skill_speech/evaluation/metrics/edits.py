"""Error rates by edit distance: substitutions, deletions and insertions over the length of all references together."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER of texts whose words stand between spaces."""
    return 100 * float(jiwer.wer(list(references), list(hypotheses)))


def phoneme_error_rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    """PER of sequences of phonemes."""
    return word_error_rate([" ".join(phones) for phones in references], [" ".join(phones) for phones in hypotheses])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CER of texts, spaces counted."""
    output = jiwer.process_characters(
        list(references),
        list(hypotheses),
        reference_transform=_CHARACTERS,
        hypothesis_transform=_CHARACTERS,
    )
    return 100 * float(output.cer)


# jiwer strips texts and may refuse empty ones unless it is told what to do.
_CHARACTERS = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])
