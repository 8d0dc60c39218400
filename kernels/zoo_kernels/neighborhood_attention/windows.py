"""Which keys a query sees on one axis: the definition that every backend shares.

An axis of ``length`` positions splits into ``dilation`` groups: position x belongs to group x mod dilation, has the
rank p = x // dilation in it, and the group has n = ceil((length - group) / dilation) members. All windows are
intervals of ranks in the query's own group, so that a backend only ever deals with ``[start, stop)``.
"""

from __future__ import annotations


def group_length(length: int, dilation: int, group: int) -> int:
    """Number of members of a dilation group."""
    return (length - group + dilation - 1) // dilation


def window(rank: int, members: int, kernel: int, stride: int, causal: bool) -> tuple[int, int]:
    """The ranks ``[start, stop)`` that the query of rank ``rank`` attends to.

    ``stride`` consecutive queries share the window of their leader: the middle one, or the last one if causal. A
    window that would leave the group is moved inside, so it always has ``kernel`` members; a causal one is cut
    instead, and ends with the query itself.
    """
    first = rank // stride * stride
    if causal:
        leader = min(first + stride - 1, members - 1)
        return max(leader - kernel + 1, 0), rank + 1
    leader = min(first + stride // 2, members - 1)
    start = min(max(leader - kernel // 2, 0), members - kernel)
    return start, start + kernel


def axis_windows(length: int, kernel: int, dilation: int, stride: int, causal: bool) -> list[tuple[int, int, int, int]]:
    """For each position of the axis: its group, its rank, and the start and stop rank of its window."""
    rows = []
    for x in range(length):
        group, rank = x % dilation, x // dilation
        rows.append((group, rank, *window(rank, group_length(length, dilation, group), kernel, stride, causal)))
    return rows
