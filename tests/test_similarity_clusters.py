"""Layer clusters against SciPy and by hand; the analysis folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from skill_speech.errors import InputError
from skill_speech.files import atomic_write, write_json
from skill_speech.similarity import cluster_layers, equal_partition, load_analysis, medoid, save_analysis

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
    assert clusters.reason == "2 clusters, as asked for"
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


def test_auto_cuts_at_the_largest_gap_and_says_why():
    clusters = cluster_layers(HAND_MADE, "auto")
    assert clusters.groups == ((0, 4), (1, 2, 3))
    assert clusters.reason == (
        "2 clusters: the largest gap between successive merges, 0.435, lies between the heights 0.270 and 0.705; "
        "the runner-up is 3 clusters with a gap of 0.170"
    )
    blocks = np.kron(np.eye(4), np.full((3, 3), 0.6)) + 0.3 + 0.1 * np.eye(12)
    assert cluster_layers(blocks, "auto").groups == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_auto_on_few_layers(layers):
    clusters = cluster_layers(HAND_MADE[:layers, :layers], "auto")
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
    clusters = cluster_layers(HAND_MADE, "auto", first_layer=first_layer)
    save_analysis(tmp_path / "analysis", HAND_MADE, clusters)
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == [
        "cka.npy",
        "clusters.json",
        "dendrogram.png",
        "dendrogram.svg",
        "linkage.npy",
        "similarity.png",
        "similarity.svg",
    ]
    cka_LL, loaded = load_analysis(tmp_path / "analysis")
    assert loaded == clusters
    np.testing.assert_array_equal(cka_LL, HAND_MADE)
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
    save_analysis(tmp_path / "analysis", HAND_MADE, loaded)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "analysis").iterdir()}


def test_missing_and_broken_analyses_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no analysis here \(clusters.json is missing\); run analyze"):
        load_analysis(tmp_path)
    save_analysis(tmp_path, HAND_MADE, cluster_layers(HAND_MADE, 2))
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
