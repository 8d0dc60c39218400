"""Agent-Swin: the Swin Transformer with agent attention, whose windows are as large as the map.

Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024, arXiv 2312.08874); Swin (ICCV 2021,
arXiv 2103.14030). Authors' code: github.com/LeapLabTHU/Agent-Attention (no licence file; this follows the papers and
recorded results). Difference: every image size is accepted; tables of positions are interpolated, maps padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.agent_base import AgentPyramid, ConvEmbed, patch_chain
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.patch_merging import PatchMerging
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.agent_window import AgentWindowAttention
from zoo.mixers.window import WindowAttention
from zoo.registry import register_model, variant


class AgentSwinBlock(PreNormBlock):
    """A block whose mixer works in windows.

    Args:
        dim: channels C.
        mixer: the token mixer.
        grid: the map that the network was made for, where the windows are shifted. It follows from the network's
            arguments; it is kept with the weights because the authors' checkpoints hold a mask of that size, which
            could not be written back without it.
        mlp_ratio, drop_path, norm_eps: see :class:`~zoo.layers.pre_norm_block.PreNormBlock`.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        grid: tuple[int, int] | None,
        mlp_ratio: float,
        drop_path: float,
        norm_eps: float,
    ):
        super().__init__(dim, mixer, mlp_ratio, drop_path, norm_eps)
        if grid is not None:
            self.register_buffer("grid", torch.tensor(grid))


def block_kinds(attn_type: str, depths: Sequence[int]) -> list[str]:
    """ "A" (agents) or "B" (softmax) for each block of each stage.

    Args:
        attn_type: a letter a stage, A, B or M; behind them, for M, how many blocks of that stage are A, before the B.
        depths: blocks of each stage.

    Raises:
        ValueError: anything else.
    """
    n = len(depths)
    letters, count = attn_type[:n], attn_type[n:]
    if len(letters) != n or set(letters) - set("ABM") or ("M" in letters and not count.isdecimal()):
        raise ValueError(
            f"attn_type={attn_type!r}: accepted are {n} letters A (agents), B (softmax) or M (mixed), and behind them, "
            "where there is an M, how many of the stage's blocks are A"
        )
    agents = int(count) if "M" in letters else 0
    return [("A" * agents + "B" * depth)[:depth] if a == "M" else a * depth for a, depth in zip(letters, depths)]


class AgentSwin(AgentPyramid):
    """Agent-Swin.

    Args:
        img_size: image size that windows and position biases are made for, a number or (height, width).
        patch_size: stride of the stem; each later stage halves the map.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dim: width of the first stage; it doubles.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        window_size: window of agent blocks; softmax blocks have ``max(7, window_size // 8)``. A stage whose map is no
            larger has one window and no shift; every other odd block is shifted by half a window.
        mlp_ratio: hidden channels of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        qk_scale: factor of the logits of softmax blocks, ``head_dim ** -0.5`` by default; agents do not heed it.
        norm_eps: epsilon of all norms.
        ape: add a learned table of absolute positions.
        patch_norm: normalise patches.
        agent_num: agents of each stage.
        attn_type: see :func:`block_kinds`.
        min_softmax_window: the 7 of ``window_size``.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns of the image that make no whole patch rather than pad with zeros.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 4.3 and table 8 of the paper. Shifted agent windows mix both sides of the map's edge, as the
    authors' do.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 56,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        norm_eps: float = 1e-5,
        ape: bool = False,
        patch_norm: bool = True,
        agent_num: Sequence[int] = (9, 16, 49, 49),
        attn_type: str = "AAAB",
        min_softmax_window: int = 7,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        depths = list(depths)
        n = len(depths)
        num_heads, agent_num = per_stage("num_heads", num_heads, n), per_stage("agent_num", agent_num, n)
        kinds = block_kinds(attn_type, depths)
        dims = [embed_dim * 2**i for i in range(n)]
        self._describe(
            dims,
            [patch_size * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.grids = patch_chain(to_pair(img_size, "img_size"), [patch_size] + [2] * (n - 1), drop_remainder)
        rates = drop_path_rates(drop_path_rate, depths)

        def block(i: int, j: int) -> AgentSwinBlock:
            dim, grid, agents = dims[i], self.grids[i], kinds[i][j] == "A"
            window = window_size if agents else max(min_softmax_window, window_size // 8)
            shift = window // 2 if j % 2 else 0
            if min(grid) <= window:
                window, shift = min(grid), 0
            mixer: nn.Module
            if agents:
                whole = grid == (window, window)
                mixer = AgentWindowAttention(dim, num_heads[i], window, shift, agent_num[i], qkv_bias, whole)
            else:
                mixer = WindowAttention(dim, num_heads[i], window, shift, qkv_bias, qk_scale=qk_scale)
            return AgentSwinBlock(dim, mixer, grid if shift else None, mlp_ratio, rates[i][j], norm_eps)

        stem = ConvEmbed(
            PatchConv(in_chans, embed_dim, patch_size, drop_remainder),
            nn.LayerNorm(embed_dim, eps=norm_eps) if patch_norm else None,
            TokenPositions(self.grids[0], embed_dim) if ape else None,
        )
        self.embeds = nn.ModuleList([stem, *(PatchMerging(dims[i], norm_eps) for i in range(n - 1))])
        self.stages = nn.ModuleList(nn.ModuleList(block(i, j) for j in range(depths[i])) for i in range(n))
        self._finish(depths, head_norm_eps=norm_eps)


def swin_mask(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """The mask of shifted windows in the authors' checkpoints, ``[windows, window**2, window**2]``: 0 or -100."""
    sides = []
    for length in grid:
        places = torch.arange(length)
        sides.append((places >= length - window).long() + (places >= length - shift))
    group = sides[0][:, None] * 3 + sides[1]  # [H, W]: nine parts of the map after the shift
    group = group.reshape(grid[0] // window, window, grid[1] // window, window).transpose(1, 2).reshape(-1, window**2)
    same = group[:, :, None] == group[:, None, :]
    return torch.where(same, 0.0, -100.0)


@register_model(task="classification", family="agent", input_size=32)
@variant(AgentSwin)
def agent_swin_nano() -> dict[str, Any]:
    """For small images (32 x 32): two stages of agents and one of softmax windows, 0.9 M parameters."""
    return dict(
        img_size=32,
        embed_dim=48,
        depths=(1, 2, 1),
        num_heads=(2, 4, 8),
        window_size=8,
        agent_num=(9, 9, 4),
        attn_type="AAB",
    )


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentSwin)
def agent_swin_tiny() -> dict[str, Any]:
    """Agent-Swin-T, 28.9 M parameters."""
    return dict(depths=(2, 2, 6, 2), attn_type="AAAB")


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentSwin)
def agent_swin_small() -> dict[str, Any]:
    """Agent-Swin-S, 49.7 M parameters."""
    return dict(depths=(2, 2, 18, 2), attn_type="AABB")


@register_model(task="classification", family="agent", input_size=288)
@variant(AgentSwin)
def agent_swin_small_288() -> dict[str, Any]:
    """Agent-Swin-S for images of 288 x 288, 49.7 M parameters."""
    return dict(depths=(2, 2, 18, 2), attn_type="AABB", img_size=288, window_size=72)


@register_model(task="classification", family="agent", input_size=224)
@variant(AgentSwin)
def agent_swin_base() -> dict[str, Any]:
    """Agent-Swin-B, 88.1 M parameters."""
    return dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), attn_type="AAMB2")


@register_model(task="classification", family="agent", input_size=384)
@variant(AgentSwin)
def agent_swin_base_384() -> dict[str, Any]:
    """Agent-Swin-B for images of 384 x 384, 88.3 M parameters."""
    return dict(
        embed_dim=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        attn_type="AAMB2",
        img_size=384,
        window_size=96,
    )
