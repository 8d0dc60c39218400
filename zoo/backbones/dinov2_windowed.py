"""DINOv2 with windows: a plain vision transformer of which most blocks attend inside windows of the image.

DINOv2: Learning Robust Visual Features without Supervision (arXiv:2304.07193); the windows are RF-DETR's
(arXiv:2511.09554). Authors' code: github.com/roboflow/rf-detr (Apache-2.0); this follows the paper and recorded
results.

The windows (a grid of ``num_windows`` x ``num_windows``, each with a class token of its own) stay apart from the
patches to the end: a global block only lets their tokens see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import Backbone
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.padding import pad_chw
from zoo.layers.token_linear import TokenLinear
from zoo_kernels.dense_attention import dense_attention


class GatedMlp(nn.Module):
    """SwiGLU as DINOv2-giant has it: two thirds of the hidden channels, rounded up to a multiple of 8.

    Args:
        dim: channels in and out.
        hidden: channels that a plain perceptron would have in between.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.fc1 = TokenLinear(dim, 2 * hidden)
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C] -> [..., C]``."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and perceptron, each normalised first and scaled by a learned factor for each channel.

    Args:
        dim: channels C.
        num_heads: attention heads.
        hidden: hidden channels of the perceptron.
        qkv_bias: queries, keys and values have a bias.
        gated: the perceptron is a :class:`GatedMlp`.
        scale: initial value of the factors.
        drop_path: stochastic depth.
        eps: of the norms.
    """

    no_decay = ("gamma1", "gamma2")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        qkv_bias: bool = True,
        gated: bool = False,
        scale: float = 1.0,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"embed_dim={dim} must be a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), scale))
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp: nn.Module = GatedMlp(dim, hidden) if gated else Mlp(dim, hidden)
        self.gamma2 = nn.Parameter(torch.full((dim,), scale))
        self.drop_path = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, C]``."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B, N, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, d]
        return self.proj(dense_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, windows: int) -> Tensor:
        """Tokens ``[B * windows, N, C]``; with ``windows > 1`` those of all windows of an image see each other."""
        seen = self.norm1(x).unflatten(0, (-1, windows)).flatten(1, 2)  # [B, windows * N, C]
        attended = self.attend(seen).unflatten(1, (windows, -1)).flatten(0, 1)
        x = x + self.drop_path(self.gamma1 * attended)
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


class WindowedDINOv2(Backbone):
    """DINOv2 whose blocks attend inside windows, except for some.

    An image whose sides are no multiples of ``patch_size * num_windows`` is padded with zeros at the right and bottom,
    and the maps are those of the padded image.

    Args:
        embed_dim: channels C.
        depth: blocks; a stage is a block.
        num_heads: attention heads.
        patch_size: pixels a side of a patch, the stride of all maps.
        table_size: positions a side of the learned table, interpolated (bicubic, antialiased) to other maps.
        num_windows: windows a side.
        global_blocks: blocks, counted from 0, whose tokens see all windows; numbers without a block have no effect.
        out_indices: blocks whose outputs are given, normalised; blocks after the last of them are kept, not run.
        registers: register tokens of every window.
        mlp_ratio: hidden channels of the perceptrons over ``embed_dim``.
        qkv_bias: queries, keys and values have a bias.
        gated: perceptrons are gated (SwiGLU), as in the giant model.
        layer_scale: initial value of the factors of the branches.
        norm_eps: of all norms.
        drop_path_rate: stochastic depth of the last block, from 0 linearly.
        mask_token: hold the token that stands for hidden patches in DINOv2's training, which is not run here.
        num_classes: 0 for maps; otherwise a linear classifier reads the class token and the mean patch.
        in_chans: channels of the image.
        frozen_stages: -1 for none, 0 for the embedding, n for it and the first n blocks.
        grad_checkpointing: compute blocks again in the backward pass instead of keeping their activations.

    Raises:
        ValueError: fewer than one window, an ``embed_dim`` that the heads do not divide, ``out_indices`` outside.
    """

    no_decay = ("cls_token", "position", "register_tokens", "mask_token")

    def __init__(
        self,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        patch_size: int = 14,
        table_size: int = 37,
        num_windows: int = 1,
        global_blocks: Sequence[int] = (),
        out_indices: Sequence[int] = (2, 5, 8, 11),
        registers: int = 0,
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
        gated: bool = False,
        layer_scale: float = 1.0,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        mask_token: bool = True,
        num_classes: int = 0,
        in_chans: int = 3,
        frozen_stages: int = -1,
        grad_checkpointing: bool = False,
    ):
        super().__init__()
        for name, value in (("num_windows", num_windows), ("patch_size", patch_size), ("table_size", table_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: accepted are whole numbers from 1")
        self._describe(
            [embed_dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.set_grad_checkpointing(grad_checkpointing)
        self.patch_size, self.num_windows, self.registers = patch_size, num_windows, registers
        self.global_blocks = frozenset(global_blocks)
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.position = nn.Parameter(torch.zeros(1, 1 + table_size**2, embed_dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, embed_dim)) if registers else None
        # A parameter for the sake of checkpoints and of the published counts of parameters.
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim), requires_grad=False) if mask_token else None
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, int(embed_dim * mlp_ratio), qkv_bias, gated, layer_scale, rate, norm_eps)
            for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.head = TokenLinear(2 * embed_dim, num_classes) if num_classes else nn.Identity()
        self.init_weights()
        self._leave_out_unused()

    def init_weights(self) -> None:
        """Truncated normal weights, zero biases, as DINOv2's authors begin."""
        for m in self.modules():
            if isinstance(m, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(m.weight, std=0.02)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        for token in (self.cls_token, self.position, self.register_tokens):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def _leave_out_unused(self) -> None:
        """Blocks that no output depends on take no gradient (else parallel training would wait for it)."""
        for block in self.blocks[self._run_until() :]:
            block.requires_grad_(False)

    def _run_until(self) -> int:
        return len(self.blocks) if self.num_classes else self.out_indices[-1] + 1

    def positions(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The table for a map of this many patches: class token ``[1, 1, C]`` and patches ``[1, H, W, C]``."""
        table = self.position
        side = round((table.shape[1] - 1) ** 0.5)
        patches = table[:, 1:].unflatten(1, (side, side))  # [1, S, S, C]
        if (height, width) != (side, side):
            # In float32: half-precision interpolation is not defined everywhere, and the table is small.
            planes = F.interpolate(
                patches.permute(0, 3, 1, 2).float(),
                size=(height, width),
                mode="bicubic",
                align_corners=False,
                antialias=True,
            )
            patches = planes.permute(0, 2, 3, 1).to(table.dtype)
        return table[:, :1], patches

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images ``[B, 3, H, W]`` to the tokens of all windows ``[B * windows, 1 + registers + N, C]`` and the size
        of the map."""
        n = self.num_windows
        x = self.patch_embed(pad_chw(x, (self.patch_size * n, self.patch_size * n))).permute(0, 2, 3, 1)  # [B, H, W, C]
        B, H, W, C = x.shape
        token, patches = self.positions(H, W)
        x = (x + patches).view(B, n, H // n, n, W // n, C).transpose(2, 3)
        x = x.reshape(B * n * n, (H // n) * (W // n), C)
        first = [(self.cls_token + token).expand(B * n * n, -1, -1)]
        if self.register_tokens is not None:
            first.append(self.register_tokens.expand(B * n * n, -1, -1))
        return torch.cat([*first, x], dim=1), (H, W)

    def to_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Normalised tokens of all windows to the map ``[B, C, H, W]``."""
        n, (H, W) = self.num_windows, size
        x = tokens[:, 1 + self.registers :].reshape(-1, n, n, H // n, W // n, tokens.shape[-1])
        return x.transpose(2, 3).reshape(-1, H, W, tokens.shape[-1]).permute(0, 3, 1, 2).contiguous()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Any]:
        x, size = self.embed(x)
        maps: list[Tensor] = [x.new_empty(0)] * len(self.blocks)
        for i, block in enumerate(self.blocks[: self._run_until()]):
            x = self.run_block(block, x, self.num_windows**2 if i in self.global_blocks else 1)
            if i in self.out_indices:
                maps[i] = self.to_map(self.norm(x), size)
        return maps, x

    def forward_head(self, trunk: Any) -> Tensor:
        tokens = self.norm(trunk).unflatten(0, (-1, self.num_windows**2))  # [B, windows, N, C]
        whole, patches = tokens[:, :, 0].mean(1), tokens[:, :, 1 + self.registers :].mean((1, 2))
        pooled = torch.cat([whole, patches], dim=-1)
        return self.head(pooled) if self.num_classes else pooled

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        dim = self.patch_embed.out_channels
        self.head = TokenLinear(2 * dim, num_classes) if num_classes else nn.Identity()
        self.blocks.requires_grad_(True)
        self._leave_out_unused()

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed], *([block] for block in self.blocks)]

    def freeze(self) -> None:
        super().freeze()
        for token in (self.cls_token, self.position, self.register_tokens):
            if token is not None:
                token.requires_grad_(False)

    def num_layers(self) -> int:
        return len(self.blocks) + 2

    def layer_id(self, name: str) -> int:
        if name.startswith("blocks."):
            return 1 + int(name.split(".")[1])
        return self.num_layers() - 1 if name.startswith(("norm.", "head.")) else 0
