"""The official layouts in miniature, written by hand: what the corpora's own documents and s3prl's preparation show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def audio(path: Path, seconds: float = 0.2, rate: int = 16_000) -> Path:
    """A file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate)) * 0.1
    soundfile.write(path, noise.astype("float32"), rate)
    return path


def text(path: Path, content: str) -> Path:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def librispeech(root: Path) -> Path:
    """Three subsets of one speaker and two utterances each, and the two lexicons."""
    folder = root / "LibriSpeech"
    for subset, speaker in (("train-clean-100", 103), ("dev-clean", 84), ("test-clean", 61)):
        home = folder / subset / str(speaker) / "1240"
        text(
            home / f"{speaker}-1240.trans.txt",
            f"{speaker}-1240-0000 CHAPTER ONE\n{speaker}-1240-0001 MISSUS RACHEL'S ONE CHAPTER\n",
        )
        for number in range(2):
            audio(home / f"{speaker}-1240-{number:04}.flac", 0.5 + number)
    text(
        folder / "librispeech-lexicon-200k-g2p.txt",
        "CHAPTER\tCH AE1 P T ER0\nONE\tW AH1 N\nONE\tHH W AH1 N\nRACHEL'S\tR EY1 CH AH0 L Z\n",
    )
    text(folder / "librispeech-lexicon-allothers-g2p.txt", "MISSUS\tM IH1 S AH0 Z\n")
    return folder


def speech_commands(root: Path) -> Path:
    """Two words, three speakers, a noise of 2.5 s, and the test set."""
    folder = root / "speech_commands_v0.01"
    for word in ("yes", "happy"):
        for speaker in ("0a7c2a8d", "8b775397", "b83c1acf"):
            audio(folder / word / f"{speaker}_nohash_0.wav", 1.0)
    text(folder / "validation_list.txt", "yes/8b775397_nohash_0.wav\nhappy/8b775397_nohash_0.wav\n")
    text(folder / "testing_list.txt", "yes/b83c1acf_nohash_0.wav\nhappy/b83c1acf_nohash_0.wav\n")
    text(folder / "_background_noise_" / "README.md", "Some noises.\n")
    audio(folder / "_background_noise_" / "pink_noise.wav", 2.5)
    for label in ("yes", "_unknown_", "_silence_"):
        audio(root / "speech_commands_test_set_v0.01" / label / "c9b653a0_nohash_1.wav", 1.0)
    return root


def quesst(root: Path) -> Path:
    """Three documents and two queries per set, one of each in Czech."""
    folder = root / "quesst14Database"
    for number in (1, 2, 3):
        audio(folder / "Audio" / f"quesst14_0000{number}.wav", 1.0, 8_000)
    for name in ("dev", "eval"):
        for number in (1, 2):
            audio(folder / f"{name}_queries" / f"quesst14_{name}_000{number}.wav", 0.5, 8_000)
        text(
            folder / "scoring" / f"language_key_{name}.lst",
            f"quesst14Database/{name}_queries/quesst14_{name}_0001.wav nnenglish\n"
            f"quesst14Database/{name}_queries/quesst14_{name}_0002.wav czech\n",
        )
        text(
            folder / "scoring" / f"groundtruth_quesst14_{name}" / f"quesst14_{name}.rttm",
            "SPKR-INFO quesst14_00001 1 <NA> <NA> <NA> unknown spk1 <NA>\n"
            f"LEXEME quesst14_00001 1 0.10 0.40 quesst14_{name}_0001 lex spk1 0.5\n"
            "LEXEME quesst14_00002 1 0.00 1.00 NO_KEYWORD lex spk1 0.5\n"
            f"LEXEME quesst14_00003 1 0.20 0.50 quesst14_{name}_0002 lex spk1 0.5\n",
        )
    text(
        folder / "scoring" / "language_key_utterances.lst",
        "quesst14Database/Audio/quesst14_00001.wav nnenglish\n"
        "quesst14Database/Audio/quesst14_00002.wav nnenglish\n"
        "quesst14Database/Audio/quesst14_00003.wav czech\n",
    )
    return folder


def voxceleb(root: Path) -> Path:
    """Two speakers to train on and two for trials, three videos each."""
    folder = root / "VoxCeleb1"
    split, part = [], {"id10001": "dev", "id10002": "dev", "id10270": "test", "id10271": "test"}
    for speaker, home in part.items():
        for code, video in ((1, "1zcIwhmdeo4"), (2, "7gWzIy6yIIk"), (3, "J9lHsKG98U8")):
            name = f"{speaker}/{video}/0000{code}.wav"
            audio(folder / home / "wav" / name, 0.5)
            split.append(f"{code} {name}\n")
    text(folder / "veri_test_class.txt", "".join(split))
    text(
        folder / "voxceleb1_test_v2.txt",
        "1 id10270/1zcIwhmdeo4/00001.wav id10270/7gWzIy6yIIk/00002.wav\n"
        "0 id10270/1zcIwhmdeo4/00001.wav id10271/1zcIwhmdeo4/00001.wav\n",
    )
    return folder


def librimix(root: Path) -> Path:
    """A mixture per split, in the words of LibriMix' scripts/prepare_diarization.py as s3prl has it."""
    folder, name = root / "diarization", "3536-8226-0026_1673-143397-0009"
    for split in ("train", "dev", "test"):
        home = folder / split
        path = audio(root / "Libri2Mix" / "wav16k" / "max" / split / "mix_both" / f"{name}.wav", 4.0)
        text(home / "wav.scp", f"{name} {path}\n")
        text(
            home / "segments",
            f"{name}_000370_003710 {name} 0.37 3.71\n{name}_000380_001540 {name} 0.38 1.54\n",
        )
        text(home / "utt2spk", f"{name}_000370_003710 3536\n{name}_000380_001540 1673\n")
        text(
            home / "rttm",
            f"SPEAKER\t{name}\t1\t0.37\t3.34\t<NA>\t<NA>\t3536\t<NA>\n"
            f"SPEAKER\t{name}\t1\t0.38\t1.1600000000000001\t<NA>\t<NA>\t1673\t<NA>\n",
        )
        text(home / "reco2dur", f"{name} 4.0\n")
        text(home / "spk2utt", f"3536 {name}\n1673 {name}\n")
    return folder


def iemocap(root: Path) -> Path:
    """A dialog per session: the labels of its documents, two turns of each scored emotion and two of others."""
    folder = root / "IEMOCAP_full_release"
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for number, emotion in enumerate("neu hap exc ang sad fru xxx neu ang sad".split()):
            turn = f"{dialog}_{'FM'[number % 2]}{number:03}"
            lines += [
                f"[{number}.2901 - {number}.9357]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]",
                "C-E2:\tNeutral;\t()",
                "A-E3:\tval 3; act 2; dom  2;\t()",
                "",
            ]
            audio(folder / f"Session{session}" / "sentences" / "wav" / dialog / f"{turn}.wav")
        text(folder / f"Session{session}" / "dialog" / "EmoEvaluation" / f"{dialog}.txt", "\n".join(lines))
        # The corpus has such leftovers of a Mac, which are no text.
        (folder / f"Session{session}" / "dialog" / "EmoEvaluation" / f"._{dialog}.txt").write_bytes(b"\x00\x05\xff")
    return folder


def fluent_speech_commands(root: Path) -> Path:
    """Two utterances per table."""
    folder = root / "fluent_speech_commands_dataset"
    for table, speaker in (("train", "2BqVo8kVB2Skwgyb"), ("valid", "4BrX8aDqK2cLZRYl"), ("test", "7NEaXjeLX3sg3yDB")):
        paths = [f"wavs/speakers/{speaker}/0a3129c0-4474-11e9-a9a5-5dbec3b8816{number}.wav" for number in "ab"]
        text(
            folder / "data" / f"{table}_data.csv",
            ",path,speakerId,transcription,action,object,location\n"
            f"0,{paths[0]},{speaker},Change language,change language,none,none\n"
            f'1,{paths[1]},{speaker},"Heat up, in the washroom",increase,heat,washroom\n',
        )
        for path in paths:
            audio(folder / path)
    return folder


def snips(root: Path) -> Path:
    """A sentence per split, by a speaker of the split and by one of another; all lines are the official ones' form."""
    folder = root / "SNIPS"
    said = {
        "train": "BOS ADD DON'T STOP & GO TO MY LIST EOS\tO O track track track track O playlist_owner O AddToPlaylist",
        "valid": "BOS PLAY SONGS , PLEASE EOS\tO O music_item O O PlayMusic",
        "test": "BOS ADD SONGS EOS\tO O music_item AddToPlaylist",
    }
    lines = []
    for split, speakers in (("train", ("Ivy", "Amy")), ("valid", ("Amy", "Ivy")), ("test", ("Brian", "Ivy"))):
        for speaker in speakers:
            lines.append(f"{speaker}-snips-{split}-0 {said[split]}\n")
            audio(folder / split / f"{speaker}-snips-{split}-0.wav")
    text(folder / "all.iob.snips.txt", "".join(lines))
    text(folder / "slots.txt", "O\nmusic_item\ntrack\nplaylist_owner")
    return folder
