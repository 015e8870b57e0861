"""The synthetic corpora: official layouts that hold what the generator put in, and say that they are synthetic."""

from __future__ import annotations

import hashlib
import json
import wave
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lab.corpora import MARK, TASKS, fluent_speech_commands, make_corpora, quesst, snips, speech_commands
from lab.corpora.channel import Channel, at_level, colored_noise, rms
from lab.corpora.librimix import Mixture
from lab.corpora.work import Clip, Made, generator
from lab.espeak import EspeakVoice, espeak
from skill_speech.data import load_waveform
from skill_speech.evaluation.corpora import TASKS as PROTOCOL_TASKS
from skill_speech.evaluation.corpora import TaskData, find_corpora, read_task

VOICE = EspeakVoice("en-us", "f3", 50, 50, 170)


@pytest.fixture(scope="module")
def data(synthetic_corpora: Path) -> dict[str, list[TaskData]]:
    found = find_corpora(synthetic_corpora)
    return {task: read_task(task, found[task]) for task in PROTOCOL_TASKS}


@pytest.fixture(scope="module")
def clips(planned_corpora: Any) -> dict[str, Clip]:
    """What was meant to be said in every file."""
    root = planned_corpora.root
    return {job.path.relative_to(root).as_posix(): job for job in planned_corpora.jobs if isinstance(job, Clip)}


def below(folder: str, clips: dict[str, Clip]) -> dict[str, Clip]:
    """The clips of a folder by their names in it."""
    return {name.removeprefix(folder): clip for name, clip in clips.items() if name.startswith(folder)}


def by_stem(folder: str, clips: dict[str, Clip]) -> dict[str, Clip]:
    return {Path(name).stem: clip for name, clip in below(folder, clips).items()}


def supervisions(one: TaskData, *splits: str) -> Iterator[Any]:
    for split in splits or one.splits:
        for cut in one.splits[split]:
            yield from cut.supervisions


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_all_ten_tasks_are_found_and_read(synthetic_corpora: Path, data: dict[str, list[TaskData]]) -> None:
    assert set(find_corpora(synthetic_corpora)) == set(PROTOCOL_TASKS) == set(TASKS)
    for task, folds in data.items():
        for one in folds:
            assert one.task == task
            assert all(len(cuts) > 0 for cuts in one.splits.values())


def test_every_corpus_says_that_it_is_synthetic(synthetic_corpora: Path, data: dict[str, list[TaskData]]) -> None:
    mark = json.loads((synthetic_corpora / MARK).read_text())
    assert (mark["size"], mark["seed"], sorted(mark["tasks"])) == ("tiny", 0, sorted(TASKS))
    assert {one.synthetic for folds in data.values() for one in folds} == {mark["title"]}
    assert "synthetic" in mark["title"]
    assert "synthetic" in (synthetic_corpora / "README.txt").read_text().lower()


@pytest.mark.parametrize(
    ("task", "pattern", "split"),
    [
        ("asr", "LibriSpeech/train-clean-100/**/*.flac", "train"),
        ("pr", "LibriSpeech/test-clean/**/*.flac", "test"),
        ("ks", "speech_commands_test_set_v0.01/*/*.wav", "test"),
        ("asv", "VoxCeleb1/dev/wav/**/*.wav", "train"),
        ("sd", "Libri2Mix/wav16k/max/train-100/mix_both/*.wav", "train"),
        ("ic", "fluent_speech_commands_dataset/wavs/**/*.wav", "train dev test"),
        ("sid", "VoxCeleb1/*/wav/**/*.wav", "train dev test"),
    ],
)
def test_no_file_is_left_out(
    synthetic_corpora: Path, data: dict[str, list[TaskData]], task: str, pattern: str, split: str
) -> None:
    (one,) = data[task]
    assert sum(len(one.splits[name]) for name in split.split()) == len(list(synthetic_corpora.glob(pattern)))


def test_audio_is_16_bit_at_the_rates_of_the_originals(synthetic_corpora: Path) -> None:
    rates: dict[str, set[int]] = {}
    for path in synthetic_corpora.rglob("*.wav"):
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
            rates.setdefault(path.relative_to(synthetic_corpora).parts[0], set()).add(file.getframerate())
    assert rates.pop("quesst14Database") == {8_000}
    assert set.union(*rates.values()) == {16_000}


DISJOINT_SPEAKERS = [
    ("asr", "train dev test"),
    ("ic", "train dev test"),
    ("sf", "train dev test"),
    ("asv", "train test"),
]


@pytest.mark.parametrize(("task", "splits"), [*DISJOINT_SPEAKERS, ("sd", "train dev test")])
def test_no_speaker_is_in_two_splits(data: dict[str, list[TaskData]], task: str, splits: str) -> None:
    (one,) = data[task]
    speakers = [{turn.speaker for turn in supervisions(one, split)} for split in splits.split()]
    assert all(not a & b for a, b in combinations(speakers, 2))


def test_keyword_speakers_are_in_the_split_that_their_names_hash_to(
    synthetic_corpora: Path, data: dict[str, list[TaskData]]
) -> None:
    # s3prl's rule, which the corpus' lists come from.
    for split, cuts in (("train", data["ks"][0].splits["train"]), ("dev", data["ks"][0].splits["dev"])):
        for cut in cuts:
            if speaker := cut.supervisions[0].speaker:
                share = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
                assert (share < 10) == (split == "dev")
                assert share < 10 or share >= 20
    folder = synthetic_corpora / "speech_commands_v0.01"
    assert {path.relative_to(folder).as_posix() for path in folder.glob("[!_]*/*.wav")} >= set(
        (folder / "testing_list.txt").read_text().split()
    )


def test_names_of_an_official_list_hash_to_its_split() -> None:
    # From the validation and the testing list of speech_commands_v0.01.
    for name in ("8b775397", "2643992f", "060cd039", "f5e5e8b0", "dbb40d24"):
        assert speech_commands.which_set(name) == "validation"
    for name in ("c518d1b1", "1b4c9b89", "daf230ac", "563aa4e6", "b83c1acf"):
        assert speech_commands.which_set(name) == "testing"


@pytest.mark.parametrize("task", ["asr", "sf"])
def test_no_sentence_is_in_two_splits(data: dict[str, list[TaskData]], task: str) -> None:
    (one,) = data[task]
    sentences = [{supervision.text for supervision in supervisions(one, split)} for split in one.splits]
    assert all(not a & b for a, b in combinations(sentences, 2))


def test_emotion_folds_keep_the_actors_of_a_session_apart(data: dict[str, list[TaskData]]) -> None:
    for fold in data["er"]:
        tested = {turn.speaker for turn in supervisions(fold, "test")}
        assert len(tested) == 2
        assert not tested & {turn.speaker for turn in supervisions(fold, "train", "dev")}
        assert fold.labels == ["ang", "hap", "neu", "sad"]


def test_transcripts_are_what_was_said(clips: dict[str, Clip], data: dict[str, list[TaskData]]) -> None:
    read_aloud = by_stem("LibriSpeech/", clips)
    said = {name: clip.text.upper() for name, clip in read_aloud.items()}
    assert {s.id: s.text for s in supervisions(data["asr"][0])} == said
    assert {s.id: s.text for s in supervisions(data["pr"][0])} == said
    voices: dict[str, set[tuple[str, str]]] = {}
    for name, clip in read_aloud.items():
        voices.setdefault(name.split("-")[0], set()).add((clip.voice.accent, clip.voice.variant))
    assert all(len(of_speaker) == 1 for of_speaker in voices.values())


def test_lexicon_gives_the_phonemes_that_are_heard(data: dict[str, list[TaskData]]) -> None:
    # In another voice, so that it is the words that agree and not the recordings.
    voice = EspeakVoice("en-us", "m3", 40, 40, 150)
    wrong = total = 0
    for supervision in supervisions(data["pr"][0], "test"):
        heard = [phoneme for _, phoneme in voice.speak(supervision.text.lower()).phonemes]
        wrong += edit_distance(heard, supervision.custom["phonemes"])
        total += len(heard)
    assert total > 200
    assert wrong / total < 0.03  # glides between words, which no lexicon has


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def test_keywords_are_what_was_said(
    synthetic_corpora: Path, clips: dict[str, Clip], data: dict[str, list[TaskData]]
) -> None:
    keywords = "yes no up down left right on off stop go".split()
    expected = {
        name.removesuffix(".wav"): clip.text if clip.text in keywords else "_unknown_"
        for name, clip in clips.items()
        if name.startswith("speech_commands")
    }
    labels = {s.id: s.custom["label"] for s in supervisions(data["ks"][0]) if s.custom["label"] != "_silence_"}
    assert labels.items() <= expected.items()
    left_out = (synthetic_corpora / "speech_commands_v0.01" / "testing_list.txt").read_text().split()
    assert len(expected) - len(labels) == len(left_out)
    assert all(round(cut.duration, 6) == 1.0 for cuts in data["ks"][0].splits.values() for cut in cuts)


def test_queries_occur_where_the_ground_truth_says(clips: dict[str, Clip], data: dict[str, list[TaskData]]) -> None:
    texts = {name: clip.text for name, clip in by_stem("quesst14Database/", clips).items()}
    (one,) = data["qbe"]
    for split, queries in one.extra["queries"].items():
        brute_force = {
            (query, document)
            for query, document in product(queries, one.extra["documents"])
            if f" {texts[query]} " in f" {texts[document]} "
        }
        assert one.extra["matches"][split] == brute_force
        assert {query for query, _ in brute_force} == set(queries), "every query occurs somewhere"
        assert len(brute_force) < len(queries) * len(one.extra["documents"]) / 2
    english = {cut.id for name in ("queries_dev", "queries_test", "documents") for cut in one.splits[name]}
    assert {name for name in texts if texts[name].replace(" ", "").isdigit()} == texts.keys() - english


def test_query_sounds_at_its_time_in_the_document(synthetic_corpora: Path, clips: dict[str, Clip]) -> None:
    # Spoken alone in the document's own voice, the query takes about as long as the ground truth says.
    spoken = by_stem("quesst14Database/", clips)
    rttm = synthetic_corpora / "quesst14Database/scoring/groundtruth_quesst14_dev/quesst14_dev.rttm"
    for line in rttm.read_text().splitlines():
        _, document, _, start, duration, query, *_ = line.split()
        words = spoken[document].voice.speak(spoken[query].text).words
        assert float(duration) == pytest.approx(words[-1].end - words[0].start, rel=0.35)
        assert float(start) + float(duration) <= soundfile.info(spoken[document].path).duration


def test_time_of_words_that_espeak_joins() -> None:
    # "in the" is one word to espeak-ng: its first word starts and its second one ends with both.
    spoken = VOICE.speak("a cat in the hat")
    made = Made(len(spoken.samples_T) / spoken.sample_rate, spoken.words)
    words = ("a", "cat", "in", "the", "hat")
    assert quesst._when(made, words, 1, 1) == (spoken.words[1].start, spoken.words[1].end)
    assert quesst._when(made, words, 3, 4) == (spoken.words[2].start, spoken.words[-1].end)
    assert quesst.occurrences(("a", "b"), ("a", "a", "b", "a", "b")) == [1, 3]


def test_voice_of_a_speaker_is_the_same_in_every_video_and_the_channel_is_not(clips: dict[str, Clip]) -> None:
    timbres: dict[str, set[tuple[str, str]]] = {}
    channels: dict[str, set[Channel]] = {}
    for name, clip in below("VoxCeleb1/", clips).items():
        speaker, video, _ = name.split("/")[-3:]
        timbres.setdefault(speaker, set()).add((clip.voice.accent, clip.voice.variant))
        channels.setdefault(f"{speaker}/{video}", set()).add(clip.channel)
    assert all(len(timbre) == 1 for timbre in timbres.values())
    assert len(set.union(*timbres.values())) == len(timbres), "no two speakers sound alike"
    assert all(len(channel) == 1 for channel in channels.values())
    assert len(set.union(*channels.values())) == len(channels)


def test_trials_are_right_and_never_within_a_video(data: dict[str, list[TaskData]]) -> None:
    trials = data["asv"][0].extra["trials"]
    assert {label for label, _, _ in trials} == {0, 1}
    for label, one, other in trials:
        assert (one.split("/")[0] == other.split("/")[0]) == bool(label)
        assert one.split("/")[1] != other.split("/")[1]


def test_identification_tests_every_speaker_on_another_video(data: dict[str, list[TaskData]]) -> None:
    (one,) = data["sid"]
    for split in one.splits:
        assert sorted({s.custom["label"] for s in supervisions(one, split)}) == one.labels
    videos = [{tuple(cut.id.split("/")[:2]) for cut in one.splits[split]} for split in one.splits]
    assert all(not a & b for a, b in combinations(videos, 2))


def test_mixtures_are_loud_in_their_turns_only_and_overlap(data: dict[str, list[TaskData]]) -> None:
    overlapping = alone = 0
    for cuts in data["sd"][0].splits.values():
        for cut in cuts:
            waveform_T = load_waveform(cut)
            active_T = np.zeros((2, len(waveform_T)), bool)
            speakers = sorted({turn.speaker for turn in cut.supervisions})
            assert len(speakers) == 2
            for turn in cut.supervisions:
                start, end = round(turn.start * 16_000), round(turn.end * 16_000)
                active_T[speakers.index(turn.speaker), start:end] = True
                # The edges are exact: a tenth of a second inside them there is speech.
                quiet = rms(waveform_T[~active_T.any(0)]) if not active_T.all() else 0.0
                assert rms(waveform_T[start : start + 3_200]) > quiet / 2
            outside = waveform_T[~active_T.any(axis=0)]
            assert rms(outside) < rms(waveform_T[active_T.any(axis=0)]) / 2
            overlapping += active_T.all(axis=0).any()
            alone += (active_T.sum(axis=0) == 1).any()
    assert overlapping >= 5
    assert alone == 10


def test_turns_are_where_the_sentences_were_put(planned_corpora: Any, tmp_path: Path) -> None:
    mixture = next(job for job in planned_corpora.jobs if isinstance(job, Mixture))
    made = replace(mixture, path=tmp_path / "mixture.wav").make()
    clock: dict[int, float] = {}
    for saying, (speaker, start, end) in zip(mixture.sayings, made.turns, strict=True):
        words = saying.voice.speak(saying.text).words
        assert speaker == saying.speaker
        assert start == pytest.approx(clock.get(speaker, 0.0) + saying.pause, abs=1e-4)
        assert end - start == pytest.approx(words[-1].end - words[0].start, abs=1e-3)
        clock[speaker] = end


def test_prosody_and_not_words_tells_emotions_apart(synthetic_corpora: Path, clips: dict[str, Clip]) -> None:
    folder = synthetic_corpora / "IEMOCAP_full_release"
    labeled = [
        line.split("\t")[1:3]
        for path in sorted(folder.glob("Session*/dialog/EmoEvaluation/*.txt"))
        for line in path.read_text().splitlines()
        if line.startswith("[")
    ]
    by_name = by_stem("IEMOCAP_full_release/", clips)
    assert sorted(name for name, _ in labeled) == sorted(by_name)
    said: dict[str, set[tuple[str, str]]] = {}
    pitch: dict[str, list[int]] = {}
    rate: dict[str, list[int]] = {}
    for name, emotion in labeled:
        merged = "hap" if emotion == "exc" else emotion
        said.setdefault(merged, set()).add((name[:5] + name.split("_")[-1][0], by_name[name].text))
        pitch.setdefault(merged, []).append(by_name[name].voice.pitch)
        rate.setdefault(merged, []).append(by_name[name].voice.rate)
    # Every actor says every sentence in every scored emotion.
    assert said["neu"] == said["hap"] == said["ang"] == said["sad"]
    assert np.mean(pitch["sad"]) < np.mean(pitch["neu"]) < np.mean(pitch["hap"])
    assert np.mean(rate["sad"]) < np.mean(rate["neu"]) < np.mean(rate["ang"])


def test_intents_are_those_of_the_wording(clips: dict[str, Clip], data: dict[str, list[TaskData]]) -> None:
    meant = {
        text: (intent.action, intent.object, intent.location)
        for intent, texts in fluent_speech_commands.wordings().items()
        for text in texts
    }
    assert len(fluent_speech_commands.wordings()) == 31
    assert len(meant) == sum(map(len, fluent_speech_commands.wordings().values())), "no wording is ambiguous"
    spoken = below("fluent_speech_commands_dataset/", clips)
    said = {name.removesuffix(".wav"): clip.text for name, clip in spoken.items()}
    listed = list(supervisions(data["ic"][0]))
    assert {s.id: s.text for s in listed} == said
    for s in listed:
        assert (s.custom["action"], s.custom["object"], s.custom["location"]) == meant[s.text]


def test_slots_are_those_of_the_template(clips: dict[str, Clip], data: dict[str, list[TaskData]]) -> None:
    said = {name: clip.text.upper() for name, clip in by_stem("SNIPS/", clips).items()}
    listed = list(supervisions(data["sf"][0]))
    assert {s.id: s.text for s in listed}.items() <= said.items()
    assert len(said) - len(listed) == 2 * 3, "a stranger in each split is left out"
    for s in listed:
        assert matches_template(s.text.lower().split(), s.custom["slots"], snips.TEMPLATES[s.custom["intent"]])
    assert {slot for s in listed for slot in s.custom["slots"]} == {"O", *data["sf"][0].extra["slots"]}


def matches_template(words: list[str], slots: list[str], templates: list[str]) -> bool:
    """Whether the words outside slots and the order of the slots are those of a template."""
    runs = [word if slot == "O" else f"{{{slot}}}" for word, slot in zip(words, slots, strict=True)]
    collapsed = [run for i, run in enumerate(runs) if not (run.startswith("{") and i and runs[i - 1] == run)]
    return " ".join(collapsed) in [template.lower().replace("timerange", "timeRange") for template in templates]


@pytest.mark.parametrize(
    "tasks", [["ks", "qbe", "sd"], pytest.param(["asr", "sid", "er", "ic", "sf"], marks=pytest.mark.slow)]
)
def test_same_seed_gives_the_same_files_for_any_number_of_processes(
    synthetic_corpora: Path, tmp_path: Path, tasks: list[str]
) -> None:
    make_corpora(tmp_path / "again", size="tiny", tasks=tasks, jobs=2)
    again, before = files(tmp_path / "again"), files(synthetic_corpora)
    assert len(again) > 150
    assert {name: digest for name, digest in again.items() if name != MARK}.items() <= before.items()


def test_another_seed_gives_other_speakers_and_sentences(synthetic_corpora: Path, tmp_path: Path) -> None:
    make_corpora(tmp_path / "other", size="tiny", seed=1, tasks=["asr"], jobs=1)
    (other,) = read_task("asr", find_corpora(tmp_path / "other")["asr"])
    (one,) = read_task("asr", find_corpora(synthetic_corpora)["asr"])
    assert not {s.text for s in supervisions(one)} & {s.text for s in supervisions(other)}


def test_folder_is_gone_on_with_and_never_mixed(tmp_path: Path) -> None:
    root = make_corpora(tmp_path / "corpora", size="tiny", tasks=["qbe"], jobs=1)
    before = files(root / "quesst14Database")
    make_corpora(root, size="tiny", tasks=["qbe", "sd"], jobs=1)
    assert files(root / "quesst14Database") == before
    assert set(find_corpora(root)) == {"qbe", "sd"}
    with pytest.raises(SystemExit, match="holds other synthetic corpora"):
        make_corpora(root, size="tiny", seed=1, jobs=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(SystemExit, match=r"mine: not empty, and not written by lab\.corpora"):
        make_corpora(tmp_path / "mine", size="tiny", jobs=1)
    with pytest.raises(SystemExit, match="choose tasks from pr, asr"):
        make_corpora(tmp_path / "x", size="tiny", tasks=["st"], jobs=1)


def test_utterance_is_a_function_of_its_text_and_voice() -> None:
    # A voice with flutter, one with breath and one of noise, each after others and alone.
    voices = [
        EspeakVoice("en", "f2", 60, 40, 160),
        EspeakVoice("en-us", "Alicia", 50, 50, 170),
        EspeakVoice("en-029", "caleb", 40, 50, 180),
    ]
    first = [voice.speak("nobody heard the answer").samples_T for voice in voices]
    VOICE.speak("something else in between")
    for voice, samples_T in zip(reversed(voices), reversed(first), strict=True):
        np.testing.assert_array_equal(voice.speak("nobody heard the answer").samples_T, samples_T)


def test_words_of_an_utterance_are_in_time_and_hold_its_phonemes() -> None:
    spoken = VOICE.speak("the golden umbrella, and a dog's 42 leaves")
    assert [word.text for word in spoken.words] == "the golden umbrella, and a dog's 42 leaves".split()
    assert [p for word in spoken.words for p in word.phonemes] == [p for _, p in spoken.phonemes]
    for word, following in zip(spoken.words, spoken.words[1:], strict=False):
        assert word.start < word.end <= following.start
    umbrella, following = spoken.words[2:4]
    assert following.start - umbrella.end > 0.05, "the pause is in no word"
    assert spoken.words[-1].end <= len(spoken.samples_T) / spoken.sample_rate


@pytest.mark.parametrize("language", quesst.FOREIGN.values())
def test_a_number_is_one_word_in_every_language(language: str) -> None:
    # In some languages there is a pause within it.
    said = espeak().speak("72 88 93 33 47", EspeakVoice(language, "m1", 50, 50, 160))
    assert [word.text for word in said.words] == ["72", "88", "93", "33", "47"]
    assert [p for word in said.words for p in word.phonemes] == [p for _, p in said.phonemes]


def test_channel_shapes_the_spectrum_as_it_says() -> None:
    noise_T = colored_noise(160_000, 0.0, 16_000, generator("noise"))

    def band_db(audio_T: np.ndarray, low: float, high: float) -> float:
        frequency = np.fft.rfftfreq(len(audio_T), 1 / 16_000)
        power = np.abs(np.fft.rfft(audio_T)) ** 2
        return float(10 * np.log10(power[(frequency >= low) & (frequency < high)].mean()))

    def change_db(channel: Channel, low: float, high: float) -> float:
        return band_db(channel.apply(noise_T, 16_000, generator("x")), low, high) - band_db(noise_T, low, high)

    assert change_db(Channel(high=3_000), 4_500, 6_000) < -20
    assert abs(change_db(Channel(high=3_000), 500, 1_500)) < 1
    assert change_db(Channel(low=300), 40, 80) < -20
    assert change_db(Channel(tilt_db=6), 3_900, 4_100) - change_db(Channel(tilt_db=6), 190, 210) == pytest.approx(
        6, abs=0.5
    )
    quiet_T = np.sin(np.arange(160_000) / 5).astype("float32")
    noisy_T = Channel(snr_db=10).apply(quiet_T, 16_000, generator("x"))
    assert 20 * np.log10(rms(quiet_T) / rms(noisy_T - quiet_T)) == pytest.approx(10, abs=0.1)
    assert 20 * np.log10(rms(at_level(noise_T, -6.0))) == pytest.approx(-32, abs=0.1)
