"""IEMOCAP (Busso et al. 2008): er, four emotions, five folds, each of which tests on one session.

Utterances of other emotions are left out, and excited ones count as happy. A fifth of the utterances of the other four
sessions chooses the checkpoint: s3prl draws it with `torch.manual_seed(0)`, and so do we, from the utterances in the
order of sessions, dialogs and turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from lhotse import CutSet

from .lines import read_lines
from .task_data import TaskData
from .utterances import Utterance, make_cuts, require_seen, require_some

SESSIONS = tuple(f"Session{number}" for number in range(1, 6))
LABELS, AUDIO = Path("dialog", "EmoEvaluation"), Path("sentences", "wav")
EMOTIONS = {"neu": "neu", "hap": "hap", "exc": "hap", "ang": "ang", "sad": "sad"}
VALIDATION_SHARE = 0.2
LABEL_FORM = "[START - END]<tab>TURN<tab>EMOTION<tab>[VALENCE, ACTIVATION, DOMINANCE]"

LAYOUT = f"IEMOCAP: Session1/ to Session5/, in each {AUDIO.as_posix()}/DIALOG/*.wav and {LABELS.as_posix()}/DIALOG.txt"


def is_iemocap(folder: Path) -> bool:
    """Whether a folder has the layout."""
    return all((folder / session / part).is_dir() for session in SESSIONS for part in (LABELS, AUDIO))


def read_emotions(folder: Path) -> list[TaskData]:
    """er: fold1 to fold5, each tested on the session of its number; the supervision's custom "label"."""
    sessions = {
        session: require_some(_utterances(folder / session), folder / session / LABELS, "labeled utterances")
        for session in SESSIONS
    }
    cuts = {cut.id: cut for cut in make_cuts([utterance for listed in sessions.values() for utterance in listed])}
    folds = []
    for number, tested in enumerate(SESSIONS, start=1):
        rest = [utterance for session in SESSIONS if session != tested for utterance in sessions[session]]
        splits = {**_split(rest), "test": sessions[tested]}
        labels = require_seen(splits["train"], [*splits["dev"], *splits["test"]], "label")
        cut_sets = {split: CutSet([cuts[utterance.id] for utterance in listed]) for split, listed in splits.items()}
        folds.append(TaskData("er", cut_sets, labels, fold=f"fold{number}"))
    return folds


def _split(utterances: list[Utterance]) -> dict[str, list[Utterance]]:
    order = torch.randperm(len(utterances), generator=torch.Generator().manual_seed(0)).tolist()
    training = int((1 - VALIDATION_SHARE) * len(utterances))
    return {
        "train": [utterances[index] for index in order[:training]],
        "dev": [utterances[index] for index in order[training:]],
    }


def _utterances(session: Path) -> Iterator[Utterance]:
    """The utterances of the four emotions. Hidden files, which the corpus is full of, are left out."""
    for path in sorted((session / LABELS).glob("[!.]*.txt")):
        for line in read_lines(path):
            if not line.text.startswith("["):
                continue  # a comment, or what one annotator said
            fields = [part for part in line.text.split("\t") if part]
            if len(fields) < 3:
                raise line.malformed(LABEL_FORM)
            turn, emotion = fields[1], fields[2].strip()
            if emotion in EMOTIONS:
                audio = session / AUDIO / path.stem / f"{turn}.wav"
                # Ses01F_impro01_M003: the last letter before the number is who speaks.
                speaker = f"{turn[:5]}{turn.rpartition('_')[2][:1]}"
                yield Utterance(turn, audio, line, speaker=speaker, custom={"label": EMOTIONS[emotion]})
