"""Training from the cache is training without it, together is alone, and interrupted is not."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from skill_speech.encoder import Encoder, hubert_config
from skill_speech.evaluation import training
from skill_speech.evaluation.cache import StateCache
from skill_speech.evaluation.corpora import TaskData
from skill_speech.evaluation.corpora.utterances import make_cuts
from skill_speech.evaluation.heads import Downstream
from skill_speech.evaluation.metrics.bootstrap import point
from skill_speech.evaluation.protocol import PROTOCOL, TrainingConfig, task_config
from skill_speech.evaluation.run import hidden_states, run_task
from skill_speech.evaluation.tasks import TRAINED_TASKS, Task, make_task
from skill_speech.evaluation.training import choose, predict, train
from skill_speech.evaluation.upstream import open_upstream
from skill_speech.evaluation.vocabulary import BLANK, END
from tests.evaluation_data import SIZES, Tones

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "pr": {"projection_size": 16},
    "asr": {"projection_size": 16, "hidden_size": 8, "batch_size": 4},
    "sf": {"projection_size": 16, "hidden_size": 8, "batch_size": 4},
    "ks": {"projection_size": 16},
    "sid": {"projection_size": 16, "crop_seconds": 1},
    "asv": {"projection_size": 16, "pooled_size": 20, "crop_seconds": 0.7, "accumulate": 1},
    "sd": {"hidden_size": 16, "accumulate": 1, "chunk_frames": 60},
    "er": {"projection_size": 16, "accumulate": 2},
    "ic": {"projection_size": 16},
}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = hubert_config(
        hidden_size=24, depth=2, num_heads=2, units=32, channels=16, positional_kernel=8, positional_groups=2
    )
    Encoder(config).save_pretrained(folder / "tiny")
    return open_upstream(str(folder / "tiny"), torch.device("cpu"))


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return Tones(tmp_path_factory.mktemp("tones"))


def small_task(task: str, tones: Tones, hop: int = 320, **changes) -> Task:
    settings = SMALL[task] | {"steps": 6, "eval_every": 3, "learning_rates": (1e-2,)} | changes
    config = task_config(task, settings=settings)
    assert isinstance(config, TrainingConfig)
    return make_task(tones.data(task)[0], config, hop)


def weights(trial: training.Trial) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in trial.model.parameters()])


@pytest.mark.parametrize("name", TRAINED_TASKS)
def test_training_from_the_cache_has_the_loss_curve_of_training_without(name, upstream, tones, tmp_path):
    task = small_task(name, tones)
    cached = hidden_states(upstream, task, StateCache(tmp_path, upstream.fingerprint, 1e9))
    for split, states in cached.items():
        states.fill(split)
    (one,) = train(task, cached, seed=1)
    (other,) = train(task, hidden_states(upstream, task, None), seed=1)
    assert len(one.losses) == 6
    assert one.losses == pytest.approx(other.losses, rel=1e-4)
    assert one.scores.keys() == other.scores.keys() == {3, 6}
    assert one.best_score == pytest.approx(other.best_score, abs=0.1)


def test_learning_rates_in_one_pass_are_as_each_alone(upstream, tones):
    rates = (1e-2, 1e-3)
    together = train_with(upstream, small_task("asr", tones, learning_rates=rates))
    for rate, trial in zip(rates, together, strict=True):
        (alone,) = train_with(upstream, small_task("asr", tones, learning_rates=(rate,)))
        assert trial.losses == pytest.approx(alone.losses, rel=1e-5)
        torch.testing.assert_close(weights(trial), weights(alone), atol=1e-5, rtol=1e-4)


def train_with(upstream, task: Task, seed: int = 0, checkpoint: Path | None = None) -> list[training.Trial]:
    return train(task, hidden_states(upstream, task, None), seed=seed, checkpoint=checkpoint)


@pytest.mark.parametrize(("name", "pause"), [("asr", 600), ("sid", -1)])  # saved at looks, or at every update
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
    name, pause, upstream, tones, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", pause)
    task = small_task(name, tones, learning_rates=(1e-2, 1e-3))
    whole = train_with(upstream, task)
    update, seen = training.update, []

    def interrupted(*arguments):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(None)
        update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_with(upstream, task, checkpoint=tmp_path / "run.ckpt")
    resumed = train_with(upstream, task, checkpoint=tmp_path / "run.ckpt")
    for one, other in zip(whole, resumed, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-6)
        assert one.scores == other.scores
        torch.testing.assert_close(weights(one), weights(other))


def test_a_damaged_checkpoint_starts_the_training_again(upstream, tones, tmp_path, caplog):
    (tmp_path / "run.ckpt").write_bytes(b"no archive")
    task = small_task("ks", tones)
    (one,) = train_with(upstream, task, checkpoint=tmp_path / "run.ckpt")
    assert len(one.losses) == 6
    assert "damaged" in caplog.text


def test_the_seed_decides(upstream, tones):
    task = small_task("pr", tones)
    (one,), (same,), (other,) = (train_with(upstream, task, seed) for seed in (0, 0, 1))
    assert one.losses == same.losses != other.losses


def test_the_checkpoint_and_the_learning_rate_with_the_best_measure_are_kept(upstream, tones, monkeypatch):
    task = small_task("ks", tones, steps=4, eval_every=1, learning_rates=(1e-2, 1e-3))
    scripted = iter([50.0, 40.0, 70.0, 60.0, 70.0, 90.0, 10.0, 80.0])  # by step, and in it by learning rate
    monkeypatch.setattr(task, "score", lambda split, predictions: {"accuracy": next(scripted)})
    snapshots = []
    look = training.look

    def looked(*arguments):
        look(*arguments)
        snapshots.append([{k: v.clone() for k, v in t.model.state_dict().items()} for t in arguments[1]])

    monkeypatch.setattr(training, "look", looked)
    trials = train_with(upstream, task)
    assert [(trial.best_step, trial.best_score) for trial in trials] == [(2, 70.0), (3, 90.0)]
    best = choose(task, trials)
    assert best.learning_rate == 1e-3
    for name, tensor in best.model.state_dict().items():
        torch.testing.assert_close(tensor, snapshots[2][1][name])


@pytest.mark.parametrize(
    ("name", "source", "steps", "measure", "enough"),
    [
        ("pr", "fbank", 200, "per", 50),  # 42 on one processor, below 40 on another
        ("ks", "model", 40, "accuracy", 80),
        ("sid", "model", 40, "accuracy", 99),
        ("ic", "model", 120, "accuracy", 40),  # by chance 12.5
        ("sd", "fbank", 60, "der", 3),
        ("asv", "fbank", 20, "eer", 1),
    ],
)
def test_tones_are_learned(name, source, steps, measure, enough, upstream, tmp_path):
    tones = Tones(tmp_path / "tones", sizes={"train": 48, "dev": 12, "test": 12})
    settings = SMALL[name] | {"steps": steps, "eval_every": steps // 4, "learning_rates": (3e-2,)}
    config = task_config(name, settings=settings | ({"chunk_frames": 2000} if name == "sd" else {}))
    source = open_upstream("fbank", torch.device("cpu")) if source == "fbank" else upstream
    cache = StateCache(tmp_path / "cache", source.fingerprint, 1e9)
    outcome = run_task(source, tones.data(name), config, cache=cache, scratch=tmp_path / "x-", seed=0)
    value = outcome["metrics"][measure]
    assert value >= enough if measure == "accuracy" else value <= enough
    assert sum(outcome["layer_weights"]) == pytest.approx(1)
    assert not list(tmp_path.glob("x-*"))


@pytest.mark.parametrize("name", TRAINED_TASKS)
def test_intervals_are_those_of_the_measures_that_are_reported(name, upstream, tones):
    """Every unit counted once they are the measures, and one counted twice is as if it were there twice."""
    task = small_task(name, tones)
    states = hidden_states(upstream, task, None)
    best = choose(task, train(task, states, seed=0))
    (predictions,) = predict(task, [best.model], states["test"], "test", lambda *_: None)
    measures = task.score("test", predictions)
    scored = task.scored(predictions, measures)
    assert point(scored) == pytest.approx({measure: measures[measure] for measure in task.headline})
    assert scored.units == task.items().get(task.units, scored.units)
    references = getattr(task, "transcripts", None) or getattr(task, "labels", None)
    if references is not None:
        weights_1U = np.ones((1, scored.units))
        weights_1U[0, 0] = 2
        references["test"] = [references["test"][0], *references["test"]]
        wanted = task.score("test", [predictions[0], *predictions])
        found = {measure: value[0] for measure, value in scored.values(weights_1U).items()}
        assert found == pytest.approx({measure: wanted[measure] for measure in task.headline})


def test_folds_are_averaged_and_an_interrupted_one_is_done_again(upstream, tones, tmp_path, monkeypatch):
    config = task_config("er", settings=SMALL["er"] | {"steps": 4, "eval_every": 2})
    folds = tones.data("er")
    outcome = run_task(upstream, folds, config, cache=None, scratch=tmp_path / "er-", seed=0)
    accuracies = [fold["metrics"]["accuracy"] for fold in outcome["folds"].values()]
    assert outcome["metrics"]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert outcome["folds"].keys() == {"fold1", "fold2"}
    assert outcome["items"] == {"utterances": 12}
    ends = outcome["intervals"]["accuracy"]
    assert ends["low"] <= outcome["metrics"]["accuracy"] <= ends["high"]
    assert outcome["bootstrap"]["of"] == "utterances"


@pytest.mark.parametrize("size", [5, 100])
def test_windows_are_neighbors_in_the_order_of_transcripts(tones, size):
    task = small_task("pr", tones, batch_size=size)
    batches = task.epoch(random.Random(0))
    lengths = [len(target) for target in task.targets]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    assert len(batches) == len(order)
    for batch in batches:
        start = order.index(batch[0])
        assert batch == order[start : start + min(size, len(order))]
    if size < len(order):
        assert batches != task.epoch(random.Random(1))


def test_long_windows_are_halved(tones):
    task = small_task("pr", tones, batch_size=6, long_seconds=0.1)
    assert {len(batch) for batch in task.epoch(random.Random(0))} == {3}


def test_buckets_divide_the_order_of_lengths_and_leave_a_single_one_out(tones):
    task = small_task("asr", tones, batch_size=11)
    durations = [cut.duration for cut in task.cuts["train"]]
    ((batch),) = task.epoch(random.Random(0))
    assert len(batch) == 11
    assert min(durations[index] for index in batch) >= max(
        durations[index] for index in range(len(durations)) if index not in batch
    )


def test_balanced_batches_draw_every_class_equally_often(tones):
    task = small_task("ks", tones, batch_size=10)
    task.labels["train"] = [[0]] * 10 + [[1]] * 2
    drawn = Counter(
        task.labels["train"][index][0]
        for seed in range(300)
        for batch in task.epoch(random.Random(seed))
        for index in batch
    )
    assert drawn[0] / drawn.total() == pytest.approx(0.5, abs=0.05)


def test_dev_accuracy_of_balanced_classes_is_their_mean(tones):
    task = small_task("ks", tones)
    task.labels["dev"] = task.labels["test"] = [[0], [0], [0], [1]]
    predictions = [[0], [0], [0], [0]]
    assert task.score("dev", predictions) == {"accuracy": 50}
    assert task.score("test", predictions) == {"accuracy": 75}


def test_crops_are_as_long_as_asked_and_anywhere(tones):
    task = small_task("asv", tones)
    crops = {task.crop(0, 120, random.Random(seed)) for seed in range(200)}
    assert {end - start for start, end in crops} == {35}  # 0.7 s at 50 frames per second
    assert min(start for start, _ in crops) < 5
    assert max(end for _, end in crops) > 115
    assert task.crop(0, 20, random.Random(0)) == (0, 20)


def test_eight_seconds_of_a_longer_utterance_are_eight_seconds(upstream, tmp_path):
    """Of 8.4 s s3prl trains on 128,000 samples, wherever they begin; kept are means of seconds."""
    tones = Tones(tmp_path)
    waveforms = {"long": np.random.default_rng(0).normal(size=134_400) / 9, "short": np.ones(16_000) / 9}
    said = [tones._utterance(name, samples, custom={"label": name}) for name, samples in waveforms.items()]
    data = TaskData("sid", {"train": make_cuts(said)}, sorted(waveforms))
    config = task_config("sid", settings={"projection_size": 16})
    task = make_task(data, config, 320)
    states = hidden_states(upstream, task, None)
    model = Downstream(upstream.num_states, task.head(upstream.width))
    seconds_LTD = states["train"].get([0])[0]
    assert seconds_LTD.shape[1] == 9  # eight and 0.38: 419 frames
    firsts = set()
    for seed in range(50):
        start, end = task.crop(0, 419 / 50, random.Random(seed))
        crop = partial(task.crop, 0, generator=random.Random(seed))
        (batch,) = training._features([model], states["train"], "train", [0], [crop])
        assert end - start == pytest.approx(8)
        assert float(batch.weights_BT.sum()) == pytest.approx(8)
        assert float(batch.weights_BT[0, 0]) == pytest.approx(1 - start, abs=1e-5)
        firsts.add(round(start, 2))
    assert min(firsts) < 0.03
    assert max(firsts) > 0.35
    (batch,) = training._features(
        [model], states["train"], "train", [1], [partial(task.crop, 1, generator=random.Random(0))]
    )
    assert batch.weights_BT.tolist() == [[pytest.approx(49 / 50)]]  # all of a shorter one


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, 0.5), (1.5, 1.5), (2.0, 2.0), (7.0, 2.28)])
def test_a_crop_may_be_a_part_of_a_second(tones, seconds, expected):
    start, end = small_task("sid", tones, crop_seconds=seconds).crop(0, 2.28, random.Random(1))
    assert end - start == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "slots", "text", "ended"),
    [
        # A mark that would stand at punctuation is not written.
        ("FROM NEW YORK , NOW", "O city city city O", "FROM B-city NEW YORK NOW", True),
        ("GO , NEW YORK NOW", "O city city city O", "GO NEW YORK E-city NOW", True),
        # Punctuation outside parts a slot in two, within it does not.
        ("GO NEW - YORK NOW", "O city O city O", "GO B-city NEW E-city B-city YORK E-city NOW", True),
        ("GO NEW - YORK NOW", "O city city city O", "GO B-city NEW YORK E-city NOW", True),
        # Behind the last word but one stands a space, and nothing says that the sentence is over.
        ("TO YORK .", "O city O", "TO B-city YORK E-city ", False),
        ("TO YORK", "O city", "TO B-city YORK E-city", True),
        # Two spaces: the empty word between them is punctuation too.
        ("TO  YORK", "O city city", "TO YORK E-city", True),
    ],
)
def test_slots_begin_and_end_before_punctuation_is_dropped(words, slots, text, ended, tmp_path):
    """As s3prl's CharacterTextSlotEncoder does it, followed by hand."""
    custom = {"slots": slots.split(" "), "intent": "go"}
    said = Tones(tmp_path)._utterance("said", np.ones(8_000) / 9, text=words, custom=custom)
    data = TaskData("sf", {"train": make_cuts([said])}, extra={"slots": ["city"]})
    task = make_task(data, task_config("sf", settings=SMALL["sf"]), 320)
    assert "".join(task.transcripts["train"][0]) == text
    assert (task.targets[0][-1] == END) == ended
    assert task.vocabulary.decode([n for n in task.targets[0] for n in (n, BLANK)]) == task.transcripts["train"][0]


def test_an_unknown_symbol_is_one_in_the_reference_too(tmp_path):
    """s3prl compares what the numbers of both sides stand for."""
    said = Tones(tmp_path)._utterance("said", np.ones(8_000) / 9, text="CAFÉ NOIR")
    data = TaskData("asr", {"test": make_cuts([said]), "train": make_cuts([said])})
    task = make_task(data, task_config("asr", settings=SMALL["asr"]), 320)
    assert task.score("test", [["C", "A", "F", "<unk>", " ", "N", "O", "I", "R"]]) == {"wer": 0}
    assert task.score("test", [["C", "A", "F", " ", "N", "O", "I", "R"]]) == {"wer": 50}


def test_a_long_recording_is_diarized_in_chunks(upstream, tones):
    task = small_task("sd", tones)
    assert len(task.chunks) == 2 * SIZES["train"]  # 110 frames in chunks of 60
    states = hidden_states(upstream, task, None)
    (trial,) = train(task, states, seed=0)
    (whole,) = predict(task, [trial.model], states["test"], "test")
    assert [len(scores) for scores in whole] == [len(active) for active in task.active["test"]]
    head = trial.model.head.eval()
    features = training.weighted_sums([trial.model], states["test"].get([0]), torch.device("cpu"))[0]
    with torch.no_grad():
        torch.testing.assert_close(whole[0][:60], head(features[:, :60])[0], atol=1e-3, rtol=1e-3)
        # The last frame is repeated for the labels that go on after the features.
        second = torch.cat([features[:, 60:], features[:, -1:]], dim=1)[:, : len(whole[0]) - 60]
        torch.testing.assert_close(whole[0][60:], head(second)[0], atol=1e-3, rtol=1e-3)


def test_frame_labels_follow_the_turns(tones):
    task = small_task("sd", tones)
    active = task.active["train"][0]
    assert active.shape == (110, 2)  # 2.2 s
    assert active[:, 0].nonzero().flatten().tolist() == list(range(75))
    assert active[:, 1].nonzero().flatten().tolist() == list(range(35, 110))


def test_every_protocol_field_is_within_reach_of_settings():
    for task, config in PROTOCOL.items():
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            assert getattr(task_config(task, settings={field.name: value}), field.name) == value
