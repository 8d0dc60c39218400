"""The heaviest tree against all trees of small graphs, and large graphs whose tree is known."""

import itertools

import numpy as np
import pytest

from zoo.layers.arborescence import maximum_arborescence


def is_tree(parents: np.ndarray, root: int) -> bool:
    for node in range(len(parents)):
        steps = 0
        while node != root:
            node, steps = parents[node], steps + 1
            if steps > len(parents):
                return False
    return parents[root] == -1


def weight(scores: np.ndarray, parents: np.ndarray) -> float:
    return sum(scores[p, child] for child, p in enumerate(parents) if p >= 0)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(12))
def test_no_tree_is_heavier(nodes, seed):
    rng = np.random.default_rng(seed)
    scores, root = rng.standard_normal((nodes, nodes)), int(rng.integers(nodes))
    best = -np.inf
    for parents in itertools.product(range(nodes), repeat=nodes):
        parents = np.array(parents)
        parents[root] = -1
        if is_tree(parents, root):
            best = max(best, weight(scores, parents))
    found = maximum_arborescence(scores, root)
    assert is_tree(found, root)
    assert weight(scores, found) == pytest.approx(best)


def test_cycles_inside_cycles_are_broken():
    # Pairs that prefer each other, pairs of pairs that do so too, and so on: each level is a contraction.
    nodes = 65
    scores = np.full((nodes, nodes), -100.0)
    for level in range(6):
        for a in range(64):
            scores[a, a ^ (1 << level)] = -float(level)
    scores[64, 17] = -50.0
    found = maximum_arborescence(scores, 64)
    assert is_tree(found, 64)
    assert found[17] == 64
    # 32 edges inside pairs, 16 between them, 8, 4, 2, 1, and the root's
    assert weight(scores, found) == -(16 * 1 + 8 * 2 + 4 * 3 + 2 * 4 + 1 * 5) - 50.0


def test_where_best_edges_make_no_cycle_they_are_the_tree():
    rng = np.random.default_rng(0)
    nodes = 200
    scores = rng.random((nodes, nodes))
    scores[np.tril_indices(nodes)] -= 10.0  # parents come before their children
    found = maximum_arborescence(scores, 0)
    assert (found[1:] == [scores[:child, child].argmax() for child in range(1, nodes)]).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="shape"):
        maximum_arborescence(np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match="finite"):
        maximum_arborescence(np.full((2, 2), np.nan), 0)
    with pytest.raises(ValueError, match="root=2"):
        maximum_arborescence(np.zeros((2, 2)), 2)
