"""Small calls that every generic operator test runs."""

from __future__ import annotations

import torch

from zoo_kernels.neighborhood_attention import halo_attention, neighborhood_attention
from zoo_kernels.testing import Case


def cases() -> dict[str, Case]:
    """One to three dimensions, dilation groups of unequal length, causal axes, strides, and the blocked form."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    def near(*map_hd: int, bias: bool = False, dv: int | None = None, **kwargs: object) -> Case:
        kernel = kwargs["kernel_size"]
        dims = len(map_hd) - 3
        sides = (kernel,) * dims if isinstance(kernel, int) else kernel
        table = randn(map_hd[-2], *(2 * k - 1 for k in sides)) if bias else None  # type: ignore[attr-defined]
        q, k, v = randn(*map_hd), randn(*map_hd), randn(*map_hd[:-1], dv or map_hd[-1])
        return Case(neighborhood_attention, (q, k, v), {**kwargs, "bias": table}, batched=(0, 1, 2))

    def halo(q_map: tuple[int, ...], ratio: int, win: int, **kwargs: object) -> Case:
        b, h, w, heads, d = q_map
        k, v = randn(b, h * ratio, w * ratio, heads, d), randn(b, h * ratio, w * ratio, heads, d + 2)
        tables = {name: randn(2 * win - 1, d) for name in ("rel_height", "rel_width")} if win else {}
        return Case(halo_attention, (randn(*q_map), k, v), {**kwargs, **tables}, batched=(0, 1, 2))

    return {
        "nat": near(2, 7, 13, 1, 8, kernel_size=5, bias=True),
        "dinat-uneven": near(1, 9, 7, 1, 4, kernel_size=3, dilation=2, bias=True, dv=8),
        "mixed-causal": near(1, 8, 11, 2, 8, kernel_size=(3, 5), dilation=(2, 1), causal=(True, False)),
        "even-strided": near(1, 12, 10, 1, 8, kernel_size=(4, 6), dilation=(2, 1), stride=(2, 3), scale=0.5),
        "line": near(2, 19, 1, 8, kernel_size=5, dilation=2, causal=True, bias=True),
        "volume": near(1, 5, 4, 6, 2, 6, kernel_size=3, bias=True),
        "volume-dilated-causal": near(
            1,
            7,
            5,
            6,
            1,
            8,
            kernel_size=(3, 2, 3),
            dilation=(2, 1, 2),
            stride=(2, 1, 1),
            causal=(True, False, True),
            dv=4,
        ),
        "one-position": near(1, 1, 1, 1, 4, kernel_size=1, bias=True),
        "halo": halo((1, 8, 4, 2, 6), 1, 6, block_size=4, halo_size=1),
        "halo-downsampled": halo((1, 4, 4, 1, 8), 2, 6, block_size=4, halo_size=1, scale_position=True),
        "halo-plain": halo((2, 6, 6, 2, 4), 1, 0, block_size=3, halo_size=2),
    }
