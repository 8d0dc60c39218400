"""Channel attention on the GPU in the Gram form: one kernel reads the tokens and makes the centred Gram matrix.

The tokens are centred as they are read, so no centred copy exists; the sum over tokens is split over programs, whose
parts are added in a second stage. All else of the Gram form (see ``eager.py``) is matrix products, which are PyTorch's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo_kernels import tuning
from zoo_kernels.channel_attention.eager import finish, gram_pays
from zoo_kernels.dispatch import multiprocessors
from zoo_kernels.testing import BuildCase
from zoo_kernels.tiles import cast, device_of, dot, unit_stride

BLOCK_N, BLOCK_C = 64, 64


@triton.jit
def channel_gram(
    x_ptr, mean_ptr, part_ptr, n, splits, per_split, x_image, x_token,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile (i, j), i <= j, of one split's sum of (x - mean)^T (x - mean); the mirrored tile is stored with it."""
    pair, split, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    j = 0
    first = 0
    while first + j + 1 <= pair:  # pair = j (j + 1) / 2 + i
        first += j + 1
        j += 1
    i = pair - first
    left, right = i * BLOCK_C + tl.arange(0, BLOCK_C), j * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_left = tl.load(mean_ptr + image * C + left, mask=left < C, other=0.0)
    mean_right = tl.load(mean_ptr + image * C + right, mask=right < C, other=0.0)
    total = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    end = tl.minimum((split + 1) * per_split, n)
    for begin in range(split * per_split, end, BLOCK_N):
        token = begin + tl.arange(0, BLOCK_N)
        rows = x_ptr + image * x_image + token[:, None].to(tl.int64) * x_token
        inside = (token < end)[:, None] & (left < C)[None, :]
        a = tl.load(rows + left[None, :], mask=inside, other=0.0)
        a = cast(tl.where(inside, a.to(tl.float32) - mean_left[None, :], 0.0), x_ptr.dtype.element_ty)
        inside = (token < end)[:, None] & (right < C)[None, :]
        b = tl.load(rows + right[None, :], mask=inside, other=0.0)
        b = cast(tl.where(inside, b.to(tl.float32) - mean_right[None, :], 0.0), x_ptr.dtype.element_ty)
        total += dot(tl.trans(a), b)
    part = part_ptr + (image * splits + split) * C * C
    inside = (left < C)[:, None] & (right < C)[None, :]
    tl.store(part + left[:, None] * C + right[None, :], total, mask=inside)
    tl.store(part + left[:, None] + right[None, :] * C, total, mask=inside)


@torch.library.custom_op("zoo_kernels::centred_gram", mutates_args=())
def _gram_op(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, N, C] -> mean [B, 1, C] and (x - mean)^T (x - mean) [B, C, C], float32."""
    b, n, c = x.shape
    x = unit_stride(x)
    mean = x.mean(1, keepdim=True, dtype=torch.float32)
    default = {"BLOCK_N": BLOCK_N, "BLOCK_C": BLOCK_C, "num_warps": 4, "num_stages": 3}
    own = tuning.config(
        "channel_gram", x.device, default, exact={"bytes": x.element_size()}, near={"tokens": b * n, "channels": c}
    )
    block_n = own["BLOCK_N"]
    tiles = triton.cdiv(c, own["BLOCK_C"])
    pairs = tiles * (tiles + 1) // 2
    wanted = triton.cdiv(4 * multiprocessors(x.device), pairs * max(b, 1))
    per_split = max(block_n, triton.cdiv(triton.cdiv(n, wanted), block_n) * block_n)
    splits = triton.cdiv(n, per_split)
    parts = torch.empty(b, splits, c, c, dtype=torch.float32, device=x.device)
    if b:
        with device_of(x):
            channel_gram[(pairs, splits, b)](
                x, mean, parts, n, splits, per_split, x.stride(0), x.stride(1),
                C=c, **own,
            )  # fmt: skip
    return mean, parts.sum(1)


@_gram_op.register_fake
def _(x):
    b, _, c = x.shape
    wide = {"dtype": torch.float32, "device": x.device}
    return torch.empty(b, 1, c, **wide), torch.empty(b, c, c, **wide)


def _gram_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _gram_grad(ctx, d_mean: Tensor, d_gram: Tensor):
    """dx = (x - mean) (dG + dG^T) + d_mean / N; G does not change with the mean, because x - mean sums to zero."""
    x, mean = ctx.saved_tensors
    both = d_gram + d_gram.transpose(1, 2)
    rest = d_mean / x.shape[1] - mean @ both
    return torch.baddbmm(rest.to(x.dtype), x, both.to(x.dtype))


_gram_op.register_autograd(_gram_grad, setup_context=_gram_setup)


def can_run(x: Tensor, *_: object, **__: object) -> str | None:
    """Why the kernels cannot serve a call, or None."""
    n, c = x.shape[1:]
    if not gram_pays(n, c):
        return f"{n} tokens of {c} channels: below 2 C tokens the ordinary form is cheaper, which is eager's"
    return None


def forward(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    *,
    num_heads: int,
    scale: float | None = None,
) -> Tensor:
    """See :func:`zoo_kernels.channel_attention.channel_attention`."""
    scale = (x.shape[-1] // num_heads) ** -0.5 if scale is None else float(scale)
    mean, gram = _gram_op(x)
    t, const = finish(mean, gram, x.shape[1], qkv_weight, qkv_bias, proj_weight, proj_bias, num_heads, scale)
    return torch.baddbmm(const.to(x.dtype), x, t.transpose(1, 2).to(x.dtype))


def build_cases() -> dict[str, BuildCase]:
    """DaViT's first two stages."""
    from zoo_kernels.channel_attention import channel_attention

    def call(b: int, n: int, c: int) -> BuildCase:
        half = {"dtype": torch.bfloat16}
        weights = (torch.zeros(3 * c, c, **half), torch.zeros(3 * c, **half))
        weights += (torch.zeros(c, c, **half), torch.zeros(c, **half))
        return BuildCase(channel_attention, (torch.zeros(b, n, c, **half), *weights), {"num_heads": c // 32})

    return {"N3136 C96": call(2, 3136, 96), "N784 C192": call(2, 784, 192)}
