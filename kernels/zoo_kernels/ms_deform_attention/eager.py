"""Multi-scale deformable attention as a weighted embedding bag.

The levels of ``value`` are one table of B*S*heads rows. Each (query, head) is a bag of 4*T rows (T samples, four
corners) whose weights are attention x bilinear, so ``torch.embedding_bag`` does gather, interpolation and sum in one
pass with no sampled values in memory. What remains is index arithmetic; it is done in planes of one coordinate, in
int32, for so few queries at a time that the planes stay in cache.

Borders need no mask: the left corner i is clamped to [0, W-2] and the weights are the tents ``max(0, 1 - |x - i|)`` and
``max(0, 1 - |x - i - 1|)``, which vanish by themselves for what lies outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo_kernels.dispatch import exporting

Levels = tuple[tuple[int, int], ...]

#: Samples (query, head, level, point) of a chunk: planes of this many numbers stay in a core's cache. The backward has
#: head_dim numbers more of each.
_CHUNK = 65536
_CHUNK_BACKWARD = 4096
#: Tables of fewer rows are indexed in int32, which is twice as fast.
_INT32_ROWS = 2**31 - 1
#: A corner that does not exist (level of width 1) is moved this far away, where its tent is zero.
_FAR = 1e30


def forward(value: Tensor, shapes: Levels, locations: Tensor, weights: Tensor, points: tuple[int, ...]) -> Tensor:
    """Classic form: value [B,S,h,d], locations [B,Q,h,T,2], weights [B,Q,h,T] -> [B,Q,h*d]."""
    if exporting():
        return _traceable(value, shapes, locations, weights, points)
    return _run(value, locations, weights, shapes, points, True)


def forward_fused(
    value: Tensor, shapes: Levels, reference: Tensor, offsets: Tensor, logits: Tensor, points: tuple[int, ...]
) -> Tensor:
    """From raw offsets [B,Q,h,T,2], logits [B,Q,h,T] and references [B,Q,L,2|4]: pixel coordinates, softmax, sum."""
    if exporting():
        return forward_fused_sampled(value, shapes, reference, offsets, logits, points)
    dtype = _compute_dtype(value, reference, offsets, logits)
    pixels = pixel_coordinates(reference.to(dtype), offsets.to(dtype), shapes, points)
    return _run(value, pixels, logits.softmax(-1, dtype=dtype), shapes, points, False)


def forward_fused_sampled(
    value: Tensor, shapes: Levels, reference: Tensor, offsets: Tensor, logits: Tensor, points: tuple[int, ...]
) -> Tensor:
    """As :func:`forward_fused`, in operators that every exporter knows; slower.

    It rounds as the PyTorch code that Deformable DETR's authors ship beside their extension.
    """
    dtype = _compute_dtype(value, reference, offsets, logits)
    reference, offsets = reference.to(dtype), offsets.to(dtype)
    each = [i for i, n in enumerate(points) for _ in range(n)]
    xy, wh = reference[:, :, each, :2].unsqueeze(2), reference[:, :, each, 2:].unsqueeze(2)  # [B, Q, 1, T, 2]
    if wh.shape[-1] == 0:
        step = offsets / offsets.new_tensor([(shapes[i][1], shapes[i][0]) for i in each])
    else:
        step = offsets / offsets.new_tensor([points[i] for i in each])[:, None] * wh * 0.5
    return _traceable(value, shapes, xy + step, logits.softmax(-1, dtype=dtype), points)


def pixel_coordinates(reference: Tensor, offsets: Tensor, shapes: Levels, points: tuple[int, ...]) -> Tensor:
    """Where the samples lie in pixels of their levels (pixel i centred at i): [B,Q,h,T,2]."""
    xy, wh = reference[..., :2], reference[..., 2:]  # [B, Q, L, 2]
    size = reference.new_tensor([(w, h) for h, w in shapes])  # [L, 2]
    each = list(range(len(points))) if set(points) == {1} else [i for i, n in enumerate(points) for _ in range(n)]
    origin = (xy * size - 0.5)[:, :, each].unsqueeze(2)  # [B, Q, 1, T, 2]
    if wh.shape[-1] == 0:
        return origin + offsets
    per_level = size * (0.5 / reference.new_tensor(points))[:, None]
    return torch.addcmul(origin, (wh * per_level)[:, :, each].unsqueeze(2), offsets)


def _run(
    value: Tensor, xy: Tensor, weights: Tensor, shapes: Levels, points: tuple[int, ...], normalized: bool
) -> Tensor:
    """Through the registered operator, or, where nothing watches the call, past it: a tenth of a short call's time."""
    flat = [n for s in shapes for n in s]
    tensors = (value, xy, weights)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    plain = all(type(t) is Tensor for t in tensors) and value.device.type in ("cpu", "cuda")
    if recorded or not plain or torch.compiler.is_compiling() or _transformed():
        return _attend(value, xy, weights, flat, list(points), normalized)
    return _sum_bags(value, xy, weights, flat, points, normalized)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Index arithmetic is in float32 at least: half precision cannot hold a pixel coordinate."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _traceable(value: Tensor, shapes: Levels, locations: Tensor, weights: Tensor, points: tuple[int, ...]) -> Tensor:
    """The classic form in operators that every exporter knows: one grid_sample a level."""
    b, q, h, t, _ = locations.shape
    d = value.shape[3]
    dtype = _compute_dtype(value, locations, weights)
    sampled, start, first = [], 0, 0
    for (height, width), n in zip(shapes, points):
        level = value[:, start : start + height * width].to(dtype)  # [B, H*W, h, d]
        level = level.permute(0, 2, 3, 1).reshape(b * h, d, height, width)
        xy = locations[:, :, :, first : first + n].to(dtype).transpose(1, 2).reshape(b * h, q, n, 2)
        sampled.append(F.grid_sample(level, 2 * xy - 1, mode="bilinear", padding_mode="zeros", align_corners=False))
        start, first = start + height * width, first + n
    w = weights.to(dtype).transpose(1, 2).reshape(b * h, 1, q, t)
    out = (torch.cat(sampled, dim=-1) * w).sum(-1)  # [B*h, d, Q]
    return out.reshape(b, h * d, q).transpose(1, 2).to(value.dtype)


@dataclass(frozen=True)
class _Plan:
    """What depends on the levels only; T samples of a (query, head), axis 0 = x, axis 1 = y."""

    size: Tensor  # [T * 2] W and H of each sample
    last: Tensor  # [2, 1, T] int: largest left corner
    far: Tensor  # [2, 1, T] distance of the right corner: 1, or _FAR where the level has only one column or row
    row: Tensor  # [T] int: table rows from one line of the level to the next
    base: Tensor  # [h * T] int: table row of the level's first pixel, for each head
    corner: Tensor  # [4, T] int: table rows from the top left corner to the corners (y, x) = 00, 01, 10, 11
    minus_half: Tensor
    thin: bool  # some level has only one column or row


@lru_cache(maxsize=64)
def _plan(
    flat: tuple[int, ...], points: tuple[int, ...], heads: int, dtype: torch.dtype, index: torch.dtype, device: str
) -> _Plan:
    levels, start, starts = list(zip(flat[::2], flat[1::2])), 0, []
    for height, width in levels:
        starts.append(start)
        start += height * width
    of = [i for i, n in enumerate(points) for _ in range(n)]  # level of each sample
    hs, ws = [levels[i][0] for i in of], [levels[i][1] for i in of]

    def ints(x: Sequence[object]) -> Tensor:
        return torch.tensor(x, dtype=index, device=device)

    def floats(x: Sequence[object]) -> Tensor:
        return torch.tensor(x, dtype=dtype, device=device)

    right = [heads if w > 1 else 0 for w in ws]
    below = [w * heads if h > 1 else 0 for h, w in zip(hs, ws)]
    return _Plan(
        size=floats([n for pair in zip(ws, hs) for n in pair]),
        last=ints([[[max(w - 2, 0) for w in ws]], [[max(h - 2, 0) for h in hs]]]),
        far=floats([[[1.0 if w > 1 else _FAR for w in ws]], [[1.0 if h > 1 else _FAR for h in hs]]]),
        row=ints([w * heads for w in ws]),
        base=ints([starts[i] * heads + head for head in range(heads) for i in of]),
        corner=ints([[0] * len(of), right, below, [r + s for r, s in zip(right, below)]]),
        minus_half=floats([-0.5]),
        thin=min(hs) == 1 or min(ws) == 1,
    )


class _Samples:
    """The samples of all (batch, query) pairs, chunk by chunk: rows of the table and distances to the corners."""

    def __init__(
        self,
        value: Tensor,
        xy: Tensor,
        weights: Tensor,
        flat: Sequence[int],
        points: Sequence[int],
        normal: bool,
        chunk: int,
    ):
        b, s, self.heads, _ = value.shape
        self.queries, self.samples = xy.shape[1], xy.shape[3]
        self.dtype = _compute_dtype(value, xy, weights)
        self.index = torch.int32 if b * s * self.heads < _INT32_ROWS else torch.int64
        device = str(value.device)
        self.plan = _plan(tuple(flat), tuple(points), self.heads, self.dtype, self.index, device)
        self.normal = normal
        self.xy = xy.reshape(b * self.queries, self.heads * self.samples, 2)
        self.weights = weights.reshape(b * self.queries, self.heads * self.samples)
        self.batch_rows = s * self.heads
        self.batched = b > 1
        step = max(1, chunk // (self.heads * self.samples)) if device == "cpu" else b * self.queries
        self.chunks = [(i, min(i + step, b * self.queries)) for i in range(0, b * self.queries, step)]

    def chunk(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries begin..end, n (query, head) pairs: top left row [n,T], u [2 corners,2 axes,n,T], weight [n,T].

        u is the signed distance of the sample from the corner, in pixels.
        """
        plan, t = self.plan, self.samples
        n = (end - begin) * self.heads
        xy = self.xy[begin:end].to(self.dtype).view(n, 2 * t)
        if self.normal:
            xy = torch.addcmul(plan.minus_half, xy, plan.size)
        p = xy.view(n, t, 2).permute(2, 0, 1).contiguous()  # [2, n, T]
        if plan.thin:
            p = p.clamp(-2, 2**24)  # nothing may come near the corner that is _FAR
        # Conversion truncates, where floor is meant: they differ only below zero, which is clamped away.
        i = p.to(self.index).clamp_(min=0)
        torch.minimum(i, plan.last, out=i)
        u = p.new_empty(2, 2, n, t)
        torch.sub(p, i, out=u[0])
        torch.sub(u[0], plan.far, out=u[1])
        row = i[1].mul_(plan.row).add_(i[0], alpha=self.heads)  # [n, T]
        row.view(end - begin, self.heads * t).add_(plan.base)
        if self.batched:
            batch = torch.arange(begin, end, device=row.device).div_(self.queries, rounding_mode="floor")
            row.view(end - begin, -1).add_((batch * self.batch_rows).to(self.index)[:, None])
        return row, u, self.weights[begin:end].to(self.dtype).view(n, t)

    def corner_rows(self, row: Tensor) -> Tensor:
        """Table rows of the four corners: [n, T] -> [n, 4, T]."""
        rows = row.new_empty(row.shape[0], 4, row.shape[1])
        for c in range(4):  # one broadcast over all four is twice as slow: its inner loop has T elements
            torch.add(row, self.plan.corner[c], out=rows[:, c])
        return rows


def _corner_weights(tent: Tensor, weights: Tensor, out: Tensor) -> None:
    """Attention times bilinear weight of the corners (y, x) = 00, 01, 10, 11: [n, T] each, into out[c]."""
    of_y = tent[:, 1] * weights
    for c in range(4):
        torch.mul(of_y[c // 2], tent[c % 2, 0], out=out[c])


def _tent_(u: Tensor) -> Tensor:
    """max(0, 1 - |u|), in place."""
    return u.abs_().neg_().add_(1).clamp_(min=0)


def _tent_slope(u: Tensor) -> Tensor:
    """Derivative of the tent; at its knots the one from the right, as grid_sample has it."""
    k = u.floor()
    return (k == -1).to(u.dtype).sub_((k == 0).to(u.dtype))


def _transformed() -> bool:
    """Whether torch.func's transforms (vmap, grad) are active; taken for granted where torch does not say."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or active()


def _sum_bags(
    value: Tensor, xy: Tensor, weights: Tensor, shapes: Sequence[int], points: Sequence[int], normalized: bool
) -> Tensor:
    """The forward: value [B,S,h,d], xy [B,Q,h,T,2] in pixels or normalized to [0, 1], weights [B,Q,h,T]."""
    b, s, h, d = value.shape
    q, t = xy.shape[1], xy.shape[3]
    out = value.new_empty(b * q * h, d)
    samples = _Samples(value, xy, weights, shapes, points, normalized, _CHUNK)
    table = value.reshape(b * s * h, d)
    for begin, end in samples.chunks:
        row, u, w = samples.chunk(begin, end)
        n = row.shape[0]
        tent = _tent_(u)
        w4 = value.new_empty(n, 4, t)
        _corner_weights(tent, w, w4.transpose(0, 1))
        rows = samples.corner_rows(row)
        out[begin * h : end * h] = F.embedding_bag(
            rows.view(n, 4 * t), table, mode="sum", per_sample_weights=w4.view(n, 4 * t)
        )
    return out.view(b, q, h * d)


@torch.library.custom_op("zoo_kernels::ms_deform_attention_eager", mutates_args=())
def _attend(
    value: Tensor, xy: Tensor, weights: Tensor, shapes: Sequence[int], points: Sequence[int], normalized: bool
) -> Tensor:
    return _sum_bags(value, xy, weights, shapes, points, normalized)


@_attend.register_fake
def _(value, xy, weights, shapes, points, normalized):
    return value.new_empty(value.shape[0], xy.shape[1], value.shape[2] * value.shape[3])


def fold_vmap(function: Callable[..., Tensor], info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """A vmap rule for functions whose tensors all begin with the batch: the mapped dimension joins the batch."""
    n = info.batch_size

    def folded(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.expand(n, *value.shape) if dim is None else value.movedim(dim, 0)
        return value.flatten(0, 1)

    return function(*map(folded, args, in_dims)).unflatten(0, (n, -1)), 0


@_attend.register_vmap
def _(info, in_dims, *args):
    return fold_vmap(_attend, info, in_dims, args)


@torch.library.custom_op("zoo_kernels::ms_deform_attention_eager_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    value: Tensor,
    xy: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    normalized: bool,
    need_value: bool,
    need_samples: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    b, s, h, d = value.shape
    q, t = xy.shape[1], xy.shape[3]
    samples = _Samples(value, xy, weights, shapes, points, normalized, _CHUNK_BACKWARD)
    dtype, plan = samples.dtype, samples.plan
    table, g = value.reshape(b * s * h, d), grad.reshape(b * q * h, d).to(dtype)
    grad_xy = xy.new_empty(xy.shape if need_samples else 0)
    grad_weights = weights.new_empty(weights.shape if need_samples else 0)
    top_left = torch.empty(b * q * h * t if need_value else 0, dtype=samples.index, device=value.device)
    corner_weights = torch.empty(4, b * q * h * t if need_value else 0, dtype=dtype, device=value.device)
    # One buffer for all chunks: fresh pages would cost more than the gather itself.
    most = max((end - begin for begin, end in samples.chunks), default=0) * h * 4 * t
    gathered = table.new_empty(most if need_samples else 0, d)
    for begin, end in samples.chunks:
        row, u, w = samples.chunk(begin, end)
        n, part = row.shape[0], slice(begin * h, end * h)
        slope = _tent_slope(u) if need_samples else u
        tent = _tent_(u)
        if need_value:
            flat = slice(begin * h * t, end * h * t)
            top_left[flat] = row.view(-1)
            _corner_weights(tent, w, corner_weights[:, flat].view(4, n, t))
        if need_samples:
            corners = gathered[: n * 4 * t]
            torch.index_select(table, 0, samples.corner_rows(row).view(-1), out=corners)
            corners = corners.to(dtype).view(n, 4 * t, d)
            # Derivative with respect to the weight of each corner: <grad, value there>; of corner c: dot[:, c], [n, T].
            with torch.autocast(value.device.type, enabled=False):  # it would round g and the result
                dot = torch.bmm(g[part].unsqueeze(1), corners.transpose(1, 2)).view(n, 4, t)
            (x0, y0), (x1, y1) = tent
            left = (dot[:, 0] * y0).addcmul_(dot[:, 2], y1)
            right = (dot[:, 1] * y0).addcmul_(dot[:, 3], y1)
            above = (dot[:, 0] * x0).addcmul_(dot[:, 1], x1)
            below = (dot[:, 2] * x0).addcmul_(dot[:, 3], x1)
            grad_weights.view(b * q * h, t)[part] = (left * x0).addcmul_(right, x1)
            (dx0, dy0), (dx1, dy1) = slope
            dxy = torch.empty(n, t, 2, dtype=dtype, device=value.device)
            torch.mul((left * dx0).addcmul_(right, dx1), w, out=dxy[..., 0])
            torch.mul((above * dy0).addcmul_(below, dy1), w, out=dxy[..., 1])
            if normalized:
                dxy.view(n, 2 * t).mul_(plan.size)
            grad_xy.view(b * q * h, t, 2)[part] = dxy
    if not need_value:
        return value.new_empty(0), grad_xy, grad_weights
    levels = list(zip(shapes[::2], shapes[1::2]))
    grad_value = value_gradient(g, top_left, corner_weights, plan.corner, levels, (b, s, h, d)).to(value.dtype)
    return grad_value, grad_xy, grad_weights


@_attend_backward.register_fake
def _(grad, value, xy, weights, shapes, points, normalized, need_value, need_samples):
    return (
        value.new_empty(value.shape if need_value else 0),
        xy.new_empty(xy.shape if need_samples else 0),
        weights.new_empty(weights.shape if need_samples else 0),
    )


def value_gradient(
    g: Tensor,
    top_left: Tensor,
    corner_weights: Tensor,
    corner: Tensor,
    levels: Sequence[tuple[int, int]],
    shape: tuple[int, int, int, int],
) -> Tensor:
    """Scatter of the output's gradient into the levels without atomics, in a fixed order.

    Args:
        g: ``[N, d]`` gradient of each (batch, query, head).
        top_left: ``[N*T]`` table row of each sample's top left corner.
        corner_weights: ``[4, N*T]`` weight of the corners (y, x) = 00, 01, 10, 11.
        corner: ``[4, T]`` table rows from the top left corner to each corner.
        levels: ``(H, W)`` of each level.
        shape: ``(B, S, h, d)`` of the value.

    Returns:
        ``[B, S, h, d]`` in the dtype of ``g``.
    """
    b, s, h, d = shape
    n, t = g.shape[0], corner.shape[1]
    if n == 0:
        return g.new_zeros(shape)
    if n * t < b * s * h:
        # Few samples: sort all corners, for one pass over the table.
        rows = (top_left.view(1, n, t) + corner[:, None]).view(-1)
        return _scatter(g, t, rows, corner_weights.view(1, -1), b * s * h)[0].view(shape)
    # Many samples: sort the cells only; the bag of each corner then moves to its own pixel.
    total: Tensor | None = None
    for c, bag in enumerate(_scatter(g, t, top_left, corner_weights, b * s * h)):
        bag = bag.view(shape)
        if total is None:
            total = bag
            continue
        (y, x), start = divmod(c, 2), 0
        for height, width in levels:
            stop = start + height * width
            to, of = (m[:, start:stop].view(b, height, width, h, d) for m in (total, bag))
            to[:, y:, x:] += of[:, : height - y, : width - x]
            start = stop
    assert total is not None
    return total


def _scatter(g: Tensor, per: int, rows: Tensor, weights: Tensor, size: int) -> list[Tensor]:
    """For each of the weights [K, M]: sum of weight * g over the entries of each row, K times [size, d].

    Entry e belongs to g[e // per], and so on from the start again when g is used up.
    """
    order = torch.sort(rows, stable=rows.is_cuda).indices  # one thread or one radix sort: the same order every time
    counts = torch.bincount(rows, minlength=size)
    begin = counts.cumsum(0).sub_(counts)
    of = order.div(per, rounding_mode="floor")
    if rows.numel() > per * g.shape[0]:
        of.remainder_(g.shape[0])
    return [F.embedding_bag(of, g, begin, mode="sum", per_sample_weights=w.index_select(0, order)) for w in weights]


def _setup(ctx, inputs, output):
    value, xy, weights, ctx.shapes, ctx.points, ctx.normalized = inputs
    ctx.save_for_backward(value, xy, weights)


def _backward(ctx, grad):
    value, xy, weights = ctx.saved_tensors
    need_value, need_xy, need_weights = ctx.needs_input_grad[:3]
    dv, dxy, dw = _attend_backward(
        grad, value, xy, weights, ctx.shapes, ctx.points, ctx.normalized, need_value, need_xy or need_weights
    )
    return dv if need_value else None, dxy if need_xy else None, dw if need_weights else None, None, None, None


_attend.register_autograd(_backward, setup_context=_setup)
