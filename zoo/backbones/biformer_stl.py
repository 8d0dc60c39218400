"""BiFormer-STL: bi-level routing attention in the layout of Swin-T, as in the paper's ablation.

BiFormer: Vision Transformer with Bi-Level Routing Attention (CVPR 2023, arXiv 2303.08810, table 4).
Authors' code: github.com/rayleizhu/BiFormer (MIT). Both of the authors' models are here: "bra" (``biformer_stl``) and
"bra_nchw" (``biformer_stl_nchw``); they share parameters and differ on maps that the regions do not divide, and in
what the last stage convolves. Difference: images of every size are accepted (see ``drop_remainder``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from zoo.backbones.biformer import BiFormerBlock, BiFormerTrunk, full_mixer, heads_of
from zoo.layers.layer_norm_2d import LayerNorm2d
from zoo.layers.patch_conv import PatchConv
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.mixers.bra import BiLevelRoutingAttention, RegionRoutingAttention
from zoo.mixers.lepe import LePEAttention
from zoo.registry import register_model, variant

NORMS: dict[str, Callable[..., nn.Module]] = {"BatchNorm2d": nn.BatchNorm2d, "LayerNorm2d": LayerNorm2d}


class BiFormerSTL(BiFormerTrunk):
    """BiFormer in the layout of Swin-T.

    Args:
        depth: blocks of each stage.
        embed_dim: width of each stage.
        num_classes: classes; 0 for features.
        in_chans: channels of the image.
        head_dim: channels of a head in routing stages.
        mlp_ratios: hidden width of the MLPs.
        norm: "BatchNorm2d" or "LayerNorm2d", or a class: the norm of stem, merging layers and head.
        head_norm: the same for the head alone, where it differs.
        routing: "bra" or "bra_nchw", see :mod:`zoo.mixers.bra`.
        n_wins: regions a side, for each stage.
        topks: for each stage the regions that a region attends; with "bra" also 0 (convolution), -1 (full attention)
            and -2 (full attention with LePE of the input); with "bra_nchw" also -1 (full attention with LePE of the
            values, kernel 5).
        side_dwconv: kernel of LePE; 0 for none.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        auto_pad: with "bra", pad maps that ``n_wins`` do not divide; where false they raise.
        drop_remainder: where patches of the stem or of a merging layer do not divide a map, leave its last rows and
            columns out (the authors' way) rather than pad with zeros.
        extra_norms: the dense-prediction form: a norm on the map of each stage, no classifier.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: the authors' ``models/biformer_stl.py`` and ``models/biformer_stl_nchw.py``.
    """

    def __init__(
        self,
        depth: Sequence[int] = (2, 2, 6, 2),
        embed_dim: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 1000,
        in_chans: int = 3,
        head_dim: int = 32,
        mlp_ratios: Sequence[float] | float = 4.0,
        norm: str | Callable[..., nn.Module] = "BatchNorm2d",
        head_norm: str | Callable[..., nn.Module] | None = None,
        routing: str = "bra",
        n_wins: Sequence[int] | int = 7,
        topks: Sequence[int] = (1, 4, 16, -2),
        side_dwconv: int = 5,
        drop_path_rate: float = 0.0,
        auto_pad: bool = True,
        drop_remainder: bool = False,
        extra_norms: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if routing not in ("bra", "bra_nchw"):
            raise ValueError(f"routing={routing!r}: accepted are 'bra' and 'bra_nchw'")
        n = len(embed_dim)
        depth, topks = per_stage("depth", depth, n), per_stage("topks", topks, n)
        n_wins, mlp_ratios = per_stage("n_wins", n_wins, n), per_stage("mlp_ratios", mlp_ratios, n)
        make_norm, make_head_norm = _norm("norm", norm), _norm("head_norm", head_norm or norm)
        self._describe(
            embed_dim,
            [4 * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )

        def mixer(i: int) -> nn.Module:
            dim, topk = embed_dim[i], topks[i]
            if topk > 0 and routing == "bra":
                return BiLevelRoutingAttention(
                    dim, heads_of(dim, head_dim), n_wins[i], topk=topk, side_dwconv=side_dwconv, auto_pad=auto_pad
                )
            if topk > 0:
                return RegionRoutingAttention(
                    dim, heads_of(dim, head_dim), n_wins[i], topk=topk, side_dwconv=side_dwconv
                )
            if routing == "bra":
                return full_mixer(dim, topk, side_dwconv)
            if topk == -1:
                return LePEAttention(dim, side_dwconv=5, lepe_input="v")
            raise ValueError(f"topk={topk}: routing='bra_nchw' accepts positive numbers and -1 (full attention)")

        def downsample(i: int) -> nn.Sequential:
            if i == 0:
                return nn.Sequential(PatchConv(in_chans, embed_dim[0], 4, drop_remainder), make_norm(embed_dim[0]))
            before, after = embed_dim[i - 1], embed_dim[i]
            return nn.Sequential(make_norm(before), PatchConv(before, after, 2, drop_remainder))

        rates = drop_path_rates(drop_path_rate, depth)
        self.downsample_layers = nn.ModuleList(downsample(i) for i in range(n))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                BiFormerBlock(embed_dim[i], mixer(i), mlp_ratio=mlp_ratios[i], drop_path=rates[i][j])
                for j in range(depth[i])
            )
            for i in range(n)
        )
        self._finish(depth, make_head_norm, extra_norms)


def _norm(name: str, norm: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if not isinstance(norm, str):
        return norm
    if norm not in NORMS:
        raise ValueError(f"{name}={norm!r}: accepted are {', '.join(NORMS)} or a class")
    return NORMS[norm]


@register_model(task="classification", family="biformer", input_size=224)
@variant(BiFormerSTL)
def biformer_stl() -> dict[str, Any]:
    """BiFormer-STL, 28.4 M parameters."""
    return dict(routing="bra", topks=(1, 4, 16, -2))


@register_model(task="classification", family="biformer", input_size=224)
@variant(BiFormerSTL)
def biformer_stl_nchw() -> dict[str, Any]:
    """BiFormer-STL with the revised routing, 28.4 M parameters."""
    return dict(routing="bra_nchw", topks=(1, 4, 16, -1))
