"""Error rates by edit distance: substitutions, deletions and insertions over the length of all references together."""

from __future__ import annotations

from collections.abc import Sequence


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER of texts whose words stand between spaces, by jiwer."""
    import jiwer

    return 100 * float(jiwer.wer(list(references), list(hypotheses)))


def phoneme_error_rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    """PER of sequences of phonemes."""
    return word_error_rate([" ".join(phones) for phones in references], [" ".join(phones) for phones in hypotheses])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CER of texts, every space counted, by jiwer."""
    import jiwer

    # Unless it is told otherwise jiwer strips the texts first.
    characters = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])
    output = jiwer.process_characters(
        list(references), list(hypotheses), reference_transform=characters, hypothesis_transform=characters
    )
    return 100 * float(output.cer)
