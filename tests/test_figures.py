"""The two figures of an analysis: they render, agree with each other, and nothing in them overlaps."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from skill_speech.reporting.figures import dendrogram, save_figure, similarity_map
from skill_speech.reporting.shapes import CLUSTER_COLOURS
from skill_speech.similarity import LayerClusters, cluster_layers


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
        (12, "auto", {"contiguous": True, "first_layer": 1}),
        (25, 5, {}),
        (2, 1, {}),
        (1, 1, {}),
    ],
)
def test_figures_render_without_overlapping_text(layers, K, options):
    cka_LL, clusters = analysis(layers, K, **options)
    for figure in (similarity_map(cka_LL, clusters, "A title"), dendrogram(clusters, "A title")):
        assert overlapping(figure) == []
        pixels = np.asarray(figure.canvas.buffer_rgba())
        assert pixels.shape[1] == 800
        # Nothing is cut off at the edges.
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all()
        assert figure.axes[0].get_title() == "A title"


def test_the_map_names_layers_and_prints_values_up_to_13():
    cka_LL, clusters = analysis(13, 4)
    axes = similarity_map(cka_LL, clusters).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"h_{layer}" for layer in range(13)]
    assert f"{cka_LL[3, 4]:.2f}" in {text.get_text() for text in axes.texts}
    cka_LL, clusters = analysis(25, 4)
    assert len(similarity_map(cka_LL, clusters).axes[0].texts) < 25


def test_both_figures_give_a_cluster_the_same_colour():
    cka_LL, clusters = analysis(13, 4)
    heat, tree = similarity_map(cka_LL, clusters).axes[0], dendrogram(clusters).axes[0]
    strips = [patch for patch in heat.patches if patch.get_fill() and patch.get_x() < -0.5]
    labels = {label.get_text(): to_hex(label.get_color()) for label in tree.get_xticklabels()}
    seen = 0
    for strip in strips:
        for row in range(13):
            if strip.get_y() < row < strip.get_y() + strip.get_height():
                assert labels[f"h_{row}"] == to_hex(strip.get_facecolor())
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
    assert any(text.get_text() == f"cut at {clusters.threshold:.3f}\n4 clusters" for text in axes.texts)
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
    code = "import sys, skill_speech.reporting.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("colour", CLUSTER_COLOURS)
def test_lines_of_a_cluster_can_be_seen_on_white(colour: str) -> None:
    # WCAG 2.2, 1.4.11: three to one for what is not text.
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 3
