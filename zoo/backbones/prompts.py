"""Visual prompts: learned tokens tune a frozen vision transformer.

VPT: Visual Prompt Tuning (ECCV 2022, arXiv 2203.12119, eq. 4-8); TCPA: Token Coordinated Prompt Attention is Needed for
Visual Prompting (ICML 2025, arXiv 2505.02406, section 3). The host is the plain ViT of :mod:`zoo.backbones.hosts`; no
authors' implementation was compared, the equations are tested. Only prompts and classifier are trained; what has been
learned is saved alone by :func:`zoo.layers.tuning.tuned_state_dict`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.hosts import ViT
from zoo.layers.padding import pad_chw
from zoo.layers.records import Recorder
from zoo.mixers.softmax import SoftmaxAttention
from zoo.registry import register_model, variant
from zoo_kernels.dense_attention import dense_attention


class PromptTuned(ViT):
    """A ViT with a class token, frozen but for its prompts (``self.prompts``) and its classifier.

    Args:
        tune_trunk: train the whole network, too.
        vit: arguments of :class:`~zoo.backbones.hosts.ViT`; ``class_token`` is True by default.
    """

    #: parameters that a pretrained trunk's checkpoint does not have
    added_parameters: ClassVar[tuple[str, ...]] = ("prompts.",)
    prompts: Any

    def __init__(self, tune_trunk: bool = False, **vit: Any):
        super().__init__(**{"class_token": True, **vit})
        self.tune_trunk = tune_trunk

    def freeze(self) -> None:
        super().freeze()
        if not hasattr(self, "prompts") or self.tune_trunk:
            return
        for name, child in self.named_children():
            if name not in ("prompts", "head"):
                child.eval()
                child.requires_grad_(False)
        if self.cls_token is not None:
            self.cls_token.requires_grad_(False)

    def train(self, mode: bool = True) -> PromptTuned:
        super().train(mode)
        if mode:
            self.freeze()
        return self

    def reset_classifier(self, num_classes: int) -> None:
        super().reset_classifier(num_classes)
        self.freeze()

    def embedded(self, x: Tensor) -> Tensor:
        """The map ``[B, H, W, C]`` that goes into the first block."""
        x = self.patch_embed(pad_chw(x, (self.patch_size, self.patch_size)))
        return self.pos_embed(x.permute(0, 2, 3, 1))

    def layer_id(self, name: str) -> int:
        if not name.startswith("prompts"):
            return super().layer_id(name)
        return self.num_layers() - 1  # new, like the classifier


class Prompts(nn.Module):
    """Learned tokens in front of the map, for the first block or for each."""

    no_decay = ("tokens",)

    def __init__(self, layers: int, count: int, dim: int, dropout: float, patch_values: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(layers, count, dim))
        self.dropout = dropout
        bound = math.sqrt(6 / (patch_values + dim))  # Xavier's, as for a patch embedding
        nn.init.uniform_(self.tokens, -bound, bound)

    def of_layer(self, layer: int, batch: int) -> Tensor:
        """Prompts of a block for ``batch`` images, ``[B, P, C]``."""
        return F.dropout(self.tokens[layer], self.dropout, self.training).expand(batch, -1, -1)


class VPT(PromptTuned):
    """Visual prompt tuning, shallow or deep.

    Args:
        num_prompts: prompts P of a layer.
        deep: new prompts for every block, whose results are dropped after it; otherwise the first block's go through
            all.
        prompt_dropout: dropout of the prompts, in training.
        tune_trunk: train the whole network, too.
        vit: arguments of :class:`~zoo.backbones.hosts.ViT`.

    Raises:
        ValueError: no prompts, or a mixer that takes no prefix tokens.

    Source: eq. 4-5 (shallow), eq. 6-8 (deep).
    """

    def __init__(
        self,
        num_prompts: int = 10,
        deep: bool = True,
        prompt_dropout: float = 0.0,
        tune_trunk: bool = False,
        **vit: Any,
    ):
        super().__init__(tune_trunk, **vit)
        if num_prompts < 1:
            raise ValueError(f"num_prompts={num_prompts}: accepted are numbers from 1")
        first: Any = self.blocks[0]
        if not first.attn.takes_prefix:
            raise ValueError(f"mixer {type(first.attn).__name__} takes no prefix tokens, which prompts are")
        layers = len(self.blocks) if deep else 1
        self.deep, self.num_prompts = deep, num_prompts
        patch_values = self.in_chans * self.patch_size**2
        self.prompts = Prompts(layers, num_prompts, self.stage_channels[0], prompt_dropout, patch_values)
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.embedded(x)
        B = x.shape[0]
        first = x.new_empty(B, 0, x.shape[-1]) if self.cls_token is None else self.cls_token.expand(B, -1, -1)
        prefix = torch.cat([first, self.prompts.of_layer(0, B)], dim=1)  # [B, (1) + P, C]
        kept = first.shape[1]
        maps = []
        for i, block in enumerate(self.blocks):
            if i and self.deep:
                prefix = torch.cat([prefix[:, :kept], self.prompts.of_layer(i, B)], dim=1)
            x, prefix = self.run_block(block, x, prefix)
            maps.append(x.permute(0, 3, 1, 2))
        return maps, prefix[:, :kept] if kept else x


class PromptPool(nn.Module):
    """Prompts of one role, found by keys: for each layer ``pool`` groups of ``length`` prompts.

    Args:
        layers, pool, length, dim: sizes.
        topk: groups that a token gets.
    """

    no_decay = ("keys", "tokens")

    def __init__(self, layers: int, pool: int, length: int, dim: int, topk: int):
        super().__init__()
        if not 1 <= topk <= pool or length < 1:
            raise ValueError(f"topk={topk}, pool={pool}, length={length}: accepted are 1 <= topk <= pool, length >= 1")
        self.topk, self.length = topk, length
        self.keys = nn.Parameter(torch.empty(layers, pool, dim).uniform_(-1, 1))
        self.tokens = nn.Parameter(torch.empty(layers, pool, length, dim).uniform_(-1, 1))

    def match(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Which prompts each token gets, bool ``[B, N, pool * length]``, and its mean distance to their keys.

        The groups whose keys have the highest cosine with the token ``[B, N, C]`` are taken; the distance is one minus
        that cosine.
        """
        cosine = F.normalize(x, dim=-1) @ F.normalize(self.keys[layer], dim=-1).T.to(x.dtype)  # [B, N, pool]
        best = cosine.topk(self.topk, dim=-1)
        chosen = torch.zeros_like(cosine, dtype=torch.bool).scatter(-1, best.indices, True)
        return chosen.repeat_interleave(self.length, dim=-1), (1 - best.values).mean()


class CoordinatedPrompts(nn.Module):
    """The prompts of both roles and their dropout."""

    def __init__(self, cls: PromptPool, image: PromptPool, dropout: float):
        super().__init__()
        self.cls, self.image = cls, image
        self.dropout = nn.Dropout(dropout)

    def forward(self, layer: int, batch: int) -> Tensor:
        """All prompts of a layer, ``[B, Pc + Pi, C]``, the class token's first."""
        tokens = torch.cat([self.cls.tokens[layer].flatten(0, 1), self.image.tokens[layer].flatten(0, 1)])
        return self.dropout(tokens.expand(batch, -1, -1))


class TCPA(PromptTuned, Recorder):
    """Token coordinated prompt attention: the class token and each position attend to prompts of their own.

    Args:
        pool_cls, pool_image: groups of prompts for the class token and for positions.
        length_cls, length_image: prompts of a group.
        topk_cls, topk_image: groups that a token attends to, those whose keys are most like it.
        token_level: choose groups for each token; otherwise each role attends to all of its prompts (R-TCPA).
        prompt_dropout: dropout of the prompts, in training.
        tune_trunk: train the whole network, too.
        vit: arguments of :class:`~zoo.backbones.hosts.ViT`, whose mixer must be softmax attention.

    Records ``matching``, the sum over the layers of the mean distance of tokens to the keys of their prompts, by which
    alone keys are learned (:class:`zoo.classification.auxiliary.MatchingLoss`).

    Raises:
        ValueError: sizes that do not fit, another mixer, or no class token.

    Source: section 3.2 (roles), section 3.3 (tokens).
    """

    records = ("matching",)

    def __init__(
        self,
        pool_cls: int = 10,
        pool_image: int = 20,
        length_cls: int = 1,
        length_image: int = 1,
        topk_cls: int = 5,
        topk_image: int = 5,
        token_level: bool = True,
        prompt_dropout: float = 0.0,
        tune_trunk: bool = False,
        **vit: Any,
    ):
        super().__init__(tune_trunk, **vit)
        if any(not isinstance(b.attn, SoftmaxAttention) for b in self.blocks):  # type: ignore[union-attr]
            raise ValueError("mixer: token coordinated prompts are defined for softmax attention")
        depth, dim = len(self.blocks), self.stage_channels[0]
        self.token_level = token_level
        self.prompts = CoordinatedPrompts(
            PromptPool(depth, pool_cls, length_cls, dim, topk_cls),
            PromptPool(depth, pool_image, length_image, dim, topk_image),
            prompt_dropout,
        )
        if not token_level:
            for pool in (self.prompts.cls, self.prompts.image):
                del pool.keys  # nothing is chosen
        self._class_token_vector = vit.get("class_token", True)
        if not self._class_token_vector:
            raise ValueError("class_token=False: token coordinated prompts need a class token")
        self.freeze()

    def _allowed(self, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        """Which prompts each token may attend to, bool ``[B or 1, 1, 1 + N, Pc + Pi]``, and the matching distance.

        ``tokens`` is the block's input ``[B, 1 + N, C]``, class token first.
        """
        cls, image = self.prompts.cls, self.prompts.image
        counts = (cls.tokens[0].flatten(0, 1).shape[0], image.tokens[0].flatten(0, 1).shape[0])
        N = tokens.shape[1] - 1
        if self.token_level:
            first, a = cls.match(tokens[:, :1], layer)
            others, b = image.match(tokens[:, 1:], layer)
            distance: Tensor | None = a + b
        else:
            first = torch.ones(1, 1, counts[0], dtype=torch.bool, device=tokens.device)
            others = torch.ones(1, N, counts[1], dtype=torch.bool, device=tokens.device)
            distance = None
        rows = torch.cat([F.pad(first, (0, counts[1])), F.pad(others, (counts[0], 0))], dim=1)
        return rows[:, None], distance

    def _block(self, block: Any, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """A frozen block over ``[B, 1 + N, C]`` with prompts as further keys and values."""
        B, n, _ = tokens.shape
        allowed, distance = self._allowed(tokens, layer)
        sequence = block.norm1(torch.cat([tokens, self.prompts(layer, B).to(tokens.dtype)], dim=1))
        q, k, v = block.attn._qkv(sequence)
        everything = torch.ones(1, 1, n, n, dtype=torch.bool, device=tokens.device)
        mask = torch.cat([everything.expand(allowed.shape[0], -1, -1, -1), allowed], dim=-1)
        out = dense_attention(q[:, :, :n], k, v, bias=mask)
        tokens = tokens + self._drop(block, block.attn.proj(out.transpose(1, 2).flatten(2)))
        tokens = tokens + self._drop(block, block.mlp(block.norm2(tokens)))
        return tokens, tokens.new_zeros(()) if distance is None else distance

    @staticmethod
    def _drop(block: Any, branch: Tensor) -> Tensor:
        return branch if block.drop_path is None else block.drop_path(branch)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.embedded(x)
        size = (x.shape[1], x.shape[2])
        # Without a classifier there is no class token: a token of zeros takes its place.
        first = x.new_zeros(1, 1, x.shape[-1]) if self.cls_token is None else self.cls_token
        tokens = torch.cat([first.expand(x.shape[0], -1, -1), x.flatten(1, 2)], dim=1)
        maps, distances = [], []
        for i, block in enumerate(self.blocks):
            step: Any = partial(self._block, block, layer=i)
            tokens, distance = self.run_block(step, tokens)
            distances.append(distance)
            maps.append(tokens[:, 1:].transpose(1, 2).unflatten(2, size))
        self.keep("matching", torch.stack(distances).sum())
        return maps, tokens[:, :1]


def _base(**own: Any) -> dict[str, Any]:
    return dict(dim=768, num_heads=12, **own)


@register_model(task="classification", family="prompts", input_size=224)
@variant(VPT)
def vpt_shallow_base() -> dict[str, Any]:
    """ViT-B/16 with 10 prompts before the first block; 7,680 parameters and the classifier are trained."""
    return _base(deep=False)


@register_model(task="classification", family="prompts", input_size=224)
@variant(VPT)
def vpt_deep_base() -> dict[str, Any]:
    """ViT-B/16 with 10 prompts in each block; 92,160 parameters and the classifier are trained."""
    return _base(deep=True)


@register_model(task="classification", family="prompts", input_size=224)
@variant(TCPA)
def tcpa_base() -> dict[str, Any]:
    """ViT-B/16 with pools of 10 and 20 prompts in each block; 552,960 parameters and the classifier are trained."""
    return _base()
