"""The tiling behind the fast formulations: tiles of queries, the halo of keys that each needs, and its mask.

Everything is worked out axis by axis in plain integers and cached: for each axis a list of query tiles, and for each
tile the ranks of its keys and a pattern (which of them each query may see). Tiles with the same pattern form a class;
inside a map all tiles are of one class, so that a handful of small masks serve maps of any size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from zoo_kernels.neighborhood_attention.windows import group_length, window

#: Constants of the cost model, fitted to SDPA on CPU with head_dim 32: a tile of T queries runs as if it had
#: TILE_OVERHEAD more, a call for a class of tiles costs as much as CALL_OVERHEAD query-key pairs.
TILE_OVERHEAD = 16
CALL_OVERHEAD = 1500
CANDIDATES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 28, 32, 48, 64)


@dataclass(frozen=True)
class AxisTiles:
    """The tiles of one axis, sorted by class.

    queries: [tiles, T] positions (a short tile repeats its last query), keys: [tiles, S] positions (clamped),
    relative: per class [T, S] key rank minus query rank plus kernel - 1, or -1 where the key is hidden,
    counts: tiles in each class.
    """

    queries: np.ndarray
    keys: np.ndarray
    relative: tuple[np.ndarray, ...]
    counts: tuple[int, ...]


@lru_cache(maxsize=256)
def axis_tiles(length: int, kernel: int, dilation: int, stride: int, causal: bool, tile: int) -> AxisTiles:
    """Cut one axis into tiles of ``tile`` queries of one dilation group each."""
    raw = []  # (group, query ranks, windows, members)
    for group in range(dilation):
        members = group_length(length, dilation, group)
        for first in range(0, members, tile):
            ranks = [min(first + i, members - 1) for i in range(tile)]
            raw.append((group, ranks, [window(r, members, kernel, stride, causal) for r in ranks], members))
    span = max(max(stop for _, stop in w) - min(start for start, _ in w) for _, _, w, _ in raw)
    classes: dict[tuple[tuple[int, int, int], ...], list[tuple[list[int], list[int]]]] = {}
    for group, ranks, windows, members in raw:
        halo = max(0, min(min(start for start, _ in windows), members - span))
        pattern = tuple((r - halo, start - halo, stop - halo) for r, (start, stop) in zip(ranks, windows))
        keys = [group + dilation * min(halo + j, members - 1) for j in range(span)]
        classes.setdefault(pattern, []).append(([group + dilation * r for r in ranks], keys))
    relative = []
    for pattern in classes:
        rel = np.full((tile, span), -1, dtype=np.int64)
        for i, (rank, start, stop) in enumerate(pattern):
            rel[i, start:stop] = np.arange(start, stop) - rank + kernel - 1
        relative.append(rel)
    rows = [row for members in classes.values() for row in members]
    return AxisTiles(
        np.array([r[0] for r in rows], dtype=np.int64),
        np.array([r[1] for r in rows], dtype=np.int64),
        tuple(relative),
        tuple(len(members) for members in classes.values()),
    )


@lru_cache(maxsize=256)
def tile_shape(lengths: tuple[int, ...], spans: tuple[int, ...]) -> tuple[int, ...]:
    """Tile sides with the least estimated cost a query.

    Args:
        lengths: members of the longest dilation group of each axis.
        spans: on each axis, the keys of one query plus what its stride adds, less one.
    """
    axes = []
    for length, span in zip(lengths, spans):
        largest = min(length, 64 if len(lengths) == 1 else max(8, span))
        sides = sorted({min(c, largest) for c in CANDIDATES})
        axes.append([(t, min(t + span, length), -(-length // t)) for t in sides])
    positions = 1.0
    for length in lengths:
        positions *= length
    best, shape = float("inf"), tuple(1 for _ in lengths)
    for choice in itertools.product(*axes):
        queries = keys = tiles = classes = 1.0
        for t, s, n in choice:
            queries, keys, tiles, classes = queries * t, keys * s, tiles * n, classes * min(n, 3)
        cost = tiles * (queries + TILE_OVERHEAD) * keys / positions + CALL_OVERHEAD * classes / positions
        if cost < best:
            best, shape = cost, tuple(t for t, _, _ in choice)
    return shape


@dataclass(frozen=True)
class Plan:
    """How to compute one map.

    query_index: [sum of tiles * T] flat positions, key_index: [sum of tiles * S], classes in order;
    inverse: [N] where each position's result lies; relative: per class [T, S] index into the flattened bias table
    with one entry appended, ``hidden``, for keys that are not seen; counts: tiles per class; T, S: tokens per tile.
    """

    query_index: np.ndarray
    key_index: np.ndarray
    inverse: np.ndarray
    relative: tuple[np.ndarray, ...]
    counts: tuple[int, ...]
    hidden: int
    T: int
    S: int


@lru_cache(maxsize=64)
def make_plan(
    spatial: tuple[int, ...],
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
) -> Plan:
    """Combine the axes: a class of the map is one class of each axis."""
    members = tuple(group_length(n, d, 0) for n, d in zip(spatial, dilation))
    tile = tile_shape(members, tuple(k + s - 2 for k, s in zip(kernel_size, stride)))
    axes = [axis_tiles(*a) for a in zip(spatial, kernel_size, dilation, stride, causal, tile)]
    dims = len(spatial)
    hidden = int(np.prod([2 * k - 1 for k in kernel_size]))
    T, S = int(np.prod(tile)), int(np.prod([a.keys.shape[1] for a in axes]))

    def combine(parts: list[np.ndarray], sizes: tuple[int, ...]) -> np.ndarray:
        """Flat index of every combination; parts[a] is [x_a, y_a], the result [x_0, x_1.., y_0, y_1..] flattened."""
        flat = np.zeros((1,) * (2 * dims), dtype=np.int64)
        for a, (part, size) in enumerate(zip(parts, sizes)):
            shape = [1] * (2 * dims)
            shape[a], shape[dims + a] = part.shape
            flat = flat * size + part.reshape(shape)
        return flat.reshape(-1)

    query_index, key_index, relative, counts = [], [], [], []
    for choice in itertools.product(*[range(len(a.counts)) for a in axes]):
        at = [slice(sum(a.counts[:c]), sum(a.counts[: c + 1])) for a, c in zip(axes, choice)]
        query_index.append(combine([a.queries[s] for a, s in zip(axes, at)], spatial))
        key_index.append(combine([a.keys[s] for a, s in zip(axes, at)], spatial))
        rel = combine([a.relative[c] for a, c in zip(axes, choice)], tuple(2 * k - 1 for k in kernel_size))
        seen = combine([(a.relative[c] >= 0).astype(np.int64) for a, c in zip(axes, choice)], (2,) * dims)
        relative.append(np.where(seen == 2**dims - 1, rel, hidden).reshape(T, S))
        counts.append(int(np.prod([a.counts[c] for a, c in zip(axes, choice)])))
    queries = np.concatenate(query_index)
    inverse = np.empty(int(np.prod(spatial)), dtype=np.int64)
    # Written backwards, so that of repeated queries the first one counts.
    inverse[queries[::-1]] = np.arange(queries.size)[::-1]
    return Plan(queries, np.concatenate(key_index), inverse, tuple(relative), tuple(counts), hidden, T, S)
