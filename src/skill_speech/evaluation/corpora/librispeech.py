"""LibriSpeech (openslr.org/12): pr and asr, 100 hours to train on, dev-clean and test-clean.

Phonemes are what s3prl makes of the transcripts: each word is looked up in two lexicons that s3prl distributes
(downstream/ctc/lexicon), and the first pronunciation of a word is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from .lines import Line, index, read_lines
from .task_data import TaskData
from .utterances import Utterance, make_cuts, require_some

SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}
LEXICONS = ("librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt")

LAYOUT = "LibriSpeech: train-clean-100/, dev-clean/ and test-clean/, in them SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt"
LAYOUT_WITH_LEXICON = f"{LAYOUT}; beside them {' and '.join(LEXICONS)}"


def is_librispeech(folder: Path) -> bool:
    """Whether a folder has the layout."""
    return all((folder / name).is_dir() for name in SPLITS.values())


def is_librispeech_with_lexicon(folder: Path) -> bool:
    """Whether a folder has the layout and the lexicons."""
    return is_librispeech(folder) and all((folder / name).is_file() for name in LEXICONS)


def read_recognition(folder: Path) -> TaskData:
    """asr: the upper-case transcript as the supervision's text."""
    return TaskData("asr", {split: make_cuts(list(_utterances(folder / name))) for split, name in SPLITS.items()})


def read_phonemes(folder: Path) -> TaskData:
    """pr: the supervision's custom "phonemes"; labels are all phonemes of the lexicons, as in s3prl."""
    lexicon = read_lexicon(folder)
    splits = {}
    for split, name in SPLITS.items():
        utterances = [_with_phonemes(utterance, lexicon) for utterance in _utterances(folder / name)]
        splits[split] = make_cuts(utterances)
    phonemes = sorted({phoneme for phonemes in lexicon.values() for phoneme in phonemes})
    return TaskData("pr", splits, phonemes, extra={"lexicon": [folder / name for name in LEXICONS]})


def read_lexicon(folder: Path) -> dict[str, list[str]]:
    """Word to phonemes: of several pronunciations the first one.

    Raises InputError for a lexicon that is missing, or a line without phonemes.
    """
    lexicon: dict[str, list[str]] = {}
    for name in LEXICONS:
        for line in read_lines(folder / name):
            word, *phonemes = line.text.split()
            if not phonemes:
                raise line.malformed("WORD PHONEME PHONEME …")
            lexicon.setdefault(word, phonemes)
    return lexicon


def _utterances(folder: Path) -> Iterator[Utterance]:
    """The utterances of a subset, in order of their ids."""
    lines = (line for path in sorted(folder.glob("*/*/[!.]*.trans.txt")) for line in read_lines(path))
    transcribed = index(lines, lambda line: line.path.parent / f"{line.text.split()[0]}.flac")
    audio = set(folder.glob("*/*/[!.]*.flac"))
    for path in sorted(audio - transcribed.keys()):
        speaker, chapter = path.parent.parent.name, path.parent.name
        raise InputError(f"{path}: {speaker}-{chapter}.trans.txt has no transcript of it: complete the corpus")
    found = (_transcribed(path, line) for path, line in sorted(transcribed.items(), key=lambda item: item[0].stem))
    yield from require_some(found, folder, "transcripts (SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt)")


def _transcribed(path: Path, line: Line) -> Utterance:
    _, text = line.fields("UTTERANCE TRANSCRIPT", rest=True)
    if not text.strip():
        raise InputError(f"{line}: empty transcript of {path.stem}: complete the line, or remove it with its audio")
    return Utterance(path.stem, path, line, text.strip().upper(), path.stem.split("-")[0])


def _with_phonemes(utterance: Utterance, lexicon: dict[str, list[str]]) -> Utterance:
    phonemes = []
    for word in (utterance.text or "").split():
        if word not in lexicon:
            raise InputError(
                f"{utterance.named_in}: {word!r} is in no lexicon ({', '.join(LEXICONS)}): "
                "add it with its pronunciation"
            )
        phonemes += lexicon[word]
    return Utterance(
        utterance.id, utterance.path, utterance.named_in, utterance.text, utterance.speaker, {"phonemes": phonemes}
    )
