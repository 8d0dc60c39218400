"""The Swin Transformer with linear attention, in windows as large as the map, in some blocks.

Swin (ICCV 2021, arXiv 2103.14030); ``agent_swin.py`` and ``inline_swin.py`` make the papers' networks of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.backbones.hybrid_base import ConvEmbed, HybridPyramid, block_kinds, patch_chain
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.patch_merging import PatchMerging
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.window import WindowAttention


class HybridSwinBlock(PreNormBlock):
    """A block whose mixer works in windows.

    Args:
        dim: channels C.
        mixer: the token mixer.
        grid: the map that the network was made for, where the windows are shifted (and whatever else of them the
            weights do not tell). It follows from the network's arguments; it is kept with the weights because the
            authors' checkpoints hold a mask of that size, which could not be written back without it.
        mlp_ratio, drop_path, norm_eps: see :class:`~zoo.layers.pre_norm_block.PreNormBlock`.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        grid: tuple[int, ...] | None,
        mlp_ratio: float,
        drop_path: float,
        norm_eps: float,
    ):
        super().__init__(dim, mixer, mlp_ratio, drop_path, norm_eps)
        if grid is not None:
            self.register_buffer("grid", torch.tensor(grid))


class HybridSwin(HybridPyramid):
    """Patches, windows, patch merging.

    Args:
        img_size: image size that windows are made for, a number or (height, width).
        patch_size: stride of the stem; each later stage halves the map.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dim: width of the first stage; it doubles.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        window_size: window of linear blocks; softmax blocks have ``max(min_softmax_window, window_size // 8)``. A stage
            whose map is no larger has one window and no shift; every other odd block is shifted by half a window.
        mlp_ratio: hidden channels of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        qk_scale: factor of the logits of softmax blocks, ``head_dim ** -0.5`` by default; the others do not heed it.
        norm_eps: epsilon of all norms.
        ape: add a learned table of absolute positions.
        patch_norm: normalise patches.
        attn_type: see :func:`~zoo.backbones.hybrid_base.block_kinds`; the letters are :attr:`letters`.
        min_softmax_window: see ``window_size``.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        drop_remainder: leave out rows and columns of the image that make no whole patch rather than pad with zeros.
        norm_outputs: LayerNorm on every map (the form for detection and segmentation); needs ``num_classes=0``.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    #: of blocks with linear attention, and of Swin's own
    letters = "AB"

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
        attn_type: str = "AAAB",
        min_softmax_window: int = 7,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        norm_outputs: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        depths = list(depths)
        n = len(depths)
        num_heads = per_stage("num_heads", num_heads, n)
        kinds = block_kinds(attn_type, depths, self.letters)
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

        def block(i: int, j: int) -> HybridSwinBlock:
            dim, grid, linear = dims[i], self.grids[i], kinds[i][j] == self.letters[0]
            window = window_size if linear else max(min_softmax_window, window_size // 8)
            shift = window // 2 if j % 2 else 0
            if min(grid) <= window:
                window, shift = min(grid), 0
            mixer: nn.Module
            if linear:
                whole = grid == (window, window)
                mixer = self.linear_mixer(i, dim, num_heads[i], window, shift, qkv_bias, whole)
            else:
                mixer = WindowAttention(dim, num_heads[i], window, shift, qkv_bias, qk_scale=qk_scale)
            record = self.shift_record(grid, window) if shift else None
            return HybridSwinBlock(dim, mixer, record, mlp_ratio, rates[i][j], norm_eps)

        stem = ConvEmbed(
            PatchConv(in_chans, embed_dim, patch_size, drop_remainder),
            nn.LayerNorm(embed_dim, eps=norm_eps) if patch_norm else None,
            TokenPositions(self.grids[0], embed_dim) if ape else None,
        )
        self.embeds = nn.ModuleList([stem, *(PatchMerging(dims[i], norm_eps) for i in range(n - 1))])
        self.stages = nn.ModuleList(nn.ModuleList(block(i, j) for j in range(depths[i])) for i in range(n))
        self._finish(depths, head_norm_eps=norm_eps, norm_outputs=norm_outputs)

    def linear_mixer(
        self, stage: int, dim: int, num_heads: int, window: int, shift: int, qkv_bias: bool, whole_map: bool
    ) -> nn.Module:
        """The linear attention of a block; ``whole_map`` where the window covers the map that it was made for."""
        raise NotImplementedError

    def shift_record(self, grid: tuple[int, int], window: int) -> tuple[int, ...]:
        """What a shifted block keeps of its windows; see :class:`HybridSwinBlock`."""
        return grid


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
