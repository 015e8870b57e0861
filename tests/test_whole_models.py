"""A fine-tuned model is compressed whole: its outputs are distilled, its head and its files are kept."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from safetensors.torch import load_file

from skill_speech import InputError, compress, load_encoder, load_model
from skill_speech.compression import AnalysisConfig
from skill_speech.distillation import HeadTraining, OutputLoss, Stage1Config, Stage2Config
from skill_speech.distillation.outputs import distance, labeled_loss
from skill_speech.encoder import hubert_config
from skill_speech.heads import HeadConfig, HeadOutput, TDNNConfig, make_head
from tests.transformers_models import LARGE_STYLE, TINY, build

VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4} | {one: 5 + at for at, one in enumerate("abcdefgh")}
TEACHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wavlm-ctc": ("WavLM", "ForCTC", {"vocab_size": 13, "num_buckets": 32, "max_bucket_distance": 40}),
    "xlsr-ctc": ("Wav2Vec2", "ForCTC", LARGE_STYLE | {"vocab_size": 13, "adapter_attn_dim": 8}),
    "adapted-ctc": ("Wav2Vec2", "ForCTC", {"vocab_size": 13, "add_adapter": True, "num_adapter_layers": 1}),
    "hubert-keywords": (
        "Hubert",
        "ForSequenceClassification",
        {"id2label": {0: "no", 1: "yes", 2: "up"}, "use_weighted_layer_sum": True, "classifier_proj_size": 20},
    ),
    "wavlm-speakers": (
        "WavLM",
        "ForXVector",
        {"num_labels": 4, "tdnn_dim": [20, 20], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1]}
        | {"xvector_output_dim": 18, "num_buckets": 32, "max_bucket_distance": 40},
    ),
    "wavlm-diarization": ("WavLM", "ForAudioFrameClassification", {"num_labels": 2}),
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, (kind, head, values) in TEACHERS.items():
        folder = folders[name] = tmp_path_factory.mktemp("teachers") / name
        build(kind, TINY | values, head).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
        if head == "ForCTC":
            (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
            transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with transcripts, labels and speakers."""
    folder, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    cuts = []
    for number in range(30):
        samples = int(rng.integers(32_000, 48_000))
        path = folder / f"{number:02}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(samples), 16_000)
        said = SupervisionSegment(
            id=f"s{number}",
            recording_id=f"{number:02}",
            start=0,
            duration=samples / 16_000,
            text="Abba cafe, head!" if number % 3 else None,
            speaker=f"speaker{number % 4}",
            custom={"label": ("no", "yes", "other")[number % 3]},
        )
        recording = Recording.from_file(path, recording_id=f"{number:02}")
        cuts.append(MonoCut(f"{number:02}", 0, recording.duration, 0, [said], recording=recording))
    CutSet(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def settings(**more: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"warmup_steps": 1, "batch_seconds": 6}
    return {
        "method": "dphubert" if more.pop("published", False) else "skill",
        "clusters": 2,
        "sparsity": 0.5,
        "analysis": AnalysisConfig(calibration_seconds=12, batch_seconds=6, batch_frames=64),
        "stage1": Stage1Config(steps=4, sparsity_steps=1, learning_rate=1e-3, **common),
        "stage2": Stage2Config(steps=3, learning_rate=1e-3, **common),
        "validation_seconds": 6.0,
        "checkpoint_every": 1,
    } | more


def rows(run: Path, stage: str) -> list[dict[str, str]]:
    with (run / stage / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", TEACHERS)
def test_a_run_ends_in_a_model_of_the_same_kind(
    name: str, teachers: dict[str, Path], speech: Path, tmp_path: Path
) -> None:
    precision = "float32" if name == "adapted-ctc" else "bf16"
    compress(str(teachers[name]), str(speech), str(tmp_path / "run"), precision=precision, **settings())
    teacher, student = load_model(teachers[name]), load_model(tmp_path / "run/model")
    assert student.head.config == teacher.head.config
    assert student.files == teacher.files
    # The budget is of the whole model, and the outcome says so.
    outcome = json.loads((tmp_path / "run/result.json").read_text())
    assert sum(outcome["student"]["parameters"].values()) == student.num_parameters()
    assert sum(outcome["teacher"]["parameters"].values()) == teacher.num_parameters()
    assert student.num_parameters() <= 0.5 * teacher.num_parameters() + 1
    assert student.num_parameters() >= 0.45 * teacher.num_parameters()
    # Both stages have moved the head, and the log has its distance.
    for weight in ("classifier.weight", "lm_head.weight"):
        if weight in teacher.head.state_dict():
            assert not torch.equal(student.head.state_dict()[weight], teacher.head.state_dict()[weight])
    for stage in ("stage1", "stage2"):
        assert float(rows(tmp_path / "run", stage)[-1]["validation/outputs"]) >= 0
    assert outcome["head"] == {"kind": teacher.head.config.kind, "outputs": teacher.head.config.outputs}
    assert "Distance of the outputs" in (tmp_path / "run/report.html").read_text()
    waveforms_BT = torch.randn(2, 16_000)
    with torch.no_grad():
        assert student(waveforms_BT).logits.shape == teacher(waveforms_BT).logits.shape


def test_a_recognizer_without_vocabulary_is_said_before_it_takes_long(
    teachers: dict[str, Path], speech: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(teachers["adapted-ctc"], tmp_path / "teacher")
    for said in (False, True):
        with pytest.raises(InputError, match="budget out of reach"):
            compress(str(tmp_path / "teacher"), str(speech), str(tmp_path / "run"), **settings() | {"sparsity": 0.9999})
        assert ("no vocab.json there, so the student will write no text" in caplog.text) is said
        (tmp_path / "teacher/vocab.json").unlink(missing_ok=True)


def test_without_its_head_a_teacher_is_the_encoder_it_was(
    teachers: dict[str, Path], speech: Path, tmp_path: Path
) -> None:
    """To the bit: the run of the bare encoder."""
    bare = tmp_path / "bare"
    load_encoder(teachers["wavlm-ctc"]).save_pretrained(bare)
    for name, source, more in (
        ("headless", teachers["wavlm-ctc"], {"head": HeadTraining(keep=False)}),
        ("bare", bare, {}),
    ):
        compress(str(source), str(speech), str(tmp_path / f"run-{name}"), precision="float32", **settings(**more))
    weights = [load_file(tmp_path / f"run-{name}/model/model.safetensors") for name in ("headless", "bare")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert not (tmp_path / "run-headless/model/head.json").exists()


def test_a_stopped_run_resumes_to_the_bit(teachers: dict[str, Path], speech: Path, tmp_path: Path) -> None:
    given = settings(head=HeadTraining(labels=0.5, learning_rate=3e-3), precision="bf16")

    class StoppedError(Exception):
        pass

    def stop_at(stage: str, step: int) -> Any:
        def stop(training: Any) -> None:
            if (training.name, training.state.step) == (stage, step):
                raise StoppedError

        return stop

    compress(str(teachers["wavlm-ctc"]), str(speech), str(tmp_path / "whole"), **given)
    for stop in (stop_at("stage1", 3), stop_at("stage2", 2)):
        with pytest.raises(StoppedError):
            compress(str(teachers["wavlm-ctc"]), str(speech), str(tmp_path / "parts"), **given, on_step=stop)
    compress(str(teachers["wavlm-ctc"]), str(speech), str(tmp_path / "parts"), **given)
    for file in ("model.safetensors", "head.safetensors"):
        one, other = (load_file(tmp_path / name / "model" / file) for name in ("whole", "parts"))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_labels_are_learned_where_there_are_any(teachers: dict[str, Path], speech: Path, tmp_path: Path) -> None:
    for name in ("wavlm-ctc", "hubert-keywords"):
        given = settings(head=HeadTraining(labels=1.0), precision="float32")
        compress(str(teachers[name]), str(speech), str(tmp_path / name), **given)
        losses = [float(row["train/labels"]) for row in rows(tmp_path / name, "stage1") if row["train/labels"]]
        assert losses
        assert min(losses) > 0


def test_labels_that_the_head_does_not_know_are_none(
    teachers: dict[str, Path], speech: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def relabeled(name: str, change: Any) -> str:
        cuts = []
        for cut in CutSet.from_file(speech):
            change(cut.supervisions[0])
            cuts.append(cut)
        CutSet(cuts).to_file(tmp_path / f"{name}.jsonl.gz")
        return str(tmp_path / f"{name}.jsonl.gz")

    def unknown(said: SupervisionSegment) -> None:
        said.custom = {"label": "never"}

    def foreign(said: SupervisionSegment) -> None:
        said.text = "你好"

    given = settings(head=HeadTraining(labels=1.0), absolute_paths=True)
    for teacher, change in (("hubert-keywords", unknown), ("wavlm-ctc", foreign)):
        with pytest.raises(InputError, match="that the head knows in the first"):
            compress(str(teachers[teacher]), relabeled(teacher, change), str(tmp_path / "run"), **given)
        assert not (tmp_path / "run").exists()
    # A label for something else does not hide the speakers, which this head knows by their numbers or names.
    data = relabeled("speakers", lambda said: (unknown(said), setattr(said, "speaker", f"LABEL_{said.id[-1:]}")))
    with caplog.at_level("INFO"):
        compress(str(teachers["wavlm-speakers"]), data, str(tmp_path / "run"), **given, precision="float32")
    assert "have a label (speaker) that the head knows" in caplog.text


def test_a_run_starts_only_from_one_with_such_a_head(teachers: dict[str, Path], speech: Path, tmp_path: Path) -> None:
    for keep in (True, False):
        given = settings(head=HeadTraining(keep=keep), precision="float32")
        compress(str(teachers["wavlm-ctc"]), str(speech), str(tmp_path / f"{keep}"), **given)
        for step in ("stage1", "surgery"):
            other = settings(head=HeadTraining(keep=not keep), start_from=str(tmp_path / f"{keep}" / step))
            with pytest.raises(InputError, match=r"set head\.keep to"):
                compress(str(teachers["wavlm-ctc"]), str(speech), str(tmp_path / "next"), **other)
            assert not (tmp_path / "next").exists()


def test_too_short_for_the_head_counts_for_the_layers_alone(teachers: dict[str, Path]) -> None:
    model = load_model(teachers["wavlm-speakers"])
    loss = OutputLoss(model.head, HeadTraining(labels=1.0), lambda said: [said[0]])
    waveforms_BT, lengths_B = torch.randn(3, 16_000), torch.tensor([16_000, 900, 16_000])
    with torch.no_grad():
        output = model.encoder(waveforms_BT, lengths_B)
        terms = loss(output, output, [(0,), (1,), (2,)])
        assert all(bool(value.isfinite()) for value in terms.values())
        short = model.encoder(waveforms_BT[:, :900])
        assert loss(short, short) == {}
        assert float(loss.weighed({})) == 0


def test_no_label_is_a_label_where_any_number_may_hold() -> None:
    config = HeadConfig("sequence", 3, problem="multi-label")
    head = make_head(config, hubert_config(hidden_size=16, depth=1, num_heads=2, units=8, channels=8))
    logits = torch.randn(3, 3)
    found = labeled_loss(HeadOutput(logits), [[0, 2], [], None], head)
    wanted = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert found.item() == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(logits[:2], wanted).item(), rel=1e-6
    )


def test_short_keywords_are_learned_from_when_they_may_be(teachers: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        (tmp_path / "words").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"words/{number}.wav", 0.1 * rng.standard_normal(16_000), 16_000)
    given = settings(method="dphubert", control="exact") | {"validation_seconds": 0.0}
    where = str(teachers["hubert-keywords"]), str(tmp_path / "words"), str(tmp_path / "run")
    with pytest.raises(InputError, match="give more data or lower min_seconds"):
        compress(*where, **given)
    assert not (tmp_path / "run").exists()
    assert compress(*where, **given, min_seconds=0.5).student.total_parameters


def test_labels_that_cannot_be_had_are_refused(teachers: dict[str, Path], speech: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent.jsonl.gz"
    CutSet(cut.drop_supervisions() for cut in CutSet.from_file(speech)).to_file(silent)
    given = settings(head=HeadTraining(labels=1.0), absolute_paths=True)
    bare = tmp_path / "bare"
    load_encoder(teachers["wavlm-ctc"]).save_pretrained(bare)
    cases = (
        (teachers["wavlm-ctc"], silent, "no supervision with a text that the head knows"),
        (teachers["hubert-keywords"], silent, "no supervision with a label that the head knows"),
        (bare, speech, "has no head to learn labels with"),
        (teachers["wavlm-diarization"], speech, "labels for frame heads"),
    )
    for teacher, data, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            compress(str(teacher), str(data), str(tmp_path / "run"), **given)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


# The terms, against formulas.


def outputs(kind: str, logits: np.ndarray, lengths: list[int] | None = None) -> HeadOutput:
    as_tensor = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    if kind == "x-vector":
        return HeadOutput(as_tensor, None, as_tensor)
    return HeadOutput(as_tensor, None if lengths is None else torch.tensor(lengths))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distance_of_outputs_is_the_divergence(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher, lengths = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 4)), [5, 3]
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    apart = temperature**2 * (p * np.log(p / q)).sum(-1)
    wanted = (apart[0].sum() + apart[1, :3].sum()) / 8
    found = distance(outputs("ctc", student, lengths), outputs("ctc", teacher), HeadConfig("ctc", 4), temperature)
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    found = distance(
        outputs("sequence", student[0]), outputs("sequence", teacher[0]), HeadConfig("sequence", 4), temperature
    )
    assert found.item() == pytest.approx(apart[0].mean(), rel=1e-12)
    # Any number of labels: each is a question of its own.
    p, q = (1 / (1 + np.exp(-x / temperature)) for x in (teacher, student))
    apart = temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1)
    config = HeadConfig("frame", 4, problem="multi-label")
    found = distance(outputs("frame", student, lengths), outputs("frame", teacher), config, temperature)
    assert found.item() == pytest.approx((apart[0].sum() + apart[1, :3].sum()) / 8, rel=1e-9)


def test_numbers_and_embeddings_have_distances_of_their_own() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    number = HeadConfig("sequence", 4, problem="regression")
    found = distance(outputs("sequence", student), outputs("sequence", teacher), number)
    assert found.item() == pytest.approx(((student - teacher) ** 2).mean())
    speaker = HeadConfig("x-vector", 4, tdnn=(TDNNConfig(3, 1, 1),))
    cosines = (student * teacher).sum(-1) / np.linalg.norm(student, axis=-1) / np.linalg.norm(teacher, axis=-1)
    found = distance(outputs("x-vector", student), outputs("x-vector", teacher), speaker)
    assert found.item() == pytest.approx(1 - cosines.mean())
    turned = outputs("x-vector", student)._replace(embeddings_BD=torch.tensor(teacher))  # half of it is right
    assert distance(turned, outputs("x-vector", teacher), speaker).item() == pytest.approx((1 - cosines.mean()) / 2)


def test_gradients_are_finite_differences() -> None:
    rng = np.random.default_rng(0)
    teacher = outputs("ctc", rng.normal(size=(1, 3, 4)))
    values = rng.normal(size=(1, 3, 4))
    student = outputs("ctc", values)
    distance(student, teacher, HeadConfig("ctc", 4), 2.0).backward()
    for place in ((0, 0, 0), (0, 2, 3)):
        moved = []
        for sign in (1, -1):
            shifted = values.copy()
            shifted[place] += sign * 1e-6
            moved.append(distance(outputs("ctc", shifted), teacher, HeadConfig("ctc", 4), 2.0).item())
        assert student.logits.grad[place].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-5)


def test_labels_losses_are_those_of_transformers(tmp_path: Path) -> None:
    waveforms_BT, lengths_B = torch.randn(3, 16_000), torch.tensor([16_000, 12_000, 16_000])
    waveforms_BT[1, 12_000:] = 0
    mask = (torch.arange(16_000) < lengths_B[:, None]).long()
    theirs = build("Hubert", TINY | {"vocab_size": 13, "ctc_loss_reduction": "mean"}, "ForCTC")
    theirs.save_pretrained(tmp_path / "ctc")
    model = load_model(tmp_path / "ctc")
    labels = torch.tensor([[5, 6, 6], [7, -100, -100], [8, 9, -100]])
    with torch.no_grad():
        wanted = theirs(waveforms_BT, attention_mask=mask, labels=labels).loss
        found = labeled_loss(model(waveforms_BT, lengths_B), [[5, 6, 6], [7], [8, 9]], model.head)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
        # An utterance without a label is left out.
        alone = labeled_loss(model(waveforms_BT, lengths_B), [[5, 6, 6], [], []], model.head)
        first = theirs(waveforms_BT[:1], labels=labels[:1]).loss
        assert alone.item() == pytest.approx(first.item(), rel=1e-4)
        assert labeled_loss(model(waveforms_BT), [[], [], []], model.head) is None
    theirs = build("WavLM", TINY | TEACHERS["wavlm-speakers"][2], "ForXVector")
    theirs.save_pretrained(tmp_path / "speakers")
    model = load_model(tmp_path / "speakers")
    with torch.no_grad():
        wanted = theirs(waveforms_BT, labels=torch.tensor([0, 3, 2])).loss
        found = labeled_loss(model(waveforms_BT), [[0], [3], [2]], model.head)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_students_head_begins_as_the_teachers_and_learns_alone(teachers: dict[str, Path]) -> None:
    model = load_model(teachers["wavlm-ctc"])
    loss = OutputLoss(model.head, HeadTraining())
    output = model.encoder(torch.randn(2, 8_000))
    terms = loss(output, output)
    assert terms["outputs"].item() == pytest.approx(0, abs=1e-6)
    assert {name for name, _ in loss.named_parameters()} == {f"head.{name}" for name in model.head.state_dict()}
    assert not any(weight.requires_grad for weight in loss._teacher[0].parameters())


@pytest.mark.parametrize("name", TEACHERS)
def test_macs_of_a_head_are_counted(name: str, teachers: dict[str, Path]) -> None:
    """Against torch's own count of what runs."""
    from torch.utils.flop_counter import FlopCounterMode

    model = load_model(teachers[name])
    with torch.no_grad():
        output = model.encoder(torch.randn(1, 32_000))
        with FlopCounterMode(display=False) as counter:
            model.head(output)
    counted = model.head.macs(output.lengths_B[0].item())
    assert counted == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
    assert model.head.num_parameters() == sum(weight.numel() for weight in model.head.parameters())
    assert math.isfinite(counted)
    assert make_head(model.head.config, model.encoder.config).num_parameters() == model.head.num_parameters()
