"""Layer clusters against SciPy and by hand; the analysis folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from skill_speech.errors import InputError
from skill_speech.files import atomic_write, write_json
from skill_speech.similarity import (
    LayerAnalysis,
    LayerClusters,
    agreement,
    cluster_layers,
    equal_partition,
    load_analysis,
    medoid,
    save_analysis,
)

# Layers 0 and 4 are alike, so are 1 and 2, and 3 is closer to the latter.
HAND_MADE = np.array(
    [
        [1.00, 0.30, 0.32, 0.20, 0.95],
        [0.30, 1.00, 0.90, 0.70, 0.34],
        [0.32, 0.90, 1.00, 0.76, 0.36],
        [0.20, 0.70, 0.76, 1.00, 0.25],
        [0.95, 0.34, 0.36, 0.25, 1.00],
    ]
)


def random_cka(layers: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(layers, 4))
    features[1:] += features[:-1]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return (unit @ unit.T) ** 2


def test_hand_made_case():
    clusters = cluster_layers(HAND_MADE, 2)
    assert clusters.groups == ((0, 4), (1, 2, 3))
    assert clusters.medoids == (4, 2)
    assert clusters.mean_cka == pytest.approx((0.95, (0.90 + 0.70 + 0.76) / 3))
    assert clusters.linkage[:, 2].tolist() == pytest.approx([0.05, 0.10, 0.27, 1 - np.mean(HAND_MADE[[0, 4], 1:4])])
    assert clusters.threshold == pytest.approx(clusters.linkage[2:, 2].mean())
    assert clusters.reason == "2 clusters, as set"
    assert cluster_layers(HAND_MADE, 2, first_layer=1).groups == ((1, 5), (2, 3, 4))
    assert cluster_layers(HAND_MADE, 2, first_layer=1).medoids == (5, 3)


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
@pytest.mark.parametrize("seed", range(5))
def test_groups_equal_scipys(linkage, seed):
    cka_LL = random_cka(13, seed)
    distances = squareform(1 - cka_LL, checks=False)
    for K in range(1, 14):
        clusters = cluster_layers(cka_LL, K, linkage=linkage)
        labels = hierarchy.fcluster(hierarchy.linkage(distances, linkage), K, criterion="maxclust")
        expected = sorted(tuple(np.flatnonzero(labels == label).tolist()) for label in set(labels))
        assert clusters.groups == tuple(expected)
        # The stated height cuts SciPy's tree into the same groups.
        labels = hierarchy.fcluster(clusters.linkage, clusters.threshold, criterion="distance")
        assert len(set(labels)) == K


@pytest.mark.parametrize("contiguous", [False, True])
def test_exactly_k_groups_even_among_ties(contiguous):
    cka_LL = np.full((8, 8), 0.5) + 0.5 * np.eye(8)
    for K in range(1, 9):
        groups = cluster_layers(cka_LL, K, contiguous=contiguous).groups
        assert len(groups) == K
        assert sorted(layer for group in groups for layer in group) == list(range(8))


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
def test_contiguous_clusters_are_runs_of_layers(linkage):
    for seed in range(5):
        for K in range(1, 12):
            clusters = cluster_layers(random_cka(11, seed), K, linkage=linkage, contiguous=True)
            assert len(clusters.groups) == K
            assert [layer for group in clusters.groups for layer in group] == list(range(11))
            assert hierarchy.is_valid_linkage(clusters.linkage)
            assert hierarchy.is_monotonic(clusters.linkage)


def test_contiguous_by_hand():
    clusters = cluster_layers(HAND_MADE, 2, contiguous=True)
    assert clusters.groups == ((0,), (1, 2, 3, 4))
    # 4 joins {1, 2, 3} at 1 - mean(0.34, 0.36, 0.25); then 0 joins at 1 - mean(0.30, 0.32, 0.20, 0.95), which is lower
    # and is drawn at the same height.
    assert clusters.linkage[:, 2].tolist() == pytest.approx([0.10, 0.27, 1 - 0.95 / 3, 1 - 0.95 / 3])
    assert clusters.contiguous


@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
def test_contiguous_equals_scipy_where_similarity_falls_with_distance(linkage):
    places = np.array([0.0, 1.0, 2.5, 7.0, 7.8, 12.0, 15.0, 15.3])
    cka_LL = 1 - np.abs(places[:, None] - places) / 20
    for K in range(1, 9):
        free, bound = (cluster_layers(cka_LL, K, linkage=linkage, contiguous=bound) for bound in (False, True))
        assert free.groups == bound.groups
        np.testing.assert_allclose(free.linkage[:, 2], bound.linkage[:, 2])


def noisy(cka_LL: np.ndarray, spread: float, count: int = 20) -> list[np.ndarray]:
    """Similarities as resampling would give them."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        noise_LL = np.triu(rng.normal(0, spread, cka_LL.shape), 1)
        made.append(cka_LL + noise_LL + noise_LL.T)
    return made


BLOCKS = np.kron(np.eye(4), np.full((3, 3), 0.6)) + 0.3 + 0.1 * np.eye(12)


def test_auto_takes_as_many_clusters_as_half_of_the_audio_confirms_and_says_why():
    """Four blocks, of which the first is two: the gap between these is drowned by noise, or is not."""
    clusters = cluster_layers(BLOCKS, "auto", halves=noisy(BLOCKS, 0.01))
    assert clusters.groups == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))
    assert clusters.reason.startswith(
        "4 clusters: half of the audio gives the same groups (adjusted Rand index 1.00); 5 clusters: 0."
    )
    assert clusters.borders.halves == 1.0
    apart = BLOCKS.copy()
    apart[0, 1:3] = apart[1:3, 0] = 0.8
    assert len(cluster_layers(apart, "auto", halves=noisy(apart, 0.01)).groups) == 5
    first_alone = np.full((13, 13), 0.1)
    first_alone[1:, 1:] = BLOCKS
    np.fill_diagonal(first_alone, 1)
    # The largest gap is that between h_0 and all others; it does not count for more than any other.
    assert len(cluster_layers(first_alone, "auto", halves=noisy(first_alone, 0.01)).groups) == 5
    with pytest.raises(InputError, match=r'clusters "auto" takes as many as half of the audio confirms.*give more'):
        cluster_layers(BLOCKS, "auto")


def test_without_any_firm_border_auto_takes_the_firmest_and_says_so():
    flat = np.full((12, 12), 0.9) + 0.1 * np.eye(12)
    clusters = cluster_layers(flat, "auto", halves=noisy(flat, 0.02))
    assert "no number is firm, this one is the firmest" in clusters.reason
    assert not clusters.borders.firm
    assert str(clusters.borders).startswith("borders are not firm: adjusted Rand index 0.")


def test_borders_tell_what_each_kind_of_resampling_confirms():
    shifted = np.roll(np.roll(BLOCKS, 1, 0), 1, 1)
    clusters = cluster_layers(BLOCKS, 4, halves=noisy(BLOCKS, 0.01), other_view=shifted)
    assert clusters.borders.halves == 1.0
    assert clusters.borders.other_view == pytest.approx(
        adjusted_rand_score(np.repeat(range(4), 3), np.roll(np.repeat(range(4), 3), 1))
    )
    assert clusters.borders.firm is False
    same = cluster_layers(BLOCKS, 4, other_view=BLOCKS).borders
    assert (same.halves, same.other_view, same.firm) == (None, 1.0, True)
    assert cluster_layers(BLOCKS, 4).borders.firm is None
    assert LayerClusters.from_dict(json.loads(json.dumps(clusters.to_dict()))).borders == clusters.borders


def test_agreement_is_the_adjusted_rand_index():
    rng = np.random.default_rng(0)
    for trial in range(50):
        one, other = rng.integers(0, 1 + trial % 6, (2, 13))
        ways = [tuple(tuple(np.flatnonzero(labels == label)) for label in np.unique(labels)) for labels in (one, other)]
        assert agreement(*ways) == pytest.approx(adjusted_rand_score(one, other))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_auto_on_few_layers(layers):
    cka_LL = HAND_MADE[:layers, :layers]
    clusters = cluster_layers(cka_LL, "auto", halves=[cka_LL] if layers > 3 else [])
    assert len(clusters.groups) == min(layers, 2)


@pytest.mark.parametrize("K", [0, -1, 6])
def test_impossible_numbers_of_clusters_are_refused(K):
    with pytest.raises(InputError, match=f"cannot make {K} clusters of 5 layers; choose 1 to 5"):
        cluster_layers(HAND_MADE, K)
    with pytest.raises(InputError, match=f"cannot make {K} clusters of 5 layers"):
        equal_partition(range(5), K)


def test_unknown_linkage_and_broken_matrices_are_refused():
    with pytest.raises(InputError, match="unknown linkage 'ward'; known: average, complete, single"):
        cluster_layers(HAND_MADE, 2, linkage="ward")
    with pytest.raises(ValueError, match="finite"):
        cluster_layers(np.where(HAND_MADE == 0.9, np.nan, HAND_MADE), 2)
    with pytest.raises(ValueError, match="square"):
        cluster_layers(HAND_MADE[:3], 2)


def test_medoid():
    assert medoid(HAND_MADE, (1, 2, 3)) == 2
    assert medoid(HAND_MADE, (3,)) == 3
    assert medoid(HAND_MADE, (0, 4)) == 4
    assert medoid(HAND_MADE, (2, 3, 4), first_layer=1) == 3


def test_equal_partition():
    assert equal_partition(range(13), 4) == ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))
    assert equal_partition([1, 2, 3, 4], 4) == ((1,), (2,), (3,), (4,))


@pytest.mark.parametrize("first_layer", [0, 1])
def test_analysis_folder_round_trip(tmp_path, first_layer):
    clusters = cluster_layers(HAND_MADE, 2, first_layer=first_layer, halves=[HAND_MADE])
    other_LL = HAND_MADE**2
    names = save_analysis(tmp_path / "analysis", LayerAnalysis(HAND_MADE, clusters, "normalized", other_LL))
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == sorted(names)
    assert sorted(names) == [
        "cka-other.npy",
        "cka.npy",
        "clusters.json",
        "dendrogram.png",
        "dendrogram.svg",
        "linkage.npy",
        "similarity-other.png",
        "similarity-other.svg",
        "similarity.png",
        "similarity.svg",
    ]
    found = load_analysis(tmp_path / "analysis")
    loaded = found.clusters
    assert (found.view, found.other_view) == ("normalized", "raw")
    np.testing.assert_array_equal(found.other_LL, other_LL)
    assert found.other_clusters().layers == loaded.layers
    assert loaded == clusters
    np.testing.assert_array_equal(found.cka_LL, HAND_MADE)
    np.testing.assert_array_equal(loaded.linkage, clusters.linkage)
    np.testing.assert_array_equal(np.load(tmp_path / "analysis/linkage.npy"), clusters.linkage)
    values = json.loads((tmp_path / "analysis/clusters.json").read_text())
    assert values["clusters"][0] == {
        "layers": [first_layer, first_layer + 4],
        "names": [f"h_{first_layer}", f"h_{first_layer + 4}"],
        "medoid": first_layer + 4,
        "mean_cka": pytest.approx(0.95),
    }
    first = {path.name: path.read_bytes() for path in (tmp_path / "analysis").iterdir()}
    save_analysis(tmp_path / "analysis", found)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "analysis").iterdir()}


def test_missing_and_broken_analyses_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no analysis here \(clusters.json is missing\); run analyze"):
        load_analysis(tmp_path)
    save_analysis(tmp_path, LayerAnalysis(HAND_MADE, cluster_layers(HAND_MADE, 2)))
    (tmp_path / "cka.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match="the analysis cannot be read"):
        load_analysis(tmp_path)
    (tmp_path / "clusters.json").write_text("{}")
    with pytest.raises(InputError, match=r"clusters.json: damaged \(clusters is not there\)"):
        load_analysis(tmp_path)


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    def write_half() -> None:
        with atomic_write(tmp_path / "values.json") as temporary:
            temporary.write_text("[1, ")
            raise KeyboardInterrupt

    write_json(tmp_path / "values.json", [1, 2])
    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert json.loads((tmp_path / "values.json").read_text()) == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["values.json"]
