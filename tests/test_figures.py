"""The figures: they render, agree with each other, nothing in them overlaps, and pages can have them within."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from importlib.resources import files
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from skill_speech.figures.output import inline_svg, save_figure
from skill_speech.figures.plots import dendrogram, layer_weight_map, similarity_map
from skill_speech.figures.shapes import CLUSTER_COLORS, INK, RULE, TRUNK
from skill_speech.similarity import LayerClusters, cluster_layers
from tests import chromium

STYLE = files("skill_speech.reporting").joinpath("page.css").read_text(encoding="utf-8")


def analysis(layers: int, K: int | str, **options) -> tuple[np.ndarray, LayerClusters]:
    rng = np.random.default_rng(layers)
    places = np.cumsum(rng.uniform(0.3, 1.6, layers))
    cka_LL = np.exp(-np.abs(places[:, None] - places) / 4)
    if layers > 4 and not options:
        cka_LL[1, -1] = cka_LL[-1, 1] = 0.97  # a cluster with two runs
    return cka_LL, cluster_layers(cka_LL, K, **options)


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes intersect."""
    figure.canvas.draw()
    texts = [
        text
        for text in figure.findobj(lambda artist: hasattr(artist, "get_text") and hasattr(artist, "get_fontsize"))
        if text.get_visible() and text.get_text().strip()
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (one, other)
        for number, (one, box) in enumerate(boxes)
        for other, other_box in boxes[:number]
        if min(box.x1, other_box.x1) - max(box.x0, other_box.x0) > 0.5
        and min(box.y1, other_box.y1) - max(box.y0, other_box.y0) > 0.5
    ]


@pytest.mark.parametrize(
    ("layers", "K", "options"),
    [
        (13, 4, {}),
        (13, 13, {}),
        (12, 3, {"contiguous": True, "first_layer": 1}),
        (25, 5, {}),
        (49, 6, {}),
        (2, 1, {}),
        (1, 1, {}),
    ],
)
def test_figures_render_without_overlapping_text(layers, K, options):
    cka_LL, clusters = analysis(layers, K, **options)
    for title, draw in product(("A title", ""), (partial(similarity_map, cka_LL), dendrogram)):
        figure = draw(clusters, title)
        assert overlapping(figure) == []
        pixels = np.asarray(figure.canvas.buffer_rgba())
        assert pixels.shape[1] == 800
        # Nothing is cut off at the edges.
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all()
        assert figure.get_suptitle() == title


def test_the_map_names_layers_and_prints_values_up_to_13():
    cka_LL, clusters = analysis(13, 4)
    axes = similarity_map(cka_LL, clusters).axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == [str(layer) for layer in range(13)]
    values = [text for text in axes.texts if text.get_position() == (4, 3)]
    assert [f"0{text.get_text()}" for text in values] == [f"{cka_LL[3, 4]:.2f}"]
    cka_LL, clusters = analysis(25, 4)
    axes = similarity_map(cka_LL, clusters).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(layer) for layer in range(0, 25, 2)]
    assert len(axes.texts) < 25


def test_both_figures_give_a_cluster_the_same_color():
    cka_LL, clusters = analysis(13, 4)
    heat, tree = similarity_map(cka_LL, clusters).axes[0], dendrogram(clusters).axes[0]
    strips = [patch for patch in heat.patches if patch.get_fill() and patch.get_x() < -0.5]
    labels = {
        label.get_text(): to_hex(strip.get_facecolor())
        for place, label in enumerate(tree.get_xticklabels())
        for strip in tree.patches
        if strip.get_x() < place < strip.get_x() + strip.get_width()
    }
    assert len(labels) == 13
    seen = 0
    for strip in strips:
        for row in range(13):
            if strip.get_y() < row < strip.get_y() + strip.get_height():
                assert labels[str(row)] == to_hex(strip.get_facecolor())
                seen += 1
    assert seen == 13
    assert len(set(labels.values())) == 4


def test_every_block_of_a_cluster_with_two_runs_is_outlined():
    cka_LL, clusters = analysis(13, 4)
    group = next(group for group in clusters.groups if group[-1] - group[0] >= len(group))
    outlines = [patch for patch in similarity_map(cka_LL, clusters).axes[0].patches if not patch.get_fill()]
    for row in group:
        for column in group:
            assert any(
                outline.get_x() < column < outline.get_x() + outline.get_width()
                and outline.get_y() < row < outline.get_y() + outline.get_height()
                for outline in outlines
            )


def test_the_dendrogram_shows_the_cut():
    _, clusters = analysis(13, 4)
    axes = dendrogram(clusters).axes[0]
    assert any(text.get_text() == f"cut at\n{clusters.threshold:.3f}\n4 clusters" for text in axes.texts)
    assert any(np.allclose(line.get_ydata(), clusters.threshold) and line.is_dashed() for line in axes.lines)
    # The tree crosses the cut as often as there are clusters.
    crossings = set()
    for line in axes.lines:
        x, y = line.get_xdata(), line.get_ydata()
        for at in range(len(x) - 1):
            if x[at] == x[at + 1] and min(y[at : at + 2]) < clusters.threshold < max(y[at : at + 2]):
                crossings.add(x[at])
    assert len(crossings) == 4


def test_files_are_the_same_every_time(tmp_path):
    cka_LL, clusters = analysis(13, 4)
    for suffix in ("svg", "png"):
        for name in ("one", "two"):
            save_figure(similarity_map(cka_LL, clusters), tmp_path / f"{name}.{suffix}")
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_pyplot_is_not_touched():
    code = "import sys, skill_speech.figures.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def luminance(color: str) -> float:
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("color", CLUSTER_COLORS)
@pytest.mark.parametrize("paper", ["#ffffff", "#15171a"])
def test_lines_of_a_cluster_can_be_seen_on_light_and_dark_pages(color: str, paper: str) -> None:
    assert f"--paper: {paper};" in STYLE
    # WCAG 2.2, 1.4.11: three to one for what is not text.
    low, high = sorted((luminance(color) + 0.05, luminance(paper) + 0.05))
    assert high / low >= 3


def weight_map(states: int, **options) -> Figure:
    rng = np.random.default_rng(0)
    return layer_weight_map("mine", {task: list(rng.dirichlet(np.ones(states))) for task in ("pr", "qbe")}, **options)


def test_a_page_can_have_many_figures_and_gives_them_its_colors():
    cka_LL, clusters = analysis(13, 4)
    for figure in (similarity_map(cka_LL, clusters, ""), dendrogram(clusters, ""), weight_map(13)):
        text = inline_svg(figure)
        root = ElementTree.fromstring(text)
        assert (root.tag, root.get("role")) == ("svg", "img")
        assert root.get("aria-label") == figure.get_label() != ""
        assert root.attrib.keys().isdisjoint({"width", "height"})
        # Nothing is named or refers to a name, an image or another file.
        for element in root.iter():
            assert element.tag in ("svg", "g", "path", "text", "title")
            assert element.attrib.keys().isdisjoint({"id", "href", "clip-path"})
        assert "url(" not in text
        assert "://" not in text
        for ink, name in ((INK, "ink"), (TRUNK, "trunk"), (RULE, "rule")):
            assert ink not in text
            assert f"--{name}:" in STYLE
        assert "var(--ink)" in text
        for words in root.iter("text"):
            style = dict(part.split(": ") for part in words.get("style").split("; "))
            assert "var(--grow)" in style["font-size"]
            assert style.keys().isdisjoint({"font", "font-family"})
            assert style["fill"] in ("var(--ink)", "#000000", "#ffffff")
    assert "var(--rule)" in inline_svg(dendrogram(clusters))
    assert "var(--trunk)" in inline_svg(dendrogram(clusters))


def test_names_that_act_do_nothing(tmp_path):
    name = "<script>$\\frac{$ & \x00\x1b[2J\ud800\u202e"
    figure = layer_weight_map(name, {name: [0.5, 0.5], "qbe": [0.0, 1.0]}, name, name)
    save_figure(figure, tmp_path / "weights.png")
    save_figure(figure, tmp_path / "weights.svg")
    for text in ((tmp_path / "weights.svg").read_text(encoding="utf-8"), inline_svg(figure)):
        root = ElementTree.fromstring(text)
        assert "\\frac{$ & \\x00\\x1b[2J\\ud800\\u202e" in root.get("aria-label")
        assert not any(element.tag.endswith("script") for element in root.iter())


def test_files_show_words_where_they_are_pointed_at_too(tmp_path):
    cka_LL, clusters = analysis(13, 4)
    figure = similarity_map(cka_LL, clusters)
    save_figure(figure, tmp_path / "similarity.svg")
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(tmp_path / "similarity.svg").getroot()
    assert root.tag == f"{space}svg"
    assert root.get("aria-label") == figure.get_label()
    titles = [title.text for title in root.iter(f"{space}title")]
    for row, column in np.ndindex(13, 13):
        assert f"h_{row} and h_{column}: CKA {cka_LL[row, column]:.3f}" in titles
    assert not any(" " in element.get("id", "") for element in root.iter())


READ = """(() => {
  const texts = [...document.querySelectorAll(".drawn text")].map(node => [node, node.getBoundingClientRect()]);
  const wrong = texts.filter(([, box]) => box.left < 0 || box.right > innerWidth).map(([node]) => node.textContent);
  texts.forEach(([node, a], at) => texts.slice(0, at).forEach(([other, b]) => {
    // Boxes are as high as a font's highest letter, and numbers are not.
    const high = .15 * Math.min(a.height, b.height);
    if (node.closest("svg") === other.closest("svg") && Math.min(a.right, b.right) - Math.max(a.left, b.left) > .5
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > high)
      wrong.push(`${node.textContent} over ${other.textContent}`);
  }));
  const sizes = texts.map(([node]) => {
    const {a, b} = node.getScreenCTM();
    return parseFloat(getComputedStyle(node).fontSize) * Math.hypot(a, b);
  });
  const said = [...document.querySelectorAll(".drawn")].map(svg => {
    const drawn = [...svg.querySelectorAll("title + path")].at(-3);
    drawn.scrollIntoView({block: "center"});
    const box = drawn.getBoundingClientRect();
    const node = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return node.parentElement.querySelector("title")?.textContent ?? "";
  });
  return [wrong, Math.min(...sizes), said];
})()"""


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("layers", [2, 13, 25, 49])
@pytest.mark.parametrize("width", [360, 1280])
def test_chromium_shows_figures_within_a_page_that_can_be_read(tmp_path: Path, layers: int, width: int) -> None:
    cka_LL, clusters = analysis(layers, min(4, layers))
    drawn = [similarity_map(cka_LL, clusters, ""), dendrogram(clusters, ""), weight_map(layers)]
    figures = "".join(f"<figure>{inline_svg(figure)}</figure>" for figure in drawn)
    page = tmp_path / "page.html"
    head = f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>'
    page.write_text(f'{head}<div class="page">{figures}</div>')
    seen = chromium.look_at(page, width, evaluate=READ)
    assert seen.messages == []
    assert seen.scroll_width <= width
    wrong, smallest, said = seen.found
    assert wrong == []
    assert smallest >= 8
    assert all(said)
