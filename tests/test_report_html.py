"""The HTML report: the numbers of the run's files, nothing from outside, readable without eyes or a mouse."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from skill_speech import InputError, report
from skill_speech.cli import main
from skill_speech.figures.shapes import CLUSTER_COLORS, readable_on
from skill_speech.quantities import human
from skill_speech.reporting.pictures import lines_picture
from skill_speech.reporting.svg import round_steps
from skill_speech.similarity import cluster_layers
from tests import chromium

LAYERS, HEADS, UNITS, CHANNELS = 5, 4, 96, (24, 16)
KEPT = {
    "channels": [21, 13],
    "heads": [[0, 2], [1], [], [0, 1, 2, 3], [3]],
    "units": [11, 0, 53, 96, 7],
}
NASTY = "<script>alert('x')</script> & \"co\""


def make_run(folder: Path, *, analysis: bool = True, evaluation: bool = True, **changes: Any) -> Path:
    """A run's folder as compress leaves it, with numbers of its own."""
    folder.mkdir(parents=True)
    settings = {
        "teacher": "some/teacher-base",
        "data": "corpus",
        "output": str(folder),
        "method": "skill",
        "clusters": 3,
        "sparsity": 0.75,
        "params": None,
        "macs": None,
        "stage1": {"steps": 40, "accumulate": 1, "student_dropout": True},
        "loss": {"l1": 1.0, "cosine": 1.0, "cosine_form": "raw"},
        "seed": 7,
    } | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    stage = {"steps": 40, "seconds": 61.0, "audio_seconds": 7200.0, "peak_memory": 512 * 2**20}
    result = {
        "teacher": profile("t", [200_100, 50_000, 400_000, 800_000], 0.0625),
        "student": profile("s", [150_000, 50_000, 90_000, 73_211], 0.025),
        "loss_after_surgery": -0.3125,
        "loss": -0.8765,
        "stages": {"stage1": stage, "stage2": stage},
        "widths": {
            "teacher": {
                "channels": list(CHANNELS),
                "heads": [list(range(HEADS))] * LAYERS,
                "units": [UNITS] * LAYERS,
            },
            "student": KEPT,
        },
        "environment": {
            "versions": {"skill-speech": "9.8.7", "python": "3.99.1"},
            "platform": "Plan-9",
            "processor": "Abacus 3, family 1",
            "cpus": 2,
            "threads": 1,
            "accelerator": None,
        },
        "finished": "2031-02-03T04:05:06+0000",
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "status.json").write_text(json.dumps({"finished": True}))
    if analysis:
        (folder / "analysis").mkdir()
        np.save(folder / "analysis/cka.npy", cka())
        clusters = cluster_layers(cka(), 3).to_dict()
        (folder / "analysis/clusters.json").write_text(json.dumps(clusters))
    write_metrics(folder / "stage1/metrics.csv", sparsity=True)
    write_metrics(folder / "stage2/metrics.csv", sparsity=False)
    if evaluation:
        write_evaluation(folder / "evaluation")
    return folder


def profile(model: str, parameters: list[int], factor: float) -> dict[str, Any]:
    names = ("front end", "positional convolution", "attention", "feed-forward")
    return {
        "model": model,
        "parameters": dict(zip(names, parameters, strict=True)),
        "macs": {name: 1234.5 * value for name, value in zip(names, parameters, strict=True)},
        "seconds": 10.0,
        "real_time_factor": factor,
        "threads": 1,
    }


def cka() -> np.ndarray:
    places = np.array([0.0, 3.1, 3.3, 5.9, 6.2, 3.2])  # the last layer is like the second and third: a split cluster
    return np.exp(-np.abs(places[:, None] - places) / 3)


def write_metrics(path: Path, sparsity: bool) -> None:
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        names = ["step", "validation/distillation", "train/distillation", "train/l1"]
        names += ["train/sparsity_expected", "train/sparsity_target"] * sparsity
        rows = csv.DictWriter(file, names)
        rows.writeheader()
        rows.writerow({"step": 0, "validation/distillation": -0.1111})
        for step in range(0, 40, 4):
            row = {"step": step, "train/distillation": -0.2 - step / 100, "train/l1": 0.3}
            if sparsity:
                row |= {"train/sparsity_expected": step / 60, "train/sparsity_target": min(0.75, step / 20)}
            rows.writerow(row)
        rows.writerow({"step": 40, "validation/distillation": -0.7777})


def write_evaluation(folder: Path) -> None:
    rows = [
        {"model": "teacher-base", "parameters": 1_450_100, "scores": {"PR": 5.25, "KS": 96.5}},
        {"model": "mine", "parameters": 363_211, "scores": {"PR": 9.5, "KS": 95.0}},
    ]
    rows = [row | {"superb_s": None, "source": ""} for row in rows]
    (folder / "mine").mkdir(parents=True)
    table = {"title": "SYNTHETIC, not SUPERB", "rows": rows, "notes": ["In percent."]}
    (folder / "table.json").write_text(json.dumps(table))
    for task, weights in (("pr", [0.1, 0.2, 0.3, 0.15, 0.125, 0.125]), ("qbe", [0.0, 0.0, 0.0, 1.0, 0.0, 0.0])):
        values = {"kind": "skill-speech evaluation", "model": "mine", "task": task, "layer_weights": weights}
        values |= {"metrics": {"per": 9.5, "mtwv": 1.5}, "parameters": 363_211, "synthetic": "made", "settings": {}}
        values |= {"not_the_protocol": {}}
        (folder / f"mine/{task}.json").write_text(json.dumps(values))


def write_own_head(folder: Path, data: str = "dev", synthetic: str = "") -> None:
    def scores(wer: float, cer: float) -> dict[str, Any]:
        return {
            name: {"value": value, "low": value - 1.25, "high": value + 1.5}
            for name, value in (("wer", wer), ("cer", cer))
        }

    label = {"f1": 61.5, "items": 7}
    values = {
        "kind": "skill-speech evaluation",
        "head": "ctc",
        "problem": "single-label",
        "data": data,
        "synthetic": synthetic,
        "settings": {"model": "0" * 16},
        "model": {"name": "mine", "parameters": 363_211, "metrics": scores(8.125, 3.5), "by_label": {"yes": label}},
        "teacher": {"name": "teacher-base", "parameters": 1_450_100, "metrics": scores(6.5, 2.75), "by_label": {}},
        "difference": scores(1.625, 0.75),
        "items": {"utterances": 1_234, "words": 9_876},
        "without_reference": 2,
        "hours": 1.75,
        "notes": ["Greedy decoding."],
        "bootstrap": {"resamples": 1_000, "of": "utterances", "seed": 5},
        "audio": {"read": 1_237, "left_out": 3, "empty_in_a_row": 0, "kinds": {}, "converted": {}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own_head.json").write_text(json.dumps(values))


class Page(HTMLParser):
    """Elements, texts and tables of a page; every element is closed in the order in which it was opened."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.titles: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.titles.append(data)
        elif "style" not in self.open:
            self.texts.append(data)
            if self.rows and {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """The cells behind the first one, of the first row that starts so."""
        return next(row[1:] for row in self.rows if row and row[0] == name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def page_of(*runs: Path, output: Path | None = None) -> Page:
    return Page(report([str(run) for run in runs], str(output) if output else None).read_text(encoding="utf-8"))


def test_the_outcome_comes_first_and_is_that_of_the_files(run: Path) -> None:
    page = page_of(run)
    said = " ".join(page.texts)
    student, teacher = 363_211, 1_450_100
    for words in (human(student), human(teacher), f"{student / teacher:.1%}", human(1234.5 * student), "2.5×"):
        assert words in said
    assert "-0.8765" in said
    assert "−0.5640 from -0.3125 to -0.8765 on held-out speech" in " ".join(said.split())
    headings = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert headings == [
        "outcome",
        "own-head",
        "quality",
        "similarity",
        "kept",
        "survivors",
        "training",
        "budget",
        "layer-weights",
        "audio",
        "configuration",
        "environment",
        "next",
    ]


def test_the_own_heads_scores_stand_beside_the_teachers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", evaluation=False)
    assert "This student is an encoder without a head." in page_of(run).texts
    outcome = json.loads((run / "result.json").read_text())
    head = {"head": {"kind": "ctc", "outputs": 32}, "outputs": 0.25, "outputs_after_surgery": 0.5}
    (run / "result.json").write_text(json.dumps(outcome | head))
    assert any("Not measured: there is no RUN/evaluation/own_head.json" in text for text in page_of(run).texts)
    write_own_head(run / "evaluation", data=NASTY, synthetic="tones")
    page = page_of(run)
    assert page.row("WER ↓") == ["8.12 [6.9, 9.6]", "6.50 [5.2, 8.0]", "+1.62 [+0.4, +3.1]"]
    assert page.row("params") == [human(363_211), human(1_450_100), ""]
    said = " ".join(page.texts)
    assert "WER of its own head: 8.12 [6.9, 9.6] on 1,234 synthetic utterances; the teacher: 6.50." in said
    for words in (
        f"SYNTHETIC (tones): Own head (speech recognition) on {NASTY}",
        "1,234 utterances, 9,876 words; 1.75 h; 2 cuts without a reference; 3 with unusable audio.",
        "In percent; in brackets 95 % intervals of 1,000 bootstrap resamples of utterances, seed 5",
        "Greedy decoding.",
    ):
        assert words in said
    assert page.row("yes") == ["7", "61.50", ""]


def test_scores_stand_beside_the_teachers(run: Path) -> None:
    page = page_of(run)
    assert page.row("PR PER ↓") == ["5.25", "9.50", "+4.25"]
    assert page.row("KS Acc ↑") == ["96.50", "95.00", "-1.50"]
    assert ["", "teacher-base (teacher)", "mine (student)", "student − teacher"] in page.rows
    assert "SYNTHETIC, not SUPERB" in page.texts


def test_the_map_the_tree_and_the_clusters_are_those_of_the_analysis(run: Path) -> None:
    page, matrix, clusters = page_of(run), cka(), cluster_layers(cka(), 3)
    for row, column in np.ndindex(matrix.shape):
        assert f"h_{row} and h_{column}: CKA {matrix[row, column]:.3f}" in page.titles
    table = [row[1:] for row in page.rows if len(row) == 7 and re.fullmatch(r"h_\d", row[0])]
    assert table == [[f"{value:.3f}" for value in row] for row in matrix.tolist()]
    for number, group in enumerate(clusters.groups, 1):
        mean, medoid = clusters.mean_cka[number - 1], clusters.medoids[number - 1]
        assert [str(number), ", ".join(f"h_{layer}" for layer in group), f"{mean:.3f}", f"h_{medoid}"] in page.rows
    assert f"cut at {clusters.threshold:.3f}: 3 clusters" in page.titles
    for number, height in enumerate(clusters.linkage[:, 2], 1):
        assert any(title.startswith(f"merge {number} of 5, at 1 − CKA = {height:.3f}") for title in page.titles)
    # A cluster with several runs of layers has dashed borders off the diagonal, in its own color.
    styles = [attributes.get("style") or "" for _, attributes in page.elements]
    dashed = {one for one in CLUSTER_COLORS for style in styles if "dasharray" in style and f"stroke: {one}" in style}
    split = [number for number, group in enumerate(clusters.groups) if group[-1] - group[0] >= len(group)]
    assert dashed == {CLUSTER_COLORS[number] for number in split} != set()


def test_survivors_are_those_of_the_student(run: Path) -> None:
    page = page_of(run)
    for layer, kept in enumerate(KEPT["heads"], 1):
        for head in range(HEADS):
            assert f"layer {layer}, head {head}: {'kept' if head in kept else 'removed'}" in page.titles
    for layer, units in enumerate(KEPT["units"], 1):
        assert f"layer {layer}: {units} of {UNITS} feed-forward units ({units / UNITS:.1%})" in page.titles
        assert [str(layer), str(UNITS), str(units), f"{units / UNITS:.1%}"] in page.rows
    for layer, (had, channels) in enumerate(zip(CHANNELS, KEPT["channels"], strict=True), 1):
        assert f"layer {layer}: {channels} of {had} channels ({channels / had:.1%})" in page.titles


def test_curves_have_every_logged_value(run: Path) -> None:
    page = page_of(run)
    for step in range(0, 40, 4):
        assert f"expected, step {step}: {step / 60:.2%}" in page.titles
        assert f"target, step {step}: {min(0.75, step / 20):.2%}" in page.titles
        assert page.titles.count(f"training, step {step}: {-0.2 - step / 100:.4f}") == 2
    assert page.titles.count("held-out, step 40: -0.7777") == 2
    # 0.6 expected where 0.75 was asked for: the reader is told.
    assert "15.0 points short" in " ".join(page.texts)


def test_budget_weights_settings_and_environment(run: Path) -> None:
    page = page_of(run)
    assert page.row("attention") == ["400,000", "90,000", "22.5%"]
    assert page.row("all")[:2] == ["1,450,100", "363,211"]
    assert "PR, h_2: weight 0.300" in page.titles
    assert "QBE, h_3: the one state it reads" in page.titles
    assert page.row("accumulate") == ["1"]
    assert page.row("student_dropout") == ["true"]
    assert page.row("seed") == ["7"]
    assert page.row("skill-speech") == ["9.8.7"]
    assert page.row("platform") == ["Plan-9"]
    assert page.row("processor") == ["Abacus 3, family 1"]
    assert page.row("finished") == ["2031-02-03T04:05:06+0000"]


def test_nothing_comes_from_outside_and_nothing_runs(run: Path) -> None:
    text = report([str(run)]).read_text(encoding="utf-8")
    for tag, attributes in Page(text).elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "action", "xlink:href")
            assert name != "href" or str(value).startswith("#")
    assert "url(" not in text
    assert "@import" not in text
    assert "://" not in text


def test_every_picture_has_words_and_a_table(run: Path) -> None:
    page = page_of(run)
    pictures = [attributes for tag, attributes in page.elements if tag == "svg" and "aria-hidden" not in attributes]
    assert len(pictures) == 11
    for picture in pictures:
        assert picture["role"] == "img"
        assert len(str(picture["aria-label"])) > 40
    tags = [tag for tag, _ in page.elements]
    assert tags.count("figure") == len(pictures) == tags.count("details")
    headings = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert headings.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(headings))


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / NASTY.replace("/", "_"), teacher=NASTY, method=NASTY, note={NASTY: [NASTY]})
    table = json.loads((run / "evaluation/table.json").read_text())
    table |= {"title": NASTY, "notes": [NASTY]}
    table["rows"][0] |= {"model": NASTY, "source": NASTY}
    (run / "evaluation/table.json").write_text(json.dumps(table))
    weights = {"kind": "skill-speech evaluation", "model": NASTY, "task": NASTY, "layer_weights": [0.5, 0.5]}
    weights |= {"metrics": {}, "parameters": 1, "synthetic": NASTY, "not_the_protocol": {}}
    (run / "evaluation/mine/x.json").write_text(json.dumps(weights))
    result = json.loads((run / "result.json").read_text())
    kinds = {NASTY: {"left_out": True, "cuts": 3, "files": {NASTY: f"{NASTY}: {NASTY}"}}}
    result["audio"] = {NASTY: {"read": 1_234, "left_out": 3, "converted": {"resampled": 5}, "kinds": kinds}}
    result["environment"] = {**result["environment"], "platform": NASTY, "versions": {NASTY: NASTY}}
    (run / "result.json").write_text(json.dumps(result))
    other = make_run(tmp_path / "other")
    for runs in ([run], [run, other]):
        page = page_of(*runs, output=tmp_path / "page.html")
        tags = {tag for tag, _ in page.elements}
        assert "script" not in tags
        assert "<script>alert('x')<" in " ".join(page.texts)


def test_the_same_run_gives_the_same_file(run: Path, tmp_path: Path) -> None:
    first = report([str(run)]).read_bytes()
    assert report([str(run)]).read_bytes() == first
    assert report(str(run), str(tmp_path / "elsewhere/page.html")).read_bytes() == first


def test_what_a_run_does_not_have_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", analysis=False, evaluation=False, method="dphubert")
    result = json.loads((run / "result.json").read_text())
    for name in ("widths", "environment", "finished"):
        del result[name]
    result |= {"loss": None, "loss_after_surgery": None, "stages": {"stage2": result["stages"]["stage2"]}}
    (run / "result.json").write_text(json.dumps(result))
    (run / "stage1/metrics.csv").unlink()
    said = " ".join(page_of(run).texts)
    for words in (
        "The method dphubert does not look at similarity",
        "Not evaluated",
        "no speech was held out",
        "did not record its widths",
        "started after stage 1",
        "started after stage1",
        "the layers that tasks read are unknown",
        "not recorded",
    ):
        assert words in said


def test_several_runs_are_compared_first(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", analysis=False, method="dphubert", seed=8)
    result = json.loads((two / "result.json").read_text()) | {"loss": -0.5}
    (two / "result.json").write_text(json.dumps(result))
    page = page_of(one, two, output=tmp_path / "page.html")
    assert page.row("one") == ["skill", "363k", "25.0%", "448M", "25.0%", "2.5×", "−0.5640 (from -0.3125 to -0.8765)"]
    assert page.row("two")[-1] == "−0.1875 (from -0.3125 to -0.5000)"
    scores = [["student of", "PR PER ↓", "KS Acc ↑"], ["one", "9.50", "95.00"], ["two", "9.50", "95.00"]]
    assert [row for row in page.rows if row in scores] == scores
    said = " ".join(page.texts)
    assert "do not measure the same thing" in said
    differing = [row for row in page.rows if len(row) == 3 and row[0] in ("method", "seed", "sparsity")]
    assert differing[:2] == [["method", "skill", "dphubert"], ["seed", "7", "8"]]
    assert said.index("shares and speed against the teacher") < said.rindex("Layers and their clusters")


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("a/run", "b/run"), ["a/run", "b/run"]),
        (("a/x/run", "a/y/run", "b/x/run", "other"), ["a/x/run", "y/run", "b/x/run", "other"]),
        (("a/run", "a/run"), ["run (1)", "run (2)"]),
    ],
)
def test_runs_of_the_same_name_are_told_apart(places: tuple[str, ...], names: list[str], tmp_path: Path) -> None:
    for place in set(places):
        make_run(tmp_path / place)
    page = page_of(*(tmp_path / place for place in places), output=tmp_path / "page.html")
    outcome = [row[0] for row in page.rows if row[1:3] == ["skill", "363k"]]
    assert outcome == names


def refused(*arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        report(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_named_in_one_line(run: Path, tmp_path: Path) -> None:
    assert "no run to report on" in refused([])
    assert f"{tmp_path}: not a run" in refused([str(tmp_path)])
    (tmp_path / "mine.html").write_text("my own page")
    assert "is not a report" in refused([str(run)], str(tmp_path / "mine.html"))
    assert (tmp_path / "mine.html").read_text() == "my own page"
    assert "--output is a file" in refused([str(run)], str(tmp_path))
    metrics = run / "stage1/metrics.csv"
    metrics.write_text("step,train/l1\n0,many\n")
    assert str(metrics) in refused([str(run)])
    metrics.unlink()
    (run / "evaluation/table.json").write_text('{"title": "x"}')
    assert "table.json: damaged (notes is not there); run evaluate again" in refused([str(run)])
    (run / "result.json").unlink()
    assert "not finished" in refused([str(run)])


def test_the_command_writes_into_the_run_or_where_it_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.strip() == "run/report.html"
    assert main(["report", "run", "run"]) == 0
    assert (tmp_path / "report.html").stat().st_size > (run / "report.html").stat().st_size
    assert main(["report", "run", "--output", "page.html"]) == 0
    assert (tmp_path / "page.html").read_bytes() == (run / "report.html").read_bytes()
    assert main(["report", "nowhere"]) == 2


@pytest.mark.parametrize("bounds", [(0.0, 0.405), (-1.0, -0.31), (3.0, 3.0), (0.0, 0.0), (-2e-9, 5e6)])
def test_an_axis_covers_its_values_in_round_equal_steps(bounds: tuple[float, float]) -> None:
    steps = round_steps(*bounds)
    assert steps[0] <= bounds[0] + 1e-9 * max(map(abs, steps))
    assert steps[-1] >= bounds[1]
    assert 2 <= len(steps) <= 9
    assert np.allclose(np.diff(steps), steps[1] - steps[0])


def test_words_on_colors_are_readable() -> None:
    def luminance(color: str) -> float:
        parts = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    for color in (*CLUSTER_COLORS, "#440154", "#21918c", "#fde725", "#777777"):
        high, low = sorted((luminance(color) + 0.05, luminance(readable_on(color)) + 0.05), reverse=True)
        assert high / low >= 4.5


def test_a_curve_of_one_point_can_be_drawn() -> None:
    from skill_speech.reporting.pictures import Series

    assert "NaN" not in lines_picture("one point", [Series("training", "main", [(0.0, 0.5)])])


CONTRASTS = """(() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const behind = node => { for (; node; node = node.parentElement) {
    const color = parts(getComputedStyle(node).backgroundColor);
    if (color.length < 4 || color[3] > 0) return color; } return [255, 255, 255]; };
  const under = node => {
    node.scrollIntoView({block: "center"});
    const box = node.getBoundingClientRect();
    const fills = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2)
      .filter(one => one.matches(".drawn path")).map(one => getComputedStyle(one).fill);
    return fills.length && fills[0] !== "none" ? parts(fills[0]) : behind(node); };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.closest("title")) continue;
    const style = getComputedStyle(node), svg = node instanceof SVGElement;
    const colors = [parts(svg ? style.fill : style.color), node.closest(".drawn") ? under(node) : behind(node)];
    const [a, b] = colors.map(light);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push(`${node.tagName} ${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return poor;
})()"""


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_chromium_shows_it_without_complaint_or_overflow(tmp_path: Path, width: int, dark: bool) -> None:
    runs = [make_run(tmp_path / "a-run-with-a-name-as-long-as-people-give-them-sparsity-0.75-seed-0"), tmp_path / "two"]
    make_run(runs[1], analysis=False, method="dphubert", data="/a/very/long/path/" + "without-a-space-in-it" * 6)
    for chosen in (runs[:1], runs):
        page = report([str(run) for run in chosen], str(tmp_path / "page.html"))
        seen = chromium.look_at(page, width, dark=dark, evaluate=CONTRASTS)
        assert seen.messages == []
        assert seen.requests == [page.as_uri()]
        assert seen.inner_width == width
        assert seen.scroll_width <= seen.inner_width
        assert seen.found == []
        assert seen.png.startswith(b"\x89PNG")
