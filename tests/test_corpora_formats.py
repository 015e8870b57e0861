"""Readers of the official layouts, on miniatures written by hand; and what they say of a corpus that is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from skill_speech.data import load_waveform
from skill_speech.errors import InputError
from skill_speech.evaluation.corpora import TASKS, TaskData, find_corpora, missing_reason, read_task
from tests import corpora_by_hand as by_hand

WRITERS: dict[str, Callable[[Path], Path]] = {
    "pr": by_hand.librispeech,
    "asr": by_hand.librispeech,
    "ks": by_hand.speech_commands,
    "qbe": by_hand.quesst,
    "sid": by_hand.voxceleb,
    "asv": by_hand.voxceleb,
    "sd": by_hand.librimix,
    "er": by_hand.iemocap,
    "ic": by_hand.fluent_speech_commands,
    "sf": by_hand.snips,
}


def read(task: str, root: Path) -> TaskData:
    data = read_task(task, WRITERS[task](root))
    assert len(data) == (5 if task == "er" else 1)
    return data[0]


def custom(data: TaskData, split: str, key: str) -> list[object]:
    return [cut.supervisions[0].custom[key] for cut in data.splits[split]]


def ids(data: TaskData, split: str) -> list[str]:
    return [cut.id for cut in data.splits[split]]


@pytest.mark.parametrize("task", TASKS)
def test_every_layout_is_found_by_itself_and_one_level_below(tmp_path: Path, task: str) -> None:
    folder = WRITERS[task](tmp_path / "corpora")
    assert find_corpora(tmp_path / "corpora")[task] == folder
    assert find_corpora(folder)[task] == folder
    sharing = {"pr": {"pr", "asr"}, "asr": {"pr", "asr"}, "sid": {"sid", "asv"}, "asv": {"sid", "asv"}}
    assert set(find_corpora(tmp_path / "corpora")) == sharing.get(task, {task})


@pytest.mark.parametrize("task", TASKS)
def test_all_cuts_are_16_khz_mono_and_of_a_real_corpus(tmp_path: Path, task: str) -> None:
    data = read(task, tmp_path)
    assert data.task == task
    assert data.synthetic == ""
    for cuts in data.splits.values():
        for cut in cuts:
            waveform_T = load_waveform(cut)
            assert waveform_T.shape == (round(cut.duration * 16_000),)
            assert cut.sampling_rate == 16_000


def test_asr_reads_transcripts(tmp_path: Path) -> None:
    data = read("asr", tmp_path)
    assert {split: ids(data, split) for split in data.splits} == {
        "train": ["103-1240-0000", "103-1240-0001"],
        "dev": ["84-1240-0000", "84-1240-0001"],
        "test": ["61-1240-0000", "61-1240-0001"],
    }
    (_, second) = data.splits["train"]
    assert second.supervisions[0].text == "MISSUS RACHEL'S ONE CHAPTER"
    assert second.supervisions[0].speaker == "103"
    assert second.duration == 1.5


def test_pr_takes_the_first_pronunciation_of_both_lexicons(tmp_path: Path) -> None:
    data = read("pr", tmp_path)
    assert custom(data, "dev", "phonemes") == [
        "CH AE1 P T ER0 W AH1 N".split(),
        "M IH1 S AH0 Z R EY1 CH AH0 L Z W AH1 N CH AE1 P T ER0".split(),
    ]
    assert data.labels == sorted("CH AE1 P T ER0 W AH1 N R EY1 AH0 L Z M IH1 S".split())


def test_ks_splits_by_the_lists_and_makes_seconds_of_the_noise(tmp_path: Path) -> None:
    data = read("ks", tmp_path)
    noise = [f"speech_commands_v0.01/_background_noise_/pink_noise-00{number}" for number in (0, 1)]
    assert (
        ids(data, "train") == [f"speech_commands_v0.01/{word}/0a7c2a8d_nohash_0" for word in ("happy", "yes")] + noise
    )
    assert ids(data, "dev") == [f"speech_commands_v0.01/{word}/8b775397_nohash_0" for word in ("happy", "yes")] + noise
    assert custom(data, "train", "label") == ["_unknown_", "yes", "_silence_", "_silence_"]
    assert custom(data, "test", "label") == ["_silence_", "_unknown_", "yes"]
    assert [(cut.start, cut.duration) for cut in list(data.splits["dev"])[2:]] == [(0.0, 1.0), (1.0, 1.0)]
    assert data.labels == ["_silence_", "_unknown_", "yes"]


def test_qbe_searches_english_but_knows_all_languages(tmp_path: Path) -> None:
    data = read("qbe", tmp_path)
    assert ids(data, "documents") == ["quesst14_00001", "quesst14_00002"]
    assert ids(data, "queries_dev") == ["quesst14_dev_0001"]
    assert ids(data, "queries_test") == ["quesst14_eval_0001"]
    assert data.extra["documents"] == ["quesst14_00001", "quesst14_00002", "quesst14_00003"]
    assert data.extra["queries"]["test"] == ["quesst14_eval_0001", "quesst14_eval_0002"]
    assert data.extra["matches"]["dev"] == {
        ("quesst14_dev_0001", "quesst14_00001"),
        ("quesst14_dev_0002", "quesst14_00003"),
    }


def test_sid_splits_every_speaker_by_the_list(tmp_path: Path) -> None:
    data = read("sid", tmp_path)
    speakers = ["id10001", "id10002", "id10270", "id10271"]
    assert data.labels == speakers
    for split, video in (("train", "1zcIwhmdeo4"), ("dev", "7gWzIy6yIIk"), ("test", "J9lHsKG98U8")):
        assert custom(data, split, "label") == speakers
        assert {name.split("/")[1] for name in ids(data, split)} == {video}


def test_asv_trains_on_dev_and_tries_the_trials(tmp_path: Path) -> None:
    data = read("asv", tmp_path)
    assert len(data.splits["train"]) == 6
    assert data.labels == ["id10001", "id10002"]
    assert data.extra["trials"] == [
        (1, "id10270/1zcIwhmdeo4/00001", "id10270/7gWzIy6yIIk/00002"),
        (0, "id10270/1zcIwhmdeo4/00001", "id10271/1zcIwhmdeo4/00001"),
    ]
    assert ids(data, "test") == sorted({name for _, *pair in data.extra["trials"] for name in pair})


def test_voxceleb_by_the_official_names_of_its_lists(tmp_path: Path) -> None:
    folder = by_hand.voxceleb(tmp_path)
    (folder / "veri_test_class.txt").rename(folder / "iden_split.txt")
    (folder / "voxceleb1_test_v2.txt").rename(folder / "veri_test.txt")
    assert set(find_corpora(tmp_path)) == {"sid", "asv"}
    assert len(read_task("sid", folder)[0].splits["train"]) == 4
    assert len(read_task("asv", folder)[0].extra["trials"]) == 2


def test_sd_reads_the_turns_of_both_speakers(tmp_path: Path) -> None:
    (cut,) = read("sd", tmp_path).splits["test"]
    turns = [(turn.speaker, turn.start, round(turn.end, 6)) for turn in cut.supervisions]
    assert turns == [("3536", 0.37, 3.71), ("1673", 0.38, 1.54)]
    assert cut.duration == 4.0


def test_sd_finds_audio_relative_to_its_list(tmp_path: Path) -> None:
    folder = by_hand.librimix(tmp_path)
    name = "3536-8226-0026_1673-143397-0009"
    by_hand.text(folder / "train" / "wav.scp", f"{name} ../../Libri2Mix/wav16k/max/train/mix_both/{name}.wav\n")
    assert len(read_task("sd", folder)[0].splits["train"]) == 1


def test_er_tests_each_session_once_and_merges_excited_with_happy(tmp_path: Path) -> None:
    folds = read_task("er", by_hand.iemocap(tmp_path))
    assert [fold.fold for fold in folds] == ["fold1", "fold2", "fold3", "fold4", "fold5"]
    for number, fold in enumerate(folds, start=1):
        assert fold.labels == ["ang", "hap", "neu", "sad"]
        # Ten turns a session, two of which are frustrated or unclear.
        assert {split: len(cuts) for split, cuts in fold.splits.items()} == {"train": 25, "dev": 7, "test": 8}
        assert {name[:5] for name in ids(fold, "test")} == {f"Ses0{number}"}
        assert not {name[:5] for name in ids(fold, "train") + ids(fold, "dev")} & {f"Ses0{number}"}
        assert custom(fold, "test", "label") == "neu hap hap ang sad neu ang sad".split()
    assert [cut.supervisions[0].speaker for cut in folds[1].splits["test"]][:2] == ["Ses02F", "Ses02M"]


def test_er_draws_validation_as_random_split_does(tmp_path: Path) -> None:
    fold = read_task("er", by_hand.iemocap(tmp_path))[0]
    in_order = sorted(ids(fold, "train") + ids(fold, "dev"), key=lambda name: (name[:14], name[-3:]))
    torch.manual_seed(0)
    train, dev = torch.utils.data.random_split(in_order, [25, 7])
    assert (ids(fold, "train"), ids(fold, "dev")) == (list(train), list(dev))


def test_ic_reads_three_slots(tmp_path: Path) -> None:
    data = read("ic", tmp_path)
    assert data.labels == {
        "action": ["change language", "increase"],
        "object": ["heat", "none"],
        "location": ["none", "washroom"],
    }
    _, cut = data.splits["dev"]
    (supervision,) = cut.supervisions
    assert supervision.custom == {"action": "increase", "object": "heat", "location": "washroom"}
    assert (supervision.text, supervision.speaker) == ("Heat up, in the washroom", "4BrX8aDqK2cLZRYl")


def test_sf_reads_words_and_slots_of_the_splits_own_speakers(tmp_path: Path) -> None:
    data = read("sf", tmp_path)
    assert {split: ids(data, split) for split in data.splits} == {
        "train": ["Ivy-snips-train-0"],
        "dev": ["Amy-snips-valid-0"],
        "test": ["Brian-snips-test-0"],
    }
    (cut,) = data.splits["train"]
    (supervision,) = cut.supervisions
    assert supervision.text == "ADD DON'T STOP AND GO TO MY LIST"
    assert supervision.custom == {
        "slots": ["O", "track", "track", "track", "track", "O", "playlist_owner", "O"],
        "intent": "AddToPlaylist",
    }
    (cut,) = data.splits["dev"]
    # The head drops the comma, after the slots' borders are known.
    assert cut.supervisions[0].text == "PLAY SONGS , PLEASE"
    assert cut.supervisions[0].custom["slots"] == ["O", "music_item", "O", "O"]
    assert data.extra["slots"] == ["music_item", "track", "playlist_owner"]


AUDIO_OF = {
    "pr": "dev-clean/84/1240/84-1240-0001.flac",
    "asr": "train-clean-100/103/1240/103-1240-0000.flac",
    "ks": "speech_commands_v0.01/yes/8b775397_nohash_0.wav",
    "qbe": "eval_queries/quesst14_eval_0001.wav",
    "sid": "dev/wav/id10002/7gWzIy6yIIk/00002.wav",
    "asv": "test/wav/id10271/1zcIwhmdeo4/00001.wav",
    "sd": "../Libri2Mix/wav16k/max/dev/mix_both/3536-8226-0026_1673-143397-0009.wav",
    "er": "Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_F000.wav",
    "ic": "wavs/speakers/4BrX8aDqK2cLZRYl/0a3129c0-4474-11e9-a9a5-5dbec3b8816b.wav",
    "sf": "test/Brian-snips-test-0.wav",
}


@pytest.mark.parametrize("task", TASKS)
def test_missing_audio_is_named_with_the_line_that_names_it(tmp_path: Path, task: str) -> None:
    folder = WRITERS[task](tmp_path)
    path = (folder / AUDIO_OF[task]).resolve()
    path.unlink()
    with pytest.raises(
        InputError, match=rf"{path.name}: no such file \(named in \S+: line \d+\): 1 of \d+ audio files"
    ):
        read_task(task, folder)


@pytest.mark.parametrize("task", TASKS)
def test_broken_audio_is_named(tmp_path: Path, task: str) -> None:
    folder = WRITERS[task](tmp_path)
    (folder / AUDIO_OF[task]).resolve().write_bytes(b"no audio")
    with pytest.raises(InputError, match=rf"{Path(AUDIO_OF[task]).name}: cannot be decoded .*1 of \d+ audio files"):
        read_task(task, folder)


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")


BROKEN_LINES = [
    # task, file, what is replaced, by what, the error
    ("asr", "dev-clean/84/1240/84-1240.trans.txt", " CHAPTER ONE", "", r"line 1: empty transcript of 84-1240-0000"),
    (
        "asr",
        "dev-clean/84/1240/84-1240.trans.txt",
        "84-1240-0000 CHAPTER ONE\n",
        "",
        r"0000\.flac: 84-1240\.trans\.txt has",
    ),
    (
        "pr",
        "test-clean/61/1240/61-1240.trans.txt",
        "RACHEL'S",
        "RACHELS",
        r"61-1240\.trans\.txt: line 2: 'RACHELS' is in no lex",
    ),
    ("pr", "librispeech-lexicon-200k-g2p.txt", "ONE\tW AH1 N", "ONE", r"g2p\.txt: line 2 is not `WORD PHONEME"),
    ("ks", "speech_commands_v0.01/validation_list.txt", "yes/8", "yes/9", r"9b775397_nohash_0\.wav: no such file"),
    ("qbe", "scoring/language_key_dev.lst", " czech", "", r"language_key_dev\.lst: line 2 is not `DATABASE/FOLDER"),
    ("qbe", "scoring/language_key_dev.lst", "nnenglish", "slovak", r"scoring: no utterances in nnenglish"),
    (
        "qbe",
        "scoring/groundtruth_quesst14_dev/quesst14_dev.rttm",
        "dev_0001",
        "dev_0009",
        r"line 2: the query quesst14_dev_0009",
    ),
    (
        "qbe",
        "scoring/groundtruth_quesst14_dev/quesst14_dev.rttm",
        "_00003",
        "_00007",
        r"line 4: the document quesst14_00007",
    ),
    (
        "qbe",
        "scoring/groundtruth_quesst14_eval/quesst14_eval.rttm",
        " 0.40 quesst14_eval_0001 lex spk1 0.5",
        "",
        r"line 2 is not `LEXEME",
    ),
    (
        "sid",
        "veri_test_class.txt",
        "1 id10002/",
        "3 id10002/",
        r"line 5: the speaker 'id10002' of .* is unseen in training",
    ),
    ("sid", "veri_test_class.txt", "2 id10001/", "4 id10001/", r"line 2 is not `SPLIT SPEAKER/VIDEO/FILE\.wav`"),
    (
        "sid",
        "veri_test_class.txt",
        "3 id10001/",
        "3 id10009/",
        r"line 3: id10009/\S+: no such file in dev/wav/ or test/wav/",
    ),
    (
        "asv",
        "voxceleb1_test_v2.txt",
        "0 id10270/1zcIwhmdeo4",
        "0 id10270/nowhere",
        r"nowhere/00001\.wav: no such file \(named in .*line 2\)",
    ),
    (
        "asv",
        "voxceleb1_test_v2.txt",
        "0 id10270/1zcIwhmdeo4",
        "0 id19999/1zcIwhmdeo4",
        r"line 2: id19999/\S+: no such file in",
    ),
    ("asv", "voxceleb1_test_v2.txt", "1 id10270", "7 id10270", r"line 1 is not `LABEL SPEAKER/VIDEO"),
    ("asv", "voxceleb1_test_v2.txt", " id10271/1zcIwhmdeo4/00001.wav", "", r"line 2 is not `LABEL SPEAKER/VIDEO"),
    ("sd", "dev/rttm", "\t3.34\t", "\t", r"rttm: line 1 is not `SPEAKER RECORDING CHANNEL START DURATION"),
    ("sd", "dev/rttm", "\t0.38\t", "\tlate\t", r"rttm: line 2 is not `SPEAKER RECORDING CHANNEL START DURATION"),
    ("sd", "dev/rttm", "SPEAKER", "LEXEME", r"rttm: line 1 is not `SPEAKER RECORDING CHANNEL START DURATION"),
    ("sd", "dev/rttm", "\t3.34\t", "\t0\t", r"rttm: line 1: a turn of 0 s at 0\.37 s"),
    ("sd", "dev/rttm", "\t3536-", "\t3537-", r"rttm: 3537-\S+ is not in wav\.scp"),
    ("sd", "test/wav.scp", ".wav\n", ".wav -t wav - |\n", r"wav\.scp: line 1: a command instead of a file"),
    (
        "er",
        "Session2/dialog/EmoEvaluation/Ses02F_impro01.txt",
        "\tneu\t[2.5000, 2.5000, 2.5000]",
        "",
        r"line 3 is not `\[START - END\]",
    ),
    (
        "ic",
        "data/test_data.csv",
        "washroom\n",
        "attic\n",
        r"test_data\.csv: line 3: the location 'attic' of \S+ is unseen in training",
    ),
    ("ic", "data/test_data.csv", ",washroom\n", "\n", r"test_data\.csv: line 3 is not `,path,speakerId"),
    ("ic", "data/test_data.csv", "speakerId", "speaker", r"test_data\.csv: no column speakerId"),
    (
        "sf",
        "all.iob.snips.txt",
        "O music_item AddToPlaylist",
        "O tune AddToPlaylist",
        r"line 5: the slot 'tune' is not in slots\.txt",
    ),
    ("sf", "all.iob.snips.txt", "O O music_item Add", "O music_item Add", r"line 5 is not `SPEAKER-snips-SPLIT"),
    (
        "sf",
        "all.iob.snips.txt",
        "Amy-snips-valid-0",
        "Amy-snips-valid-1",
        r"Amy-snips-valid-0\.wav: all\.iob\.snips\.txt has no line",
    ),
    ("sf", "all.iob.snips.txt", "BOS ADD SONGS EOS\tO O music_item", "BOS . EOS\tO O", r"line 5: empty transcript"),
]


@pytest.mark.parametrize(("task", "name", "old", "new", "message"), BROKEN_LINES)
def test_broken_line_is_named_with_the_rule(
    tmp_path: Path, task: str, name: str, old: str, new: str, message: str
) -> None:
    folder = WRITERS[task](tmp_path)
    edit(folder / name, old, new)
    with pytest.raises(InputError, match=message) as error:
        read_task(task, folder)
    assert "\n" not in str(error.value)


def test_labels_of_a_test_set_must_be_trained_on(tmp_path: Path) -> None:
    folder = by_hand.speech_commands(tmp_path)
    test = folder / "speech_commands_test_set_v0.01"
    (test / "yes").rename(test / "no")
    with pytest.raises(InputError, match=r"no/c9b653a0_nohash_1\.wav: the label 'no' of \S+ is unseen in training"):
        read_task("ks", folder)
    (test / "no").rename(test / "maybe")
    with pytest.raises(InputError, match="maybe is not one of the classes yes, no"):
        read_task("ks", folder)


def test_third_speaker_of_a_mixture_is_refused(tmp_path: Path) -> None:
    folder = by_hand.librimix(tmp_path)
    rttm = folder / "dev" / "rttm"
    rttm.write_text(rttm.read_text() + rttm.read_text().splitlines()[0].replace("\t3536\t", "\t61\t"))
    with pytest.raises(InputError, match=r"rttm: line 3: a third speaker in 3536-\S+: SUPERB's mixtures have 2"):
        read_task("sd", folder)


def test_mixture_without_turns_is_refused(tmp_path: Path) -> None:
    folder = by_hand.librimix(tmp_path)
    scp = folder / "dev" / "wav.scp"
    scp.write_text(scp.read_text() + "other " + scp.read_text().split()[1])
    with pytest.raises(InputError, match=r"wav\.scp: line 2: other has no turn in \S+rttm"):
        read_task("sd", folder)


def test_sd_keeps_turns_apart_that_share_their_times(tmp_path: Path) -> None:
    # Two speakers may begin and end together: one name in `segments`, and one speaker in `utt2spk`.
    folder = by_hand.librimix(tmp_path)
    name = "3536-8226-0026_1673-143397-0009"
    by_hand.text(folder / "train" / "segments", f"{name}_000370_003710 {name} 0.37 3.71\n" * 2)
    by_hand.text(folder / "train" / "utt2spk", f"{name}_000370_003710 3536\n{name}_000370_003710 1673\n")
    by_hand.text(
        folder / "train" / "rttm",
        "".join(f"SPEAKER\t{name}\t1\t0.37\t3.34\t<NA>\t<NA>\t{speaker}\t<NA>\n" for speaker in (3536, 1673)),
    )
    (cut,) = read_task("sd", folder)[0].splits["train"]
    assert [turn.speaker for turn in cut.supervisions] == ["3536", "1673"]


def test_turn_beyond_its_recording_is_refused(tmp_path: Path) -> None:
    folder = by_hand.librimix(tmp_path)
    by_hand.audio(tmp_path / "Libri2Mix/wav16k/max/dev/mix_both/3536-8226-0026_1673-143397-0009.wav", 2.0)
    with pytest.raises(InputError, match=r"0009\.wav: lasts 2\.00 s, but a turn of 3536 ends at 3\.71 s"):
        read_task("sd", folder)


def test_utterance_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    folder = by_hand.fluent_speech_commands(tmp_path)
    table = folder / "data" / "train_data.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    with pytest.raises(InputError, match=r"train_data\.csv: line 4: \S+ is already in \S+train_data\.csv: line 2"):
        read_task("ic", folder)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("asr", "dev-clean/84/1240/84-1240.trans.txt"),
        ("ks", "speech_commands_v0.01/testing_list.txt"),
        ("qbe", "scoring/language_key_eval.lst"),
        ("sd", "train/wav.scp"),
        ("sf", "all.iob.snips.txt"),
    ],
)
def test_line_that_is_there_twice_is_refused(tmp_path: Path, task: str, name: str) -> None:
    folder = WRITERS[task](tmp_path)
    content = (folder / name).read_text()
    (folder / name).write_text(content + content.splitlines()[-1] + "\n")
    last = len(content.splitlines())
    with pytest.raises(
        InputError, match=rf"{Path(name).name}: line {last + 1}: \S+ is already in line {last} of \S+{Path(name).name}"
    ):
        read_task(task, folder)


def test_file_that_is_no_text_or_empty_is_refused(tmp_path: Path) -> None:
    folder = by_hand.snips(tmp_path)
    (folder / "slots.txt").write_text("\n")
    with pytest.raises(InputError, match=r"slots\.txt: empty"):
        read_task("sf", folder)
    (folder / "slots.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"slots\.txt: cannot be read as text"):
        read_task("sf", folder)


@pytest.mark.parametrize("task", TASKS)
def test_missing_corpus_is_described(tmp_path: Path, task: str) -> None:
    assert find_corpora(tmp_path) == {}
    reason = missing_reason(tmp_path, task)
    assert reason.startswith(f"{task}: {tmp_path} and the folders in it have no ")
    assert "\n" not in reason
    with pytest.raises(InputError, match=rf"{tmp_path}: not \w+"):
        read_task(task, tmp_path)


def test_lexicon_makes_the_difference_between_asr_and_pr(tmp_path: Path) -> None:
    folder = by_hand.librispeech(tmp_path)
    (folder / "librispeech-lexicon-allothers-g2p.txt").unlink()
    assert set(find_corpora(tmp_path)) == {"asr"}
    assert "librispeech-lexicon-allothers-g2p.txt" in missing_reason(tmp_path, "pr")


def test_two_corpora_of_one_task_are_refused(tmp_path: Path) -> None:
    by_hand.snips(tmp_path).rename(tmp_path / "SNIPS.old")
    by_hand.snips(tmp_path)
    with pytest.raises(InputError, match=r"SNIPS and \S+SNIPS\.old both look like the corpus of sf: keep one"):
        find_corpora(tmp_path)


def test_unknown_folder_and_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_corpora(tmp_path / "nowhere")
    with pytest.raises(InputError, match="st: no such task: choose from pr, asr, ks"):
        read_task("st", tmp_path)


def test_mark_of_a_synthetic_corpus_is_carried_and_never_guessed(tmp_path: Path) -> None:
    folder = by_hand.voxceleb(tmp_path)
    (folder / "SYNTHETIC.json").write_text(json.dumps({"title": "synthetic speech, size tiny"}))
    assert read_task("sid", folder)[0].synthetic == "synthetic speech, size tiny"
    (folder / "SYNTHETIC.json").write_text("{")
    with pytest.raises(InputError, match=r"SYNTHETIC\.json: marks the corpus as synthetic but cannot be read"):
        read_task("sid", folder)
