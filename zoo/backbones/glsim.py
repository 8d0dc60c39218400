"""GLSim: a vision transformer that looks again at the part of the image that is most like the whole.

Global-Local Similarity for Efficient Fine-Grained Image Recognition with Vision Transformers (arXiv 2407.12891).
Authors'
code: github.com/arkel23/GLSim (no licence; this follows the paper and recorded results). Differences: every image size
is accepted, and the crops of a batch are made together, without leaving the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.base import Backbone
from zoo.backbones.hybrid_base import patch_chain
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.token_linear import TokenLinear
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.softmax import SoftmaxAttention
from zoo.registry import register_model, variant

METRICS = ("cos", "l1", "l2")
CLASSIFIERS = ("cls", "avg_cls", "max_cls")


class GLSimBlock(nn.Module):
    """Full attention and MLP over ``[B, N, C]``, with dropout or stochastic depth (``drop_path`` above 0) after
    each."""

    def __init__(self, dim: int, num_heads: int, hidden: int, norm_eps: float, drop_rate: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SoftmaxAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden)
        self.drop = DropPath(drop_path) if drop_path > 0 else nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)[:, None])[:, 0])  # attention knows no positions: a map of one row
        return x + self.drop(self.mlp(self.norm2(x)))


def similarity(whole: Tensor, parts: Tensor, metric: str) -> Tensor:
    """How alike ``[B, 1, C]`` and each of ``[B, N, C]`` are, ``[B, N]``, larger for more alike (section 3.2).

    "cos" is the cosine; "l1" and "l2" minus the mean absolute or squared difference.
    """
    if metric == "cos":
        return F.cosine_similarity(whole, parts, dim=-1)
    difference = whole - parts
    return -(difference.abs() if metric == "l1" else difference.square()).mean(-1)


def _resample(x: Tensor, axis: int, first: Tensor, length: Tensor, size: int) -> Tensor:
    """``[B, C, H, W]``: the ``length`` entries from ``first`` along an axis (2 or 3), linearly resized to ``size``.

    First and last entries stay first and last (``align_corners``); ``first`` and ``length`` are ``[B]`` int64.
    """
    step = (length - 1).to(torch.float32) / max(1, size - 1)
    place = step[:, None] * torch.arange(size, device=x.device)  # [B, size]
    low = torch.minimum(place.long(), length[:, None] - 1)
    high = torch.minimum(low + 1, length[:, None] - 1)
    shape = (x.shape[0], 1, size, 1) if axis == 2 else (x.shape[0], 1, 1, size)
    full = [size if d == axis else n for d, n in enumerate(x.shape)]
    a, b = (x.gather(axis, (first[:, None] + i).reshape(shape).expand(full)) for i in (low, high))
    share = (place - low).reshape(shape).to(x.dtype)
    return a * (1 - share) + b * share


def similarity_crops(images: Tensor, alike: Tensor, grid: tuple[int, int], patch: int, top: int) -> Tensor:
    """Cut from each image the box around its ``top`` most alike patches and enlarge it to the image's size (eq. 4-6).

    As the authors have it, a box ends where its last patch begins, and is at least a patch wide.

    Args:
        images: ``[B, C, H, W]``.
        alike: ``[B, gh*gw]``, larger for more alike.
        grid: (gh, gw).
        patch: side of a patch in pixels.
        top: how many patches.
    """
    chosen = alike.topk(min(top, alike.shape[1]), dim=1).indices
    H, W = images.shape[2], images.shape[3]
    out = images
    for axis, index, size in ((2, chosen // grid[1], H), (3, chosen % grid[1], W)):
        first = index.amin(1) * patch
        end = torch.maximum(index.amax(1) * patch, first + patch).clamp_max(size)
        out = _resample(out, axis, first, end - first, size)
    return out


class GLSim(Backbone):
    """GLSim; every block is a stage of stride ``patch_size``. Without ``crops`` a plain vision transformer.

    Args:
        img_size: image size that positions are made for, a number or (height, width).
        patch_size: pixels along the side of a token.
        in_chans: channels of the image.
        num_classes: classes; 0 for features (without crops and aggregator, which only the classifier reads).
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        mlp_dim: hidden width of the MLPs.
        crops: look again at the crop around the patches most alike to the class token.
        dynamic_top: how many patches.
        sim_metric: "cos", "l1" or "l2".
        reducer: only the class tokens of image and crop go on, instead of all tokens.
        representation_size: their width from there on; None for ``embed_dim``.
        aggregator: blocks that mix what goes on; 0 for none. Their heads have 64 channels.
        aggregator_norm: a norm after them.
        classifier: classify the first token ("cls"), or take mean or largest logits of all ("avg_cls", "max_cls").
        positions: add a learned position to each token.
        encoder_norm: a norm after the blocks.
        spare_token: keep a parameter that nothing reads, which the authors' checkpoints have.
        norm_eps: epsilon of the norms.
        drop_rate: dropout after attention and MLP, where ``drop_path_rate`` is 0.
        drop_path_rate: stochastic depth, the same in every block.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 3, figure 2.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        crops: bool = True,
        dynamic_top: int = 8,
        sim_metric: str = "cos",
        reducer: bool = True,
        representation_size: int | None = None,
        aggregator: int = 1,
        aggregator_norm: bool = True,
        classifier: str = "cls",
        positions: bool = True,
        encoder_norm: bool = True,
        spare_token: bool = False,
        norm_eps: float = 1e-12,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if sim_metric not in METRICS:
            raise ValueError(f"sim_metric={sim_metric!r}: accepted are {', '.join(map(repr, METRICS))}")
        if classifier not in CLASSIFIERS:
            raise ValueError(f"classifier={classifier!r}: accepted are {', '.join(map(repr, CLASSIFIERS))}")
        width = representation_size or embed_dim
        if width != embed_dim and not reducer:
            raise ValueError(f"representation_size={width} needs reducer=True; without it the width is {embed_dim}")
        if aggregator and width < 64:
            raise ValueError(f"representation_size={width}: an aggregator needs 64 channels or more, those of a head")
        if dynamic_top < 1:
            raise ValueError(f"dynamic_top={dynamic_top}: accepted are numbers from 1")
        self._describe(
            [embed_dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        self.depth, self.patch_size, self.embed_dim = depth, patch_size, embed_dim
        self.crops, self.dynamic_top, self.sim_metric = crops, dynamic_top, sim_metric
        self.reducer, self.width, self.classifier = reducer, width, classifier
        self._with = dict(norm_eps=norm_eps, drop_rate=drop_rate, drop_path=drop_path_rate)
        self._encoder_norm, self._aggregator, self._aggregator_norm = encoder_norm, aggregator, aggregator_norm
        grid = patch_chain(to_pair(img_size, "img_size"), [patch_size], drop_remainder)[0]
        self.patch_embed = PatchConv(in_chans, embed_dim, patch_size, drop_remainder)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = TokenPositions(grid, embed_dim, prefix=1) if positions else None
        self.blocks = nn.ModuleList(GLSimBlock(embed_dim, num_heads, mlp_dim, **self._with) for _ in range(depth))
        self.spare_token = nn.Parameter(torch.zeros(1, 1, embed_dim), requires_grad=False) if spare_token else None
        self.no_decay = ("cls_token", "spare_token")
        self._make_head(num_classes)
        self.apply(_init_weights)
        self._zero_head()
        self.freeze()

    def _make_head(self, num_classes: int) -> None:
        """What only the classifier reads: norm, aggregator, classifier."""
        eps, depth = self._with["norm_eps"], self._aggregator if num_classes else 0
        self.num_features = self.width if num_classes else self.embed_dim
        self.norm = nn.LayerNorm(self.embed_dim, eps=eps) if num_classes and self._encoder_norm else None
        resize = num_classes and self.width != self.embed_dim
        self.resize = TokenLinear(self.embed_dim, self.width) if resize else None
        self.aggregator = nn.ModuleList(
            GLSimBlock(self.width, self.width // 64, 4 * self.width, **self._with) for _ in range(depth)
        )
        self.aggregator_norm = nn.LayerNorm(self.width, eps=eps) if depth and self._aggregator_norm else None
        self.head = TokenLinear(self.width, num_classes) if num_classes else None

    @torch.no_grad()
    def _zero_head(self) -> None:
        if self.head is not None:
            self.head.weight.zero_()
            self.head.bias.zero_()

    def block_tokens(self, x: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Tokens ``[B, 1 + H*W, C]`` after every block, class token first, and the size (H, W) of their map."""
        x = self.patch_embed(x)  # [B, C, H, W]
        size = (x.shape[2], x.shape[3])
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        if self.pos_embed is not None:
            tokens = self.pos_embed(tokens, size)
        found = []
        for block in self.blocks:
            tokens = self.run_block(block, tokens)
            found.append(tokens)
        return found, size

    def normed(self, tokens: Tensor) -> Tensor:
        """Tokens after the encoder's norm, where there is one."""
        return tokens if self.norm is None else self.norm(tokens)

    @torch.no_grad()
    def crop(self, images: Tensor, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """The part of each image to look at again, enlarged, from its normed tokens ``[B, 1 + H*W, C]``."""
        alike = similarity(tokens[:, :1], tokens[:, 1:], self.sim_metric)
        return similarity_crops(images, alike, size, self.patch_size, self.dynamic_top)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Any]:
        tokens, size = self.block_tokens(x)
        return [t[:, 1:].transpose(1, 2).unflatten(2, size) for t in tokens], (x, tokens[-1], size)

    def forward_head(self, trunk: Any) -> Tensor:
        images, tokens, size = trunk
        if self.head is None:
            return tokens[:, 0]
        tokens = self.normed(tokens)
        parts = [tokens]
        if self.crops:
            again, _ = self.block_tokens(self.crop(images, tokens, size))
            parts.append(self.normed(again[-1]))
        if self.reducer:
            parts = [p[:, :1] for p in parts]
        out = torch.cat(parts, dim=1)
        if self.resize is not None:
            out = self.resize(out)
        for block in self.aggregator:
            out = block(out)
        if self.aggregator_norm is not None:
            out = self.aggregator_norm(out)
        if self.classifier == "cls":
            return self.head(out[:, 0])
        logits = self.head(out)  # [B, N, classes]
        return logits.mean(1) if self.classifier == "avg_cls" else logits.amax(1)

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        kept = (self.norm, self.resize, self.aggregator, self.aggregator_norm) if self.head is not None else None
        self.num_classes = num_classes
        self._make_head(num_classes)
        if self.head is None:
            return
        if kept is not None:
            self.norm, self.resize, self.aggregator, self.aggregator_norm = kept
        else:
            self.aggregator.apply(_init_weights)
        self._zero_head()
        self.to(self.cls_token.device, self.cls_token.dtype)

    def stage_modules(self) -> list[list[nn.Module]]:
        stem: list[nn.Module] = [m for m in (self.patch_embed, self.pos_embed) if m is not None]
        return [stem, *([b] for b in self.blocks)]

    def num_layers(self) -> int:
        return self.depth + 2

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed", "pos_embed", "cls_token", "spare_token")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.depth + 1


def _init_weights(m: nn.Module) -> None:
    if isinstance(m, nn.Linear):
        nn.init.xavier_uniform_(m.weight)
        nn.init.normal_(m.bias, std=1e-6)


@register_model(task="classification", family="glsim", input_size=224)
@variant(GLSim)
def glsim_vit_t16() -> dict[str, Any]:
    """GLSim over ViT-Ti/16, 6.2 M parameters."""
    return dict(embed_dim=192, num_heads=3, mlp_dim=768, spare_token=True)


@register_model(task="classification", family="glsim", input_size=224)
@variant(GLSim)
def glsim_vit_s16() -> dict[str, Any]:
    """GLSim over ViT-S/16, 23.8 M parameters."""
    return dict(embed_dim=384, num_heads=6, mlp_dim=1536, spare_token=True)


@register_model(task="classification", family="glsim", input_size=224)
@variant(GLSim)
def glsim_vit_b16() -> dict[str, Any]:
    """GLSim over ViT-B/16, 93.7 M parameters."""
    return dict(spare_token=True)
