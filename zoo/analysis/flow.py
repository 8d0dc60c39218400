"""Attention flow: the largest flow from positions of the last layer to those of the first, attention as capacity.

S. Abnar and W. Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928, section 3: the layers
form a graph whose edges are ``(A + 1) / 2``; what a position gets from another is the maximum flow between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zoo.analysis.rollout import Record, with_residual

#: Capacities are whole numbers for the solver: this many parts of the attention 1.
PARTS = 1_000_000

#: Positions that all flows of a query are computed for within a second or so.
MAX_POSITIONS = 1024


def attention_flow(records: Sequence[Record], queries: Sequence[int]) -> Tensor:
    """Maximum flow from positions of the last record to each position of the first.

    Args:
        records: mixers of one resolution, in the order in which they ran; heads are averaged.
        queries: positions of the last record, row-major.

    Returns:
        float64 ``[queries, N]``, exact to ``records / PARTS``.

    Raises:
        ValueError: no records, records of different resolution, a query that is no position, attention below 0, or
            more than ``MAX_POSITIONS`` positions.
        ImportError: scipy is not installed.
    """
    if not records:
        raise ValueError("there are no attention records to follow")
    if len({r.grid for r in records}) > 1:
        raise ValueError(f"records have grids {[r.grid for r in records]}; flow needs mixers of one resolution")
    positions = records[0].map.shape[-1]
    if positions > MAX_POSITIONS:
        raise ValueError(f"{positions} positions are too many for maximum flow; accepted are {MAX_POSITIONS}")
    if any(not 0 <= q < positions for q in queries):
        raise ValueError(f"queries={list(queries)}: accepted are positions 0 to {positions - 1}")
    layers = [with_residual(r.map.mean(0).double().cpu()) for r in records]
    if any(float(layer.min()) < 0 for layer in layers):
        raise ValueError("attention below 0 has no flow; rollout takes it")
    return torch.tensor([_flows(layers, q) for q in queries], dtype=torch.float64).reshape(len(queries), positions)


def _flows(layers: list[Tensor], query: int) -> list[float]:
    """Flow from ``query`` behind the last layer to each position before the first.

    Nodes: layer l's positions are ``l N ... (l + 1) N - 1``, 0 before the first layer; edges point down.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import maximum_flow

    depth, count = len(layers), layers[0].shape[0]
    top = _needed(layers, query)
    rows, columns, capacities = [], [], []
    for index, layer in enumerate(layers):
        capacity = np.round(layer.numpy() * PARTS).astype(np.int32)
        capacity[~top[index + 1]] = 0  # positions that the query does not reach carry nothing
        i, j = np.nonzero(capacity)
        rows.append((index + 1) * count + i)
        columns.append(index * count + j)
        capacities.append(capacity[i, j])
    graph = coo_matrix(
        (np.concatenate(capacities), (np.concatenate(rows), np.concatenate(columns))),
        shape=((depth + 1) * count, (depth + 1) * count),
        dtype=np.int32,
    ).tocsr()
    return [maximum_flow(graph, depth * count + query, j).flow_value / PARTS for j in range(count)]


def _needed(layers: list[Tensor], query: int) -> list[np.ndarray]:
    """For each level of nodes, which ones the query reaches (bool ``[N]``)."""
    level = np.zeros(layers[0].shape[0], bool)
    level[query] = True
    found: list[np.ndarray] = [level]
    for layer in reversed(layers):
        found.append(np.asarray((layer.numpy()[found[-1]] > 0).any(0)))
    return found[::-1]
