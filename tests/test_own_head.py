"""A model's own head on data with text or labels: against Transformers' classes, jiwer and scikit-learn."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch
import transformers
import yaml
from lhotse import CutSet, MonoCut, SupervisionSegment
from sklearn.metrics import accuracy_score, f1_score, roc_curve

from skill_speech import InputError, evaluate, load_model
from skill_speech.cli import main
from skill_speech.data import SAMPLE_RATE, BadAudio, prepare
from skill_speech.data.audio import read_header
from skill_speech.data.listing import whole_file
from skill_speech.evaluation.metrics import bootstrap, equal_error_rate
from skill_speech.evaluation.metrics.bootstrap import estimate, point, resampled
from skill_speech.evaluation.own_head import inference
from skill_speech.evaluation.own_head.scorers import Sums, Trials, draw_pairs
from skill_speech.run.signals import Stopped
from tests.full_disk import full_at
from tests.test_heads import CLASSES
from tests.transformers_models import TINY, build

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "A": 7, "O": 8, "N": 9, "'": 10}
TEXTS = [
    "Ten a tea",
    "note",
    "a toe, an oat",
    "neat",
    "eat ten",
    "to no one",
    "ant",
    "Ötna tee",
    "",
    "not a one",
    "on",
    "o",
]
SECONDS = [1.3, 0.8, 1.1, 0.5, 2.0, 0.7, 1.0, 0.9, 0.6, 1.7, 0.4, 1.2]
LABELS = ["no", "yes", "maybe", "so", "never"]


def write_audio(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for number, seconds in enumerate(SECONDS):
        generator = np.random.default_rng(number)
        waveform_T = generator.standard_normal(round(seconds * SAMPLE_RATE))
        # Of different colors, so that random models do not say the same of all.
        kernel = generator.standard_normal(1 + 3 * number)
        waveform_T = np.convolve(waveform_T, kernel / np.abs(kernel).sum(), "same")
        paths.append(folder / f"utt{number:02}.flac")
        soundfile.write(paths[-1], 0.5 * waveform_T / np.abs(waveform_T).max(), SAMPLE_RATE)
    return paths


Say = Callable[[int, MonoCut], list[dict[str, Any]]]


def write_manifest(folder: Path, say: Say, name: str = "cuts.jsonl.gz") -> Path:
    """Audio, and a manifest of it in which a function says what is said of each cut."""
    paths = sorted((folder / "audio").iterdir()) if (folder / "audio").exists() else write_audio(folder / "audio")
    cuts = []
    for number, path in enumerate(paths):
        cut = whole_file(path, path.stem, read_header(path))
        common = {"recording_id": path.stem, "start": 0.0, "duration": cut.duration}
        cut.supervisions = [
            SupervisionSegment(**{"id": f"{path.stem}-{part}", **common, **said})
            for part, said in enumerate(say(number, cut))
        ]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder / name)
    return folder / name


def speech_model(folder: Path, head: str, values: dict[str, Any], kind: str = "Wav2Vec2", seed: int = 0) -> Any:
    """A model of Transformers in a folder, whose head's biases do not decide everything."""
    model = build(kind, TINY | CLASSES[head] | values, head, seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.split(".")[0] in ("lm_head", "classifier", "projector", "feature_extractor", "tdnn"):
                weight.normal_(0, 0 if name.endswith("bias") else 1.0 if weight.shape[-1] < 100 else 0.2)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    if head == "ForCTC":
        (folder / "words.json").write_text(json.dumps(VOCABULARY))
        transformers.Wav2Vec2CTCTokenizer(str(folder / "words.json")).save_pretrained(folder)
    return model


def theirs(model: Any, folder: Path, attribute: str = "logits") -> dict[str, np.ndarray]:
    """What Transformers' own class makes of each utterance alone, as its own pipeline would give it."""
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder / "model")
    found = {}
    for path in sorted((folder / "audio").iterdir()):
        waveform_T, _ = soundfile.read(path, dtype="float32")
        inputs = extractor(waveform_T, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.no_grad():
            found[path.stem] = model(inputs.input_values)[attribute][0].numpy()
    return found


def balance(model: Any, folder: Path) -> None:
    """Let a model's classifier say everything of some utterance; random ones say the same of all."""
    rows = [logits[None] if logits.ndim == 1 else logits for logits in theirs(model, folder).values()]
    logits_NV = np.concatenate(rows)
    with torch.no_grad():
        scale_V = 1 / torch.from_numpy(logits_NV.std(0))
        model.classifier.weight.mul_(scale_V[:, None])
        model.classifier.bias.copy_((model.classifier.bias - torch.from_numpy(logits_NV.mean(0))) * scale_V)
    model.save_pretrained(folder / "model")


def own_head(folder: Path, data: Path, **options: Any) -> dict[str, Any]:
    evaluated = evaluate([str(folder / "model")], str(data), str(folder / "out"), own_head=True, **options)
    assert json.loads((folder / "out/own_head.json").read_text()) == json.loads(json.dumps(evaluated.result))
    return evaluated.result


def rows(folder: Path) -> list[list[str]]:
    text = (folder / "out/own_head.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


def value(result: dict[str, Any], measure: str, of: str = "model") -> float:
    estimated = result[of]["metrics"][measure]
    assert estimated["low"] <= estimated["value"] <= estimated["high"]
    return estimated["value"]


def say_text(number: int, cut: MonoCut) -> list[dict[str, Any]]:
    return [{"text": TEXTS[number]}]


@pytest.fixture(scope="module")
def recognition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A folder with a CTC model, its data, and Transformers' model."""
    folder = tmp_path_factory.mktemp("ctc")
    return folder, write_manifest(folder, say_text), speech_model(folder / "model", "ForCTC", {})


def test_error_rates_are_those_of_transformers_and_jiwer(recognition: tuple[Path, Path, Any]) -> None:
    folder, data, model = recognition
    result = own_head(folder, data)
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder / "model")
    logits = theirs(model, folder)
    # Told to skip special tokens, Transformers' tokenizer takes the blank for one before it joins what is repeated.
    decoded = [tokenizer.decode(logits_TV.argmax(-1)) for logits_TV in logits.values()]
    heard = [" ".join(re.sub("<s>|</s>|<unk>", "", text).split()) for text in decoded]
    assert len(set(heard)) > 8
    wanted = [re.sub("[^ETAON' ]", "", text.upper()) for text in TEXTS]
    assert wanted[7] == "TNA TEE"
    spoken = [text for text in wanted if text]
    missing = [text for text, reference in zip(heard, wanted, strict=True) if not reference]
    kept = [text for text, reference in zip(heard, wanted, strict=True) if reference]
    # Of a reference without words all that is heard is wrong.
    words = sum(len(text.split()) for text in spoken)
    wer = 100 * (jiwer.wer(spoken, kept) + sum(len(text.split()) for text in missing) / words)
    cer = 100 * (jiwer.cer(spoken, kept) + sum(map(len, missing)) / sum(map(len, spoken)))
    assert value(result, "wer") == pytest.approx(wer)
    assert value(result, "cer") == pytest.approx(cer)
    assert result["items"] == {"utterances": 12, "words": words, "characters": sum(map(len, spoken))}
    assert "lacks 1 of their" in result["notes"][0]
    assert rows(folder) == [
        ["id", "reference", "model"],
        *([f"utt{number:02}", *pair] for number, pair in enumerate(zip(wanted, heard, strict=True))),
    ]
    assert result["teacher"] is result["difference"] is None


def test_padding_changes_no_decision(
    recognition: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one batch, whatever their lengths, and one by one."""
    folder, data, _ = recognition
    texts = []
    for size in (1, 100):
        out = tmp_path / str(size)

        def in_parts(indices: Any, lengths: Any, limit: float, size: int = size) -> Iterator[list[int]]:
            yield from (list(indices)[start : start + size] for start in range(0, len(indices), size))

        monkeypatch.setattr(inference, "similar_lengths", in_parts)
        evaluate([str(folder / "model")], str(data), str(out), own_head=True)
        texts.append((out / "own_head.tsv").read_text())
    assert texts[0] == texts[1]


def test_the_teacher_of_a_run_is_evaluated_beside_it(tmp_path: Path) -> None:
    data = write_manifest(tmp_path, say_text)
    speech_model(tmp_path / "large", "ForCTC", {"num_hidden_layers": 4}, seed=3)
    speech_model(tmp_path / "hf", "ForCTC", {})
    run = tmp_path / "runs/small"
    load_model(tmp_path / "hf").save_pretrained(run / "model")
    (run / "config.yaml").write_text(yaml.safe_dump({"teacher": str(tmp_path / "large"), "revision": None}))
    result = evaluate([str(run / "model")], str(data), own_head=True).result
    written = json.loads((run / "evaluation/own_head.json").read_text())
    assert written["model"]["name"] == "small"
    assert written["teacher"]["name"] == written["teacher"]["source"] == "large"
    assert str(tmp_path) not in json.dumps(written)
    alone = evaluate([str(tmp_path / "large")], str(data), str(tmp_path / "alone"), own_head=True).result
    assert result["teacher"]["metrics"] == alone["model"]["metrics"]
    difference = result["difference"]["wer"]
    assert difference["value"] == pytest.approx(value(result, "wer") - value(result, "wer", "teacher"))
    # Paired: a model against itself differs in no resample.
    own = evaluate(
        [str(run / "model")], str(data), str(tmp_path / "own"), own_head=True, teacher=str(tmp_path / "hf")
    ).result
    assert own["difference"]["wer"] == own["difference"]["cer"] == {"value": 0, "low": 0, "high": 0}
    none = evaluate([str(run / "model")], str(data), str(tmp_path / "none"), own_head=True, teacher="none").result
    assert none["teacher"] is None
    assert none["model"]["metrics"] == result["model"]["metrics"]
    (run / "config.yaml").write_text(yaml.safe_dump({"teacher": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match=r"the teacher cannot be evaluated: .*gone.*; give --teacher SOURCE, or none"):
        evaluate([str(run / "model")], str(data), str(tmp_path / "gone_out"), own_head=True)


def test_a_folder_in_the_layout_of_librispeech_and_its_manifest_and_shards_are_data(
    recognition: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    folder, _, _ = recognition
    audio = sorted((folder / "audio").iterdir())
    chapter = tmp_path / "Libri/dev/19/198"
    chapter.mkdir(parents=True)
    lines = []
    for number in (0, 1, 3):
        name = f"19-198-{number:04}"
        (chapter / f"{name}.flac").write_bytes(audio[number].read_bytes())
        lines.append(f"{name} {TEXTS[number].upper()}")
    (chapter / "19-198.trans.txt").write_text("\n".join(lines))
    prepare(tmp_path / "Libri", tmp_path / "Libri/cuts.jsonl.gz")
    prepare(tmp_path / "Libri", tmp_path / "shards", shards=True)
    found = [
        evaluate([str(folder / "model")], str(tmp_path / name), str(tmp_path / f"o{number}"), own_head=True).result
        for number, name in enumerate(("Libri", "Libri/cuts.jsonl.gz", "shards"))
    ]
    assert found[0]["model"]["metrics"] == found[1]["model"]["metrics"] == found[2]["model"]["metrics"]
    assert found[0]["items"]["utterances"] == 3


def classes_of(number: int) -> str:
    return LABELS[number * number % 4]


@pytest.mark.parametrize("field", ["label", "speaker", "text", "number", "gender"])
def test_accuracy_and_f1_of_utterances_are_those_of_scikit_learn(tmp_path: Path, field: str) -> None:
    def say(number: int, cut: MonoCut) -> list[dict[str, Any]]:
        name = classes_of(number)
        others = {"speaker": f"speaker {number}", "text": "a long text"}
        custom = {"label": LABELS.index(name) if field == "number" else name}
        return [others | ({"custom": custom} if field in ("label", "number") else {field: name})]

    data = write_manifest(tmp_path, say)
    model = speech_model(
        tmp_path / "model", "ForSequenceClassification", {"id2label": dict(enumerate(LABELS))}, "WavLM"
    )
    balance(model, tmp_path)
    result = own_head(tmp_path, data)
    said = [LABELS[logits_V.argmax()] for logits_V in theirs(model, tmp_path).values()]
    right = [classes_of(number) for number in range(12)]
    assert len(set(said)) > 3
    assert value(result, "accuracy") == pytest.approx(100 * accuracy_score(right, said))
    assert value(result, "f1") == pytest.approx(100 * f1_score(right, said, average="macro"))
    assert rows(tmp_path)[1:] == [
        [f"utt{number:02}", *pair] for number, pair in enumerate(zip(right, said, strict=True))
    ]
    single = f1_score(right, said, average=None, labels=LABELS, zero_division=0)
    for label, score in zip(LABELS, single, strict=True):
        if label in {*right, *said}:
            assert result["model"]["by_label"][label] == {"f1": pytest.approx(100 * score), "items": right.count(label)}


def test_f1_and_accuracy_of_many_labels_are_those_of_scikit_learn(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    right_NV = generator.random((12, 5)) < 0.4
    right_NV[3] = False

    def say(number: int, cut: MonoCut) -> list[dict[str, Any]]:
        names = [LABELS[label] for label in np.flatnonzero(right_NV[number])]
        if number % 2 and names:  # one by one, in supervisions of their own
            return [{"custom": {"label": name}} for name in names]
        return [{"custom": {"label": names}}]

    data = write_manifest(tmp_path, say)
    values = {"id2label": dict(enumerate(LABELS)), "problem_type": "multi_label_classification"}
    model = speech_model(tmp_path / "model", "ForSequenceClassification", values)
    balance(model, tmp_path)
    result = own_head(tmp_path, data)
    said_NV = np.stack(list(theirs(model, tmp_path).values())) > 0
    assert value(result, "accuracy") == pytest.approx(100 * (said_NV == right_NV).mean())
    assert value(result, "f1") == pytest.approx(100 * f1_score(right_NV, said_NV, average="macro", zero_division=0))
    for label, right_N, said_N in zip(LABELS, right_NV.T, said_NV.T, strict=True):
        one = result["model"]["by_label"][label]
        assert one["f1"] == pytest.approx(100 * f1_score(right_N, said_N, zero_division=0))
        assert one["accuracy"] == pytest.approx(100 * accuracy_score(right_N, said_N))


def test_error_and_concordance_of_numbers(tmp_path: Path) -> None:
    """Two outputs, given by name; the formulas once more, and far from zero."""
    right_NV = np.random.default_rng(6).normal(1e4, 1.0, (12, 2))

    def say(number: int, cut: MonoCut) -> list[dict[str, Any]]:
        return [{"custom": {"label": {"valence": right_NV[number, 1], "arousal": right_NV[number, 0]}}}]

    data = write_manifest(tmp_path, say)
    values = {"id2label": {0: "arousal", 1: "valence"}, "num_labels": 2, "problem_type": "regression"}
    model = speech_model(tmp_path / "model", "ForSequenceClassification", values)
    balance(model, tmp_path)
    with torch.no_grad():
        model.classifier.bias.add_(1e4)
    model.save_pretrained(tmp_path / "model")
    result = own_head(tmp_path, data)
    said_NV = np.stack(list(theirs(model, tmp_path).values())).astype(np.float64)
    assert value(result, "mae") == pytest.approx(np.abs(said_NV - right_NV).mean(), rel=1e-5)
    found = []
    for x, y in zip(right_NV.T, said_NV.T, strict=True):
        (xx, xy), (_, yy) = np.cov(x, y, ddof=0)
        found.append(2 * xy / (xx + yy + (x.mean() - y.mean()) ** 2))
    assert value(result, "ccc") == pytest.approx(np.mean(found), rel=1e-3)
    assert result["model"]["by_label"]["valence"]["ccc"] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("many", [False, True])
def test_f1_of_frames_is_that_of_scikit_learn(tmp_path: Path, many: bool) -> None:
    names = LABELS[:3]
    turns = [
        [(0.0, 0.2, 0), (0.2, 0.32, 1), (0.34, 9.0, 2)],
        [(0.1, 0.3, 2)],
        [(0.06, 0.2, 1)] + [(0.1, 0.3, 0)] * many,
    ]

    def say(number: int, cut: MonoCut) -> list[dict[str, Any]]:
        return [
            {"start": start, "duration": min(end, cut.duration) - start, "speaker": names[label]}
            for start, end, label in turns[number % 3]
        ]

    data = write_manifest(tmp_path, say)
    problem = "multi_label_classification" if many else "single_label_classification"
    values = {"id2label": dict(enumerate(names)), "problem_type": problem}
    model = speech_model(tmp_path / "model", "ForAudioFrameClassification", values, "UniSpeechSat")
    balance(model, tmp_path)
    result = own_head(tmp_path, data)
    right, said = [], []
    for number, logits_TV in enumerate(theirs(model, tmp_path).values()):
        # A frame is what its middle is, 320 samples from one to the next.
        middles_T = 0.02 * (np.arange(len(logits_TV)) + 0.5)
        inside_TV = np.zeros(logits_TV.shape, bool)
        for start, end, label in turns[number % 3]:
            inside_TV[(start <= middles_T) & (middles_T < min(end, SECONDS[number])), label] = True
        known_T = np.ones(len(logits_TV), bool) if many else inside_TV.any(1)
        right.append(inside_TV[known_T] if many else inside_TV[known_T].argmax(1))
        said.append(logits_TV[known_T] > 0 if many else logits_TV[known_T].argmax(1))
    right_, said_ = np.concatenate(right), np.concatenate(said)
    assert value(result, "f1") == pytest.approx(100 * f1_score(right_, said_, average="macro", zero_division=0))
    assert value(result, "accuracy") == pytest.approx(100 * (right_ == said_).mean())
    table = rows(tmp_path)
    assert sum(int(row[1]) for row in table[1:]) == len(right_)
    assert sum(int(row[2]) for row in table[1:]) == (right_ != said_).sum()


def test_the_equal_error_rate_of_embeddings_is_that_of_all_pairs(tmp_path: Path) -> None:
    speakers = [number % 4 for number in range(12)]
    data = write_manifest(tmp_path, lambda number, cut: [{"speaker": f"s{speakers[number]}"}])
    model = speech_model(tmp_path / "model", "ForXVector", {}, "WavLM")
    result = own_head(tmp_path, data)
    x_ND = np.stack(list(theirs(model, tmp_path, "embeddings").values()))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    pairs = [(one, other) for one in range(12) for other in range(one + 1, 12)]
    same = [speakers[one] == speakers[other] for one, other in pairs]
    alarms, hits, _ = roc_curve(same, [x_ND[one] @ x_ND[other] for one, other in pairs], drop_intermediate=False)
    dense = np.linspace(0, 1, 100_001)
    wanted = 100 * dense[np.argmin(np.abs(1 - np.interp(dense, alarms, hits) - dense))]
    assert value(result, "eer") == pytest.approx(wanted, abs=0.01)
    assert result["items"] == {"utterances": 12, "speakers": 4, "target trials": 12, "other trials": 54}
    assert result["bootstrap"]["of"] == "speakers"
    assert len(rows(tmp_path)) == 67


def test_pairs_are_drawn_without_repetition_and_up_to_half_are_of_one_speaker() -> None:
    for count, most in ((40, 300), (40, 20), (3, 500), (2, 100)):
        speakers_N = np.random.default_rng(count).integers(0, count, 60)
        pairs_P2 = draw_pairs(speakers_N, most, 1)
        assert len({tuple(sorted(pair)) for pair in pairs_P2.tolist()}) == len(pairs_P2) <= most
        assert (pairs_P2[:, 0] != pairs_P2[:, 1]).all()
        assert pairs_P2.min() >= 0
        assert pairs_P2.max() < 60
        same_P = np.equal(*speakers_N[pairs_P2].T)
        every = sum(n * (n - 1) // 2 for n in np.bincount(speakers_N))
        assert same_P.sum() == min(most // 2, every)
        assert np.array_equal(pairs_P2, draw_pairs(speakers_N, most, 1))
    assert len(draw_pairs(np.arange(60) % 5, 10_000, 1)) == 60 * 59 // 2


def test_intervals_hold_the_truth_as_often_as_they_should() -> None:
    """Of utterances with known error rates: 95 % of the intervals do, give or take what 300 of them can show."""
    generator, holds = np.random.default_rng(7), np.zeros(2)
    for trial in range(300):
        words_N, rates_N = generator.integers(1, 20, 80), generator.beta(2, 8, 80)  # utterances are not alike
        one, two = (
            Sums(
                np.stack([generator.binomial(words_N, rates_N * factor), words_N], 1).astype(float),
                lambda sums_RD, _: {"wer": sums_RD[:, 0] / sums_RD[:, 1]},
            )
            for factor in (1.0, 0.7)
        )
        first, second = (drawn["wer"] for drawn in resampled([one, two], trial))
        alone = estimate(point(one)["wer"], first)
        apart = estimate(point(one)["wer"] - point(two)["wer"], first - second)
        holds += alone.low <= 0.2 <= alone.high, apart.low <= 0.06 <= apart.high
    assert (holds / 300 >= 0.91).all()
    assert (holds / 300 <= 0.985).all()


def test_intervals_of_equal_error_rates_hold_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are Gaussian about Gaussian speakers; speakers are drawn, not utterances, so that theirs count."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    generator, holds, trials = np.random.default_rng(8), 0, 100
    speakers_N = np.repeat(np.arange(30), 3)
    pairs_P2 = draw_pairs(speakers_N, 10**6, 0)
    # Norms of differences are Rayleigh's: deviation √2 within a speaker, √(2 · (1 + 1.5²)) between two.
    radius = np.linspace(0, 20, 200_001)
    misses, alarms = np.exp(-(radius**2) / 4), 1 - np.exp(-(radius**2) / (4 * 3.25))
    truth = 100 * misses[np.argmin(np.abs(misses - alarms))]
    for trial in range(trials):
        x_N2 = 1.5 * generator.standard_normal((30, 2))[speakers_N] + generator.standard_normal((90, 2))
        scores_P = -np.linalg.norm(x_N2[pairs_P2[:, 0]] - x_N2[pairs_P2[:, 1]], axis=1)
        scored = Trials(30, speakers_N[pairs_P2], scores_P)
        found = estimate(point(scored)["eer"], resampled([scored], trial)[0]["eer"])
        holds += found.low <= truth <= found.high
    assert 0.88 <= holds / trials <= 1.0


def test_a_speaker_that_is_drawn_twice_counts_as_two() -> None:
    """The weighted rate is that of the trials written out."""
    generator = np.random.default_rng(9)
    speakers_N, weights_U = np.repeat(np.arange(5), 4), np.array([2.0, 0, 1, 3, 1])
    pairs_P2 = draw_pairs(speakers_N, 10**6, 0)
    scores_P = np.round(generator.standard_normal(len(pairs_P2)), 1)  # with ties
    one, other = speakers_N[pairs_P2].T
    times = np.where(one == other, weights_U[one], weights_U[one] * weights_U[other]).astype(int)
    written = equal_error_rate(np.repeat(one == other, times), np.repeat(scores_P, times))
    assert Trials(5, speakers_N[pairs_P2], scores_P).values(weights_U[None])["eer"][0] == pytest.approx(written)
    assert np.isnan(Trials(5, speakers_N[pairs_P2], scores_P).values(np.eye(5)[:1])["eer"][0])


@pytest.mark.parametrize(
    ("head", "values", "say", "message"),
    [
        ("ForCTC", {}, lambda n, c: [{"speaker": "s"}], r"none of its 12 cuts has a text: give a manifest whose"),
        ("ForCTC", {}, lambda n, c: [{"text": "привет"}], r"none of its text can be written in the vocabulary of "),
        (
            "ForSequenceClassification",
            {"id2label": dict(enumerate(LABELS))},
            lambda n, c: [{"custom": {"label": [*"vwxyz", "no"][n % 6]}}],
            r"5 of its labels \(label\) are none of .*model: 'v', 'w', 'x', …; it has 'no', 'yes', 'maybe', …",
        ),
        (
            "ForSequenceClassification",
            {"id2label": dict(enumerate(LABELS))},
            lambda n, c: [{"text": "anything else"}],
            r"none of its 12 cuts has a label of .* \('no', 'yes', 'maybe', …\): give their supervisions custom",
        ),
        (
            "ForSequenceClassification",
            {"id2label": dict(enumerate(LABELS))},
            lambda n, c: [{"speaker": "no"}, {"speaker": "yes"}],
            r"utt00 has several labels \(no, yes\); the model gives one",
        ),
        (
            "ForSequenceClassification",
            {"num_labels": 1},
            lambda n, c: [{"custom": {"label": "high"}}],
            "utt00: custom.label is 'high'; the model predicts a number",
        ),
        (
            "ForAudioFrameClassification",
            {"id2label": dict(enumerate(LABELS[:3])), "problem_type": "single_label_classification"},
            lambda n, c: [{"speaker": "no", "duration": 0.3}, {"speaker": "yes", "start": 0.1, "duration": 0.2}],
            r"utt00 has two labels at 0.1 s; the model gives one at a time",
        ),
        ("ForXVector", {}, lambda n, c: [{"text": "a"}], "none of its 12 cuts has a speaker"),
        ("ForXVector", {}, lambda n, c: [{"speaker": "a"}], "12 utterances of 1 speakers; an equal error rate needs"),
        ("ForXVector", {}, lambda n, c: [{"speaker": str(n)}], "12 utterances of 12 speakers; an equal error rate"),
        (
            "ForXVector",
            {},
            lambda n, c: [{"speaker": s} for s in "ab"],
            "utt00 has 2 speakers; an embedding describes one",
        ),
    ],
)
def test_data_that_does_not_fit_is_one_line(
    tmp_path: Path, head: str, values: dict[str, Any], say: Say, message: str
) -> None:
    data = write_manifest(tmp_path, say)
    speech_model(tmp_path / "model", head, values, "WavLM" if head == "ForXVector" else "Wav2Vec2")
    with pytest.raises(InputError, match=message) as caught:
        own_head(tmp_path, data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("cuts.jsonl.gz: ")
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_one_line(
    recognition: tuple[Path, Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data, _ = recognition
    model, out = folder / "model", tmp_path / "out"
    build("Hubert", TINY).save_pretrained(tmp_path / "bare")
    speech_model(tmp_path / "classes", "ForSequenceClassification", {})
    (tmp_path / "empty.jsonl").write_text("")
    twice = [cut.with_id("a") for cut in CutSet.from_file(data)]
    with CutSet.open_writer(folder / "twice.jsonl") as writer:
        for cut in twice:
            writer.write(cut)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.tex").write_text("")
    speech_model(tmp_path / "misfit", "ForCTC", {})
    (tmp_path / "misfit/vocab.json").write_text(json.dumps(VOCABULARY | {"Q": 11}))
    speech_model(tmp_path / "wordless", "ForCTC", {})
    for name in ("vocab.json", "tokenizer_config.json"):
        (tmp_path / "wordless" / name).unlink()
    for command, words in (
        (f"{tmp_path / 'bare'} --data {data} --output {out}", "bare: an encoder without a head"),
        (f"{tmp_path / 'misfit'} --data {data} --output {out}", "gives the token 'Q' the number 11; the CTC head has"),
        (
            f"{tmp_path / 'wordless'} --data {data} --output {out}",
            "no vocab.json: the tokens of its CTC head are unknown",
        ),
        (f"{model} --data {tmp_path / 'empty.jsonl'} --output {out}", "empty.jsonl: contains no audio files"),
        (f"{model} --data {folder / 'twice.jsonl'} --output {out}", "two cuts are called a"),
        (f"{model} --data {tmp_path / 'nowhere'} --output {out}", "nowhere: no such file or folder"),
        (f"{model} --data {data}", "not the model of a run: give --output"),
        (f"{model} --data {data} --output {tmp_path / 'taken'}", "not empty and not an evaluation"),
        (f"{model} {tmp_path / 'bare'} --data {data} --output {out}", "own_head takes one model, and 2 are given"),
        (f"{model} --data {data} --output {out} --steps 3", "steps: goes with SUPERB's tasks, not with own_head"),
        (f"{model} --data {data} --output {out} --teacher {tmp_path / 'classes'}", "is not comparable with that of"),
        (f"{model} --data {data} --output {out} --teacher {tmp_path / 'bare'}", "the teacher cannot be evaluated: "),
        (f"{model} --data {data} --output {out} --target_lang fra", "has no adapters for languages"),
        (f"{model} --data {data} --output {out} --device tpu9", "device 'tpu9'"),
    ):
        assert main(["evaluate", "--own-head", *command.split()]) == 2, command
        captured = capsys.readouterr()
        [said] = [one for one in captured.err.strip().splitlines() if one.startswith("skill-speech: ")]
        assert words in said, said
    assert main(["evaluate", str(model), "--data", str(data), "--output", str(out), "--teacher", "none"]) == 2
    assert "teacher: goes with own_head only; leave it out" in capsys.readouterr().err
    assert main(["evaluate", str(model), "--data", str(data)]) == 2
    assert "no folder for the results: give --output" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("option", ["--own-head", "--own_head"])
def test_the_terminal_shows_model_teacher_interval_and_items(
    recognition: tuple[Path, Path, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    folder, data, _ = recognition
    out = str(tmp_path / "out")
    model = str(folder / "model")
    command = ["evaluate", f"mine={model}", option, "--data", str(data), "--output", out, "--teacher", f"big={model}"]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "out/own_head.json").read_text())
    wer = result["model"]["metrics"]["wer"]
    for words in (
        "Own head (speech recognition) on cuts.jsonl.gz",
        "mine",
        "big (teacher)",
        "model − teacher",
        f"{wer['value']:.2f} [{wer['low']:.1f}, {wer['high']:.1f}]",
        "12 utterances",
        "1,000 bootstrap resamples of utterances, seed 0",
        "own_head.json",
        "own_head.tsv",
    ):
        assert words in shown


def test_the_same_call_does_nothing_again_and_another_is_refused_by_name(
    recognition: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data, _ = recognition
    model, out = str(folder / "model"), str(tmp_path / "out")
    first = evaluate([model], str(data), out, own_head=True).result
    with monkeypatch.context() as patch:
        patch.setattr(inference, "_say", None)
        assert evaluate([model], str(data), out, own_head=True).result == first
    for options, words in (({"seed": 3}, r"seed \(was 0, now 3\)"), ({"teacher": model}, r"teacher \(was None, now ")):
        with pytest.raises(InputError, match=rf"made with different settings: {words}"):
            evaluate([model], str(data), out, own_head=True, **options)
    other = write_manifest(folder, lambda n, c: [{"text": "another"}], "other.jsonl.gz")
    with pytest.raises(InputError, match=r"data \(was "):
        evaluate([model], str(other), out, own_head=True)
    (tmp_path / "out/own_head.json").write_text("{}")
    with pytest.raises(InputError, match=r"own_head.json: damaged .*delete it and run evaluate again"):
        evaluate([model], str(data), out, own_head=True)


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("seconds", "started", "environment")}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_loses_nothing(
    recognition: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    folder, data, _ = recognition
    model = str(folder / "model")
    whole = evaluate([model], str(data), str(tmp_path / "whole"), own_head=True)
    say, seen = inference._say, []

    def counting(subject: Any, batch: Any, device: Any) -> list[Any]:
        seen.extend(batch.ids)
        if len(seen) == 3:
            os.kill(os.getpid(), signum)
        return say(subject, batch, device)

    monkeypatch.setattr(inference, "_say", counting)
    monkeypatch.setattr(inference, "similar_lengths", lambda indices, lengths, limit: [[index] for index in indices])
    with pytest.raises(Stopped) as caught:
        evaluate([model], str(data), str(tmp_path / "out"), own_head=True)
    assert caught.value.code == 128 + signum
    assert len(seen) == 3
    assert [path.name[:10] for path in (tmp_path / "out").glob(".*")] == [".own_head-"]
    again = evaluate([model], str(data), str(tmp_path / "out"), own_head=True)
    assert len(seen) == len(set(seen)) == 12
    assert comparable(again.result) == comparable(whole.result)
    assert not list((tmp_path / "out").glob(".*"))
    assert [path.read_text() for path in again.files[1:]] == [path.read_text() for path in whole.files[1:]]


def test_bad_audio_is_counted_and_bounded(
    recognition: tuple[Path, Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _, _ = recognition
    data = write_manifest(tmp_path, say_text)
    (tmp_path / "audio/utt02.flac").unlink()
    with caplog.at_level(logging.WARNING):
        result = evaluate([str(folder / "model")], str(data), str(tmp_path / "o1"), own_head=True, max_bad="10%").result
    assert "skipped " in caplog.text
    assert (result["items"]["utterances"], result["audio"]["read"], result["audio"]["left_out"]) == (11, 12, 1)
    assert (
        "1 with unusable audio"
        in evaluate([str(folder / "model")], str(data), str(tmp_path / "o1"), own_head=True).table.notes[0]
    )
    with pytest.raises(BadAudio, match=r"1 of \d+ cuts cannot be used, more than the 0% that max_bad allows: .*utt02"):
        evaluate([str(folder / "model")], str(data), str(tmp_path / "o2"), own_head=True, max_bad="0%")
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    with pytest.raises(BadAudio, match="utt"):
        evaluate([str(folder / "model")], str(data), str(tmp_path / "o3"), own_head=True, max_bad="100%")


def test_utterances_that_are_too_short_for_the_head_are_bad_audio(tmp_path: Path) -> None:
    data = write_manifest(tmp_path, lambda number, cut: [{"speaker": f"s{number % 2}"}])
    speech_model(tmp_path / "model", "ForXVector", {"tdnn_kernel": [15, 15, 1]}, "WavLM")
    lost = 14 + 2 * 14  # and two frames for a deviation
    result = own_head(tmp_path, data)
    needed = 400 + 320 * (lost + 1)
    short = [number for number, seconds in enumerate(SECONDS) if seconds * SAMPLE_RATE < needed]
    assert short
    assert result["audio"]["kinds"]["too short for the head"]["cuts"] == len(short)
    assert result["items"]["utterances"] == 12 - len(short)
    with pytest.raises(ValueError, match="the speaker embedding needs"):
        load_model(tmp_path / "model")(torch.randn(1, needed - 1))


def test_cuts_without_a_reference_are_counted(
    recognition: tuple[Path, Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _, _ = recognition
    data = write_manifest(tmp_path, lambda number, cut: [{"text": TEXTS[number]}] if number % 2 else [])
    with caplog.at_level(logging.WARNING):
        evaluated = evaluate([str(folder / "model")], str(data), str(tmp_path / "out"), own_head=True)
    assert "6 of 12 cuts have no text: left out" in caplog.text
    assert evaluated.result["items"]["utterances"] == evaluated.result["without_reference"] == 6
    assert "6 cuts without a reference" in evaluated.table.notes[0]


def test_names_in_the_table_of_utterances_are_escaped(recognition: tuple[Path, Path, Any], tmp_path: Path) -> None:
    folder, _, _ = recognition
    data = write_manifest(tmp_path, say_text)
    cuts = [cut.with_id(f"\x1b[2J\t{cut.id}\n\u202e") for cut in CutSet.from_file(data)]
    CutSet.from_cuts(cuts).to_file(data)
    evaluate([str(folder / "model")], str(data), str(tmp_path / "out"), own_head=True)
    table = rows(tmp_path)
    assert {len(row) for row in table} == {3}
    assert table[1][0] == r"\x1b[2J\tutt00\n\u202e"


def test_a_full_disk_is_one_line(
    recognition: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data, _ = recognition
    for name in ("own_head.json", "own_head.tsv"):
        with monkeypatch.context() as patch:
            met = full_at(patch, tmp_path / name)
            with pytest.raises(
                InputError, match="the disk is full: free some space and rerun the same command to resume"
            ):
                evaluate([str(folder / "model")], str(data), str(tmp_path), own_head=True)
        assert met, name
        assert not (tmp_path / "own_head.json").exists()
    evaluate([str(folder / "model")], str(data), str(tmp_path), own_head=True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.distributed
def test_two_processes_find_what_one_does(recognition: tuple[Path, Path, Any], tmp_path: Path) -> None:
    folder, data, _ = recognition
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "skill_speech.cli", "evaluate", str(folder / "model"), "--own_head", "--data", str(data)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*start, *command, "--output", str(tmp_path / "two")], check=True, env=environment)
    one = evaluate([str(folder / "model")], str(data), str(tmp_path / "one"), own_head=True).result
    two = json.loads((tmp_path / "two/own_head.json").read_text())
    assert comparable(two) == json.loads(json.dumps(comparable(one)))
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["lock", "own_head.json", "own_head.tsv"]
