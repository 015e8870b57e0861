"""`skill-speech evaluate` from the command line: results, tables, what is refused, going on where it stopped."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from skill_speech.cli import main
from skill_speech.encoder import Encoder, wavlm_config
from skill_speech.errors import InputError
from skill_speech.evaluation import evaluate, superb
from skill_speech.evaluation.corpora import TASKS
from skill_speech.evaluation.protocol import PROTOCOL, changes_of, known_tasks, task_config
from skill_speech.evaluation.published import COLUMNS, SHOWN, published, published_rows, superb_s
from skill_speech.evaluation.results import RESULT, make_table, write_table
from skill_speech.figures.plots import layer_weight_map
from skill_speech.tables import evaluation_table
from tests import corpora_by_hand
from tests.test_figures import overlapping
from tests.transformers_models import TINY, VARIANTS, build, save

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = {
    "asr": {"hidden_size": 16, "projection_size": 16, "batch_size": 4},
    "sf": {"hidden_size": 16, "projection_size": 16, "batch_size": 4},
    "sd": {"hidden_size": 16, "accumulate": 1},
    "asv": {"projection_size": 16, "pooled_size": 16, "accumulate": 1},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A Transformers model, a native one in a run's folder, and filterbanks."""
    folder = tmp_path_factory.mktemp("models")
    kind, overrides = VARIANTS["hubert-base"]
    save(build(kind, TINY | overrides), folder / "hubert")
    torch.manual_seed(0)
    config = wavlm_config(
        hidden_size=16, depth=2, num_heads=2, units=24, channels=12, positional_kernel=8, positional_groups=2
    )
    Encoder(config).save_pretrained(folder / "run" / "model")
    return {"hubert": str(folder / "hubert"), "run": str(folder / "run" / "model"), "fbank": "fbank"}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """LibriSpeech, Speech Commands and VoxCeleb1 of a few seconds of noise."""
    root = tmp_path_factory.mktemp("corpora")
    corpora_by_hand.librispeech(root)
    corpora_by_hand.speech_commands(root)
    corpora_by_hand.voxceleb(root)
    return root


def run(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def test_three_tasks_from_the_command_line_for_every_kind_of_model(models, corpora, tmp_path, capsys):
    common = ("--tasks", "pr,ks,sid", "--data", corpora, "--output", tmp_path / "out", "--steps", 2)
    assert run(*models.values(), *common, "--learning-rates", "[1e-2,1e-3]") == 0
    for name in models:
        for task, measure in (("pr", "per"), ("ks", "accuracy"), ("sid", "accuracy")):
            result = json.loads((tmp_path / "out" / name / f"{task}.json").read_text())
            assert result["metrics"][measure] >= 0
            assert set(result["learning_rates"]) == {"0.01", "0.001"}
            assert result["settings"]["steps"] == 2
            assert sum(result["layer_weights"]) == pytest.approx(1)
            assert result["seconds"] > 0
        assert (tmp_path / "out" / name / "layer_weights.svg").exists() == (name != "fbank")
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["model"] for row in table["rows"]] == list(models)
    markdown = (tmp_path / "out" / "table.md").read_text()
    shown = capsys.readouterr().out
    for name in ("PR PER ↓", "KS Acc ↑", "SID Acc ↑", *models):
        assert name in markdown
        assert name in shown
    assert "superb_s" not in markdown
    assert "Not the protocol in pr, ks, sid: steps 2" in markdown


def test_what_is_done_is_not_done_again_and_what_is_missing_is(models, corpora, tmp_path, monkeypatch):
    options = {"data": str(corpora), "output": str(tmp_path / "out"), "steps": 1}
    evaluate(["fbank"], tasks="ks", **options)
    path = tmp_path / "out" / "fbank" / "ks.json"
    before, trained = path.read_bytes(), []
    run_task = superb.run_task
    monkeypatch.setattr(superb, "run_task", lambda *a, **k: trained.append(a[1][0].task) or run_task(*a, **k))
    evaluation = evaluate(["fbank"], tasks="ks,sid", **options)
    assert trained == ["sid"]
    assert path.read_bytes() == before
    assert evaluation.results["fbank"].keys() == {"ks", "sid"}
    evaluate([models["run"]], tasks="ks", **options)
    assert trained == ["sid", "ks"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"steps": 2}, "steps"),
        ({"seed": 1}, "seed"),
        ({"learning_rates": [0.5]}, "learning_rates"),
        ({"settings": {"ks": {"audio": {"gain_db": 0.0}}}}, "audio.gain_db"),
    ],
)
def test_other_settings_are_refused_by_name(changed, named, corpora, models, tmp_path):
    options = {"data": str(corpora), "output": str(tmp_path / "out"), "steps": 1, "tasks": "ks"}
    evaluate(["fbank"], **options)
    with pytest.raises(InputError, match=rf"{named} \(was"):
        evaluate(["fbank"], **(options | changed))
    # Nor may another model's row stand beside it that was made in another way.
    with pytest.raises(InputError, match=rf"{named} \(was"):
        evaluate([models["run"]], **(options | changed))


@pytest.mark.parametrize("task", ["ks", "sid"])
def test_a_result_of_code_that_scored_otherwise_is_not_reused(task, corpora, models, tmp_path, monkeypatch):
    options = {"data": str(corpora), "output": str(tmp_path / "out"), "steps": 1, "tasks": task}
    evaluate(["fbank"], **options)
    path = tmp_path / "out" / "fbank" / f"{task}.json"
    result = json.loads(path.read_text())
    del result["settings"]["revision"]  # as it was written before revisions were
    path.write_text(json.dumps(result))
    if task == "ks":  # never changed
        evaluate(["fbank"], **options)
        monkeypatch.setitem(superb.REVISIONS, "ks", 2)
    for model in ("fbank", models["run"]):
        with pytest.raises(InputError, match=rf"{task}.json: .*revision \(was 1, now 2\)"):
            evaluate([model], **options)


def test_other_data_and_another_model_of_the_same_name_are_refused(corpora, models, tmp_path):
    options = {"data": str(corpora), "output": str(tmp_path / "out"), "steps": 1, "tasks": "ks"}
    evaluate(["one=fbank"], **options)
    with pytest.raises(InputError, match="model"):
        evaluate([f"one={models['run']}"], **options)
    other = tmp_path / "other"
    shutil.copytree(corpora, other)
    corpora_by_hand.audio(other / "speech_commands_v0.01" / "yes" / "11111111_nohash_0.wav", 1.0)
    with pytest.raises(InputError, match="data"):
        evaluate(["one=fbank"], **(options | {"data": str(other)}))


def test_without_the_cache_the_result_is_the_same(corpora, models, tmp_path):
    options = {"data": str(corpora), "steps": 3, "tasks": "pr,sid"}
    cached = evaluate([models["run"]], output=str(tmp_path / "cached"), **options).results["run"]
    assert run(models["run"], "--data", corpora, "--output", tmp_path / "bare", "--steps", 3, "--tasks", "pr,sid",
               "--no-cache") == 0  # fmt: skip
    assert not (tmp_path / "bare" / "hidden_states").exists()
    for task, result in cached.items():
        bare = json.loads((tmp_path / "bare" / "run" / f"{task}.json").read_text())
        assert bare["metrics"] == pytest.approx(result["metrics"])
        assert np.array(bare["loss"]) == pytest.approx(np.array(result["loss"]), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fbank", "--tasks", "pr,xyz"], "unknown task xyz"),
        (["fbank", "--tasks", "er"], "er: .* have no IEMOCAP"),
        (["fbank", "--tasks", "ks", "--steps", "0"], "steps is 0"),
        (["fbank", "--tasks", "ks", "--learning-rates", "[0]"], "learning_rates"),
        (["fbank", "--tasks", "ks", "--settings", '{"ks": {"stps": 3}}'], "unknown setting 'stps'"),
        (["fbank", "--tasks", "ks", "--settings", '{"ks": {"steps": "many"}}'], "steps is 'many'"),
        (["fbank", "--tasks", "ks", "--settings", '{"spr": {"steps": 3}}'], "settings for spr"),
        (["no/such/model", "--tasks", "ks"], "no/such/model: no such file"),
        (["fbank", "x=fbank", "fbank", "--tasks", "ks"], "would both be called fbank"),
        (["hidden_states=fbank", "--tasks", "ks"], "choose another name"),
        (["fbank", "--tasks", "ks", "--device", "abacus"], "abacus"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, message, corpora, tmp_path, capsys):
    assert run(*arguments, "--data", corpora, "--output", tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Warning" not in line and line.strip()]
    assert re.search(message, lines[-1])
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize(
    ("task", "break_it", "message"),
    [
        ("asr", lambda root: next(root.glob("LibriSpeech/dev-clean/**/*.flac")).unlink(), r"\.flac.*no such file"),
        (
            "asr",
            lambda root: corpora_by_hand.text(
                root / "LibriSpeech/test-clean/61/1240/61-1240.trans.txt", "61-1240-0000 \n61-1240-0001 ONE\n"
            ),
            r"61-1240\.trans\.txt: line 1: empty transcript",
        ),
        (
            "sid",
            lambda root: corpora_by_hand.text(
                root / "VoxCeleb1/veri_test_class.txt",
                (root / "VoxCeleb1/veri_test_class.txt").read_text().replace("1 id10001", "2 id10001"),
            ),
            r"veri_test_class\.txt: line \d+: the speaker 'id10001' .* unseen in training",
        ),
    ],
)
def test_a_broken_corpus_is_named_with_its_file_and_rule(task, break_it, message, corpora, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(corpora, root)
    break_it(root)
    assert run("fbank", "--tasks", task, "--data", root, "--output", tmp_path / "out", "--steps", 1) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "out").exists()


def test_tasks_without_a_corpus_are_named_and_the_others_run(corpora, tmp_path, caplog):
    root = tmp_path / "root"
    shutil.copytree(corpora / "speech_commands_v0.01", root / "speech_commands_v0.01")
    shutil.copytree(corpora / "speech_commands_test_set_v0.01", root / "speech_commands_test_set_v0.01")
    evaluation = evaluate(["fbank"], str(root), str(tmp_path / "out"), steps=1)
    assert evaluation.results["fbank"].keys() == {"ks"}
    for task in set(TASKS) - {"ks"}:
        assert f"left out, {task}: " in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no corpus of any task"):
        evaluate(["fbank"], str(tmp_path / "empty"), str(tmp_path / "other"))


def test_published_rows_stand_beside_real_results_only(corpora, tmp_path):
    options = {"tasks": "ks", "steps": 1}
    real = evaluate(["fbank"], str(corpora), str(tmp_path / "real"), compare="published", **options)
    assert [row.model for row in real.table.rows] == ["fbank", *SHOWN]
    markdown = (tmp_path / "real" / "table.md").read_text()
    assert "| DPHuBERT [1] | 23.6M | 96.36 |" in markdown
    assert all(source in markdown for source in {row["source"] for row in published_rows()})
    assert markdown.startswith("# SUPERB, with settings other than its protocol")
    root = tmp_path / "root"
    shutil.copytree(corpora, root)
    (root / "SYNTHETIC.json").write_text('{"title": "made of noise"}')
    synthetic = evaluate(["fbank"], str(root), str(tmp_path / "synthetic"), **options)
    assert synthetic.table.title == "SYNTHETIC, not SUPERB: made of noise"
    assert "no number here can be compared" in (tmp_path / "synthetic" / "table.md").read_text()
    with pytest.raises(InputError, match="published results are not comparable"):
        evaluate(["fbank"], str(root), str(tmp_path / "synthetic"), compare="published", **options)
    with pytest.raises(InputError, match="holds results of other data"):
        evaluate(["fbank"], str(corpora), str(tmp_path / "synthetic"), **options)


def test_superb_s_reproduces_every_published_score():
    compared = 0
    for row in published()["rows"]:
        score = superb_s({name: value for name, value in row.items() if name not in ("model", "params", "source")})
        if "superb_s" in row:
            assert score == pytest.approx(row["superb_s"], abs=1)  # of inputs with two decimals
            compared += 1
    assert compared == 11
    assert superb_s(published()["superb_s"]["reference"]) == pytest.approx(1000)
    assert superb_s({"KS": 90.0}) is None


def result(task: str, metrics: dict[str, float], synthetic: str = "", **more: object) -> dict:
    return {
        "kind": RESULT, "task": task, "metrics": metrics, "parameters": 23_590_000, "synthetic": synthetic,
        "not_the_protocol": {}, **more,
    }  # fmt: skip


def test_a_complete_table_has_the_score(tmp_path):
    dphubert = next(row for row in published()["rows"] if row["model"] == "DPHuBERT")
    tasks: dict[str, dict] = {}
    for column in COLUMNS:
        tasks.setdefault(column.task, result(column.task, {}))["metrics"][column.measure] = dphubert[column.name]
    table = make_table({"student": tasks}, "published")
    assert table.rows[0].superb_s == pytest.approx(866, abs=1)
    assert table.title == "SUPERB"
    write_table(tmp_path, table)
    ours, *_ = (line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| student"))
    theirs = next(line for line in (tmp_path / "table.md").read_text().splitlines() if "| DPHuBERT" in line)
    assert ours.split("|")[2:] == theirs.split("|")[2:]
    assert "ARMHuBERT" in (tmp_path / "table.md").read_text()
    synthetic = make_table({"student": {task: one | {"synthetic": "x"} for task, one in tasks.items()}}, None)
    assert synthetic.rows[0].superb_s is None


@pytest.mark.parametrize("models", [1, 8])
def test_the_table_on_the_terminal_shows_every_cell(models):
    results = {f"m{n}": {"ks": result("ks", {"accuracy": 90.0 + n})} for n in range(models)}
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evaluation_table(make_table(results, None)))
    text = console.export_text()
    assert all(f"m{n}" in text and f"{90 + n}.00" in text for n in range(models))


@pytest.mark.parametrize("states", [4, 13, 25])
def test_the_map_of_layer_weights_shows_tasks_and_layers(states):
    rng = np.random.default_rng(0)
    weights = {task: list(rng.dirichlet(np.ones(states))) for task in TASKS}
    figure = layer_weight_map("a model", weights, "A title", "a subtitle")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [task.upper() for task in TASKS]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["input", *map(str, range(1, states))][:: 1 if states <= 16 else 2]
    state = int(np.argmax(weights["qbe"]))
    name = f"h_{state}" if state else "the first layer's input"
    best = next(text for text in axes.texts if text.get_text() == "best")
    assert best.get_position()[1] == TASKS.index("qbe")
    assert abs(best.get_position()[0] - state) < 1
    words = [patch.get_gid() for patch in axes.patches if patch.contains_point(axes.transData.transform((state, 3)))]
    assert len(axes.patches) == states * len(TASKS)
    assert f"PR, h_1: weight {weights['pr'][1]:.3f}" in [patch.get_gid() for patch in axes.patches]
    assert [word for word in words if word.startswith("QBE")] == [f"QBE, {name}: the one state it reads"]
    assert overlapping(figure) == []


def test_settings_change_the_protocol_and_are_named():
    assert known_tasks("sf, PR") == ["pr", "sf"]
    config = task_config("asr", steps=100, settings={"spec_augment": {"time_warp": 0}, "hidden_size": 8})
    assert (config.steps, config.eval_every, config.hidden_size, config.spec_augment.time_warp) == (100, 10, 8, 0)
    assert config.spec_augment.time_masks == 2
    assert changes_of("asr", config).keys() == {"steps", "eval_every", "hidden_size", "spec_augment"}
    assert task_config("asr", settings={"spec_augment": None}).spec_augment is None
    for task, config in PROTOCOL.items():
        assert task_config(task) == config


def test_the_documentation_shows_the_protocol():
    """docs/superb-protocol.md says every number of the protocol, in the table of its task's kind."""
    page = (Path(__file__).parents[1] / "docs" / "superb-protocol.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
        for cells in (line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `"))
    }
    for field in ("steps", "batch_size", "accumulate", "clip", "optimizer", "eval_every"):
        for task, shown in zip((task for task in TASKS if task != "qbe"), rows[field], strict=False):
            value = getattr(PROTOCOL[task], field)
            shown = shown.split(" (")[0].replace(",", "")  # without the number of its note
            assert shown == (value if isinstance(value, str) else f"{value:.0f}"), (field, task)
    for task, shown in zip((task for task in TASKS if task != "qbe"), rows["learning_rates"], strict=False):
        assert float(shown) == PROTOCOL[task].learning_rates[0]


@pytest.mark.slow
def test_every_task_runs_from_raw_audio_to_its_metric_for_every_kind_of_model(models, synthetic_corpora, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps({"settings": FAST}))
    common = ("--data", synthetic_corpora, "--output", tmp_path / "out", "--steps", 3, "--config", settings)
    assert run(*models.values(), *common) == 0
    for name in models:
        for column in COLUMNS:
            values = json.loads((tmp_path / "out" / name / f"{column.task}.json").read_text())
            assert 0 <= values["metrics"][column.measure] < 1000
            assert values["synthetic"]
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert markdown.startswith("# SYNTHETIC, not SUPERB: ")
    assert all(column.title in markdown for column in COLUMNS)
    assert asdict(PROTOCOL["qbe"])["distances"]
