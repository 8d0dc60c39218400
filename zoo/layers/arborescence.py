"""The heaviest tree of a directed graph (Chu and Liu 1965, Edmonds 1967)."""

from __future__ import annotations

import numpy as np


def maximum_arborescence(scores: np.ndarray, root: int) -> np.ndarray:
    """Parents of all nodes in the tree from ``root`` whose edges have the largest sum of scores.

    Args:
        scores: ``[N, N]`` finite, ``scores[parent, child]``; the diagonal and edges into the root are not used.
        root: the node without a parent.

    Returns:
        ``[N]`` int64: the parent of each node, -1 for the root.

    Raises:
        ValueError: ``scores`` is no square matrix of finite numbers, or ``root`` no node.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not np.isfinite(scores).all():
        raise ValueError(f"scores has shape {scores.shape}: accepted is a square matrix of finite numbers")
    if not 0 <= root < len(scores):
        raise ValueError(f"root={root}: accepted are 0 to {len(scores) - 1}")
    s = scores.astype(np.float64)
    # Contract a cycle of best edges to one node, again and again ...
    levels = []
    while True:
        np.fill_diagonal(s, -np.inf)
        s[:, root] = -np.inf
        parent = s.argmax(0)
        parent[root] = -1
        cycle = _cycle(parent)
        if cycle is None:
            break
        rest = np.setdiff1d(np.arange(len(s)), cycle)
        enter = s[np.ix_(rest, cycle)] - s[parent[cycle], cycle]  # gain of breaking the cycle at each of its nodes
        leave = s[np.ix_(cycle, rest)]
        levels.append((parent, cycle, rest, enter.argmax(1), leave.argmax(0), root))
        smaller = np.full((len(rest) + 1, len(rest) + 1), -np.inf)
        smaller[:-1, :-1] = s[np.ix_(rest, rest)]
        smaller[:-1, -1] = enter.max(1)
        smaller[-1, :-1] = leave.max(0)
        s, root = smaller, int(np.searchsorted(rest, root))
    # ... and open them in reverse.
    for best, cycle, rest, enter_at, leave_at, top in reversed(levels):
        opened = best.copy()  # the nodes of the cycle keep their edges, but for the one where it is entered
        inner = parent[:-1]
        from_cycle = inner == len(rest)
        opened[rest] = np.where(from_cycle, cycle[leave_at], rest[np.where(from_cycle, 0, inner)])
        outside = parent[-1]  # the parent of the contracted node
        opened[cycle[enter_at[outside]]] = rest[outside]
        opened[top] = -1
        parent = opened
    return parent.astype(np.int64)


def _cycle(parent: np.ndarray) -> np.ndarray | None:
    """The sorted nodes of a cycle that following the parents leads into, None if all paths end at the root."""
    seen = np.zeros(len(parent), dtype=np.int64)  # the walk that came by first
    for start in range(len(parent)):
        node = start
        while node >= 0 and not seen[node]:
            seen[node] = start + 1
            node = parent[node]
        if node >= 0 and seen[node] == start + 1:
            cycle = [node]
            while parent[cycle[-1]] != node:
                cycle.append(parent[cycle[-1]])
            return np.sort(np.array(cycle))
    return None
