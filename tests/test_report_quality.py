"""The report's scores: test items, intervals, what is kept of the teacher, and size against quality."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest

import skill_speech
from skill_speech.evaluation.kept import kept
from skill_speech.evaluation.metrics.bootstrap import Estimate
from skill_speech.evaluation.published import filterbanks, published_rows, reference
from skill_speech.reporting.evidence import read_evidence
from skill_speech.reporting.pictures import KINDS, Spot, spots_picture
from skill_speech.reporting.verdict import next_steps, verdict, warnings
from tests import chromium
from tests.test_kept import evaluated
from tests.test_report_html import Page, make_run, page_of, write_own_head


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", evaluation=False)


def test_scores_have_test_items_intervals_and_the_share_that_is_kept(run: Path) -> None:
    evaluated(run / "evaluation", synthetic="tones")
    page = page_of(run)
    change = ["+7.00", "91 % [88, 92]"]  # (82 - 12) / (82 - 5); the interval is 11 to 14
    assert page.row("PR PER ↓") == ["60", "5.00 [4.0, 7.0]", "12.00 [11.0, 14.0]", "82.00 [81.0, 84.0]", *change]
    assert page.row("KS Acc ↑")[0] == "3,000"
    assert page.row("mean of 2 tasks")[-1].startswith("94 % [")
    said = verdict(read_evidence(run))
    assert "It keeps 94 % [9" in said
    assert "of what the teacher gains over filterbanks, as a mean of 2 tasks (SYNTHETIC, not SUPERB: tones)" in said
    assert "Few test items: PR 60. See the intervals." in warnings(read_evidence(run))
    assert len(next_steps(read_evidence(run))) == 1  # all is scored


def test_without_filterbanks_the_share_is_unknown_and_the_next_step_says_how_to_know_it(run: Path) -> None:
    evaluated(run / "evaluation", synthetic="tones", floor=False)
    made = read_evidence(run)
    assert made.kept is None
    assert "keeps" not in verdict(made)
    assert "fbank" in next_steps(made)[0][1]
    said = " ".join(page_of(run).texts)
    assert "Not drawn: one number for quality needs the scores of teacher, student and filterbanks" in said
    assert "evaluate fbank into the same folder" in said


def test_published_models_are_drawn_beside_the_same_protocol_on_real_data_alone(run: Path, tmp_path: Path) -> None:
    evaluated(run / "evaluation", floor=False)
    page = page_of(run)
    drawn = {title.partition(" [")[0]: title for title in page.titles if ", published: " in title}
    names = ("PR", "KS")
    whole = [row for row in published_rows() if row["params"] and all(name in row for name in names)]
    assert set(drawn) == {row["model"] for row in whole}
    assert len(drawn) > 5
    ends = [{"scores": {name: one["scores"][name] for name in names}} for one in (reference(), filterbanks())]
    hubert = next(row for row in published_rows() if row["model"] == "HuBERT Base")
    found = kept({"scores": {name: hubert[name] for name in names}}, *ends).overall
    assert found is not None
    assert drawn["HuBERT Base"].endswith(f"94.7 M parameters, {1000 * found.value:.0f}")
    assert "arXiv 2305.17651" in " ".join(page.texts)  # where they are from
    assert any(text.startswith("Filterbanks are the published ones: Peng et al.") for text in page.texts)
    # The published filterbanks are the floor of what is kept.
    share = (82.01 - 12.0) / (82.01 - 5.0)
    assert page.row("PR PER ↓")[-1].startswith(f"{100 * share:.0f} %")
    for number, (changes, why) in enumerate(
        (({"synthetic": "tones"}, "synthetic speech"), ({"changed": True}, "not the protocol's in ks, pr"))
    ):
        other = make_run(tmp_path / f"other{number}", evaluation=False)
        evaluated(other / "evaluation", **changes)  # type: ignore[arg-type]
        page = page_of(other)
        assert not [title for title in page.titles if ", published: " in title]
        assert any("Published models are not drawn: " in text and why in text for text in page.texts)


def test_the_chart_has_the_runs_and_their_teacher_once(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", evaluation=False)
    for one in (run, other):
        evaluated(one / "evaluation", synthetic="tones")
    page = page_of(run, other, output=tmp_path / "page.html")
    spots = [title for title in page.titles if re.search(r"M parameters, \d", title)]
    assert sorted(title.partition(":")[0] for title in spots) == ["big, teacher", "other, student", "run, student"]
    assert page.row("big") == ["teacher", "1.45M", "100"]
    assert page.rows[-1] is not None
    heading = next(row for row in page.rows if row[0] == "student of")
    assert heading[-1] == "kept of the teacher"


def test_an_own_head_is_drawn_beside_its_teachers(run: Path) -> None:
    write_own_head(run / "evaluation")
    page = page_of(run)
    assert "student, student: 0.363 M parameters, 8.1 [6.9, 9.6]" in page.titles
    assert "teacher, teacher: 1.45 M parameters, 6.5 [5.2, 8.0]" in page.titles
    assert any("nothing that is published was measured on it" in text for text in page.texts)


def test_kinds_of_models_differ_in_shape_and_names_do_not_meet() -> None:
    spots = [
        Spot(f"{kind} {number}", kind, 2e7 * (1 + number / 50), Estimate(90.0 + number, 80.0, 95.0))
        for kind, number in product(KINDS, range(3))
    ]
    text = spots_picture("label", spots, "kept")
    marks = {kind: re.findall(rf'<(\w+) ([^>]*)class="mark {kind}"', text) for kind in KINDS}
    assert [len(found) for found in marks.values()] == [3] * len(KINDS)
    shapes = {(tag, said.count(","), "".join(re.findall(r' r="(\S+)"', said))) for (tag, said), *_ in marks.values()}
    assert len(shapes) == len(KINDS)
    assert "NaN" not in text
    assert not re.search(r"\bnan\b", text)
    assert text.count("<title>") == len(spots)  # whoever has no room for a name says it when pointed at


def test_audio_that_was_used_stands_apart_from_audio_that_was_left_out(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    kinds = {
        "clipped": {"left_out": False, "cuts": 5, "files": {"a.wav": "a.wav: clipped"}},
        "silent": {"left_out": True, "cuts": 3, "files": {"b.wav": "b.wav: only silence"}},
    }
    tally = {"read": 100, "left_out": 3, "converted": {"resampled": 7}, "kinds": kinds}
    (run / "result.json").write_text(json.dumps(result | {"audio": {"stage1": tally}}))
    page = page_of(run)
    at = {name: page.texts.index(name) for name in ("Left out", "Used, although odd", "Converted")}
    rows = [row for row in page.rows if row[:1] == ["stage1"]]
    assert at["Left out"] < page.texts.index("silent") < at["Used, although odd"] < page.texts.index("clipped")
    assert at["Used, although odd"] < at["Converted"] < page.texts.index("resampled")
    assert ["stage1", "silent", "3", "1"] in rows
    assert ["stage1", "clipped", "5", "1"] in rows
    assert ["stage1", "clipped", "a.wav", "clipped"] in rows


def test_the_end_has_the_command_the_date_and_the_next_steps(run: Path) -> None:
    page = page_of(run)
    end = " ".join(page.texts[page.texts.index("Finished on 2031-02-03. To make the same run again:") :])
    assert f"skill-speech compress --config {run / 'config.yaml'} --output ANOTHER_FOLDER" in end
    assert f"student={run / 'model'} fbank --data CORPORA" in end
    assert "skill-speech export " in end


def colors() -> list[dict[str, str]]:
    """The colors of page.css, in light and dark."""
    css = (Path(skill_speech.__file__).parent / "reporting/page.css").read_text()
    found = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)]
    assert len(found) == 2
    assert found[0].keys() == found[1].keys()
    return found


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's ratio."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    low, high = sorted((luminance(one) + 0.05, luminance(other) + 0.05))
    return high / low


@pytest.mark.parametrize("dark", [False, True])
def test_the_colors_of_the_page_have_contrast_aa(dark: bool) -> None:
    found = colors()[dark]
    for name, ground in product(("ink", "quiet", "accent", "warning"), ("paper", "soft")):  # words
        assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
    for name in ("before", "trunk", "accent", "ink"):  # what pictures are made of
        assert contrast(found[name], found["paper"]) >= 3, name


def test_the_ratio_of_black_and_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed: apt-get install chromium")
def test_a_run_prints_on_four_pages(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluation=True)
    write_own_head(run / "evaluation")
    page = page_of(run)
    assert isinstance(page, Page)
    assert chromium.pages(run / "report.html") <= 4
