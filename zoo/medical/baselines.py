"""MONAI's own networks as baselines: U-Net, DynUNet (nnU-Net's network) and Swin-UNETR, built and called like ours.

Each takes inputs of any size: they are filled up with zeros behind to what the network needs, and its logits are cut
back. MONAI is imported when one of them is built (``pip install attnzoo[medical]``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.layers import check_dims, to_tuple
from zoo.medical.training_losses import halving_losses, need_monai


class MonaiNetwork(nn.Module):
    """A MONAI network with the names that a segmenter reads.

    Args:
        net: from ``[B, in_chans, ...]`` to logits.
        in_chans, num_classes, dims: of it.
        multiples: what the sizes of its inputs have to be multiples of.
        least: what they have to be at least.

    Raises:
        ValueError: an input with another number of channels or dimensions.
    """

    def __init__(
        self,
        net: nn.Module,
        in_chans: int,
        num_classes: int,
        dims: int,
        multiples: Sequence[int],
        least: Sequence[int] | None = None,
    ):
        super().__init__()
        self.net = net
        self.in_chans, self.num_classes, self.dims = in_chans, num_classes, dims
        self.multiples, self.least = tuple(multiples), tuple(least or multiples)

    def run(self, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """What the network gives of the filled-up input, and the slices that cut it back."""
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}: accepted is [B, {self.in_chans}] and {self.dims} sizes"
            )
        sizes = x.shape[2:]
        missing = [max(-(-n // m) * m, low) - n for n, m, low in zip(sizes, self.multiples, self.least)]
        if any(missing):
            x = F.pad(x, [p for m in reversed(missing) for p in (0, m)])
        return self.net(x), (..., *(slice(n) for n in sizes))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits ``[B, num_classes, ...]`` of ``x [B, in_chans, ...]``."""
        logits, whole = self.run(x)
        return logits[whole]


class MonaiUNet(MonaiNetwork):
    """MONAI's residual U-Net.

    Args:
        in_chans: channels of the input.
        num_classes: classes, background included.
        dims: 2 or 3.
        widths: channels of the levels, from fine to coarse.
        strides: from each level to the next; 2 everywhere by default.
        num_res_units: residual units of a level; 0 for plain convolutions.
        norm: "INSTANCE" or "BATCH".
        dropout: its rate.

    Raises:
        ImportError: MONAI is not installed.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        dims: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        strides: Sequence[int] | None = None,
        num_res_units: int = 2,
        norm: str = "INSTANCE",
        dropout: float = 0.0,
    ):
        check_dims(dims)
        need_monai()
        from monai.networks.nets.unet import UNet

        steps = [2] * (len(widths) - 1) if strides is None else list(strides)
        net = UNet(
            spatial_dims=dims,
            in_channels=in_chans,
            out_channels=num_classes,
            channels=tuple(widths),
            strides=steps,
            num_res_units=num_res_units,
            norm=norm,
            dropout=dropout,
        )
        multiple = 1
        for s in steps:
            multiple *= s
        # an instance norm of a single place is refused in training, and there is one norm below the last stride
        super().__init__(net, in_chans, num_classes, dims, (multiple,) * dims, (2 * multiple,) * dims)


class MonaiDynUNet(MonaiNetwork):
    """MONAI's DynUNet: nnU-Net's network, with its deep supervision in training.

    Args:
        in_chans: channels of the input.
        num_classes: classes, background included.
        dims: 2 or 3.
        widths: channels of the levels, from fine to coarse.
        strides: from each level to the next, a number or one for each dimension; 2 everywhere by default.
        kernels: of the levels' convolutions, a number or one for each dimension; 3 everywhere by default.
        deep_supervision: how many coarser levels predict as well in training; 0 for none.
        residual: residual blocks.

    Raises:
        ImportError: MONAI is not installed.
        ValueError: other numbers of strides or kernels than the levels need.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        dims: int = 3,
        widths: Sequence[int] = (32, 64, 128, 256, 320),
        strides: Sequence[int | Sequence[int]] | None = None,
        kernels: Sequence[int | Sequence[int]] | None = None,
        deep_supervision: int = 2,
        residual: bool = False,
    ):
        check_dims(dims)
        need_monai()
        from monai.networks.nets.dynunet import DynUNet

        levels = len(widths)
        steps = [to_tuple(s, dims, "strides") for s in (strides if strides is not None else [2] * (levels - 1))]
        sizes = [to_tuple(k, dims, "kernels") for k in (kernels if kernels is not None else [3] * levels)]
        if len(steps) != levels - 1 or len(sizes) != levels:
            raise ValueError(
                f"{len(steps)} strides and {len(sizes)} kernels: {levels} widths need {levels - 1} and {levels}"
            )
        if not 0 <= deep_supervision <= levels - 2:
            raise ValueError(
                f"deep_supervision={deep_supervision}: accepted are 0 to {levels - 2} with {levels} widths"
            )
        net = DynUNet(
            spatial_dims=dims,
            in_channels=in_chans,
            out_channels=num_classes,
            kernel_size=sizes,
            strides=[(1,) * dims, *steps],
            upsample_kernel_size=steps,
            filters=list(widths),
            deep_supervision=deep_supervision > 0,
            deep_supr_num=max(deep_supervision, 1),
            res_block=residual,
        )
        total = [1] * dims
        for step in steps:
            total = [a * b for a, b in zip(total, step)]
        super().__init__(net, in_chans, num_classes, dims, total, [2 * t for t in total])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits ``[B, num_classes, ...]``; in training with deep supervision those of all levels, enlarged, the finest
        first."""
        found, whole = self.run(x)
        # in training [B, predictions, num_classes, ...]
        return [p[whole] for p in found.unbind(1)] if found.dim() == x.dim() + 1 else found[whole]

    @staticmethod
    def training_losses(
        outputs: Tensor | list[Tensor], target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """The loss of each level's prediction, weighted by 1, 1/2, 1/4 ... over their sum as nnU-Net does."""
        return halving_losses(outputs, target, loss)


class MonaiSwinUNETR(MonaiNetwork):
    """MONAI's Swin-UNETR (arXiv 2201.01266).

    Args:
        in_chans: channels of the input.
        num_classes: classes, background included.
        dims: 2 or 3.
        feature_size: channels of the first stage, a multiple of 12.
        depths, num_heads: blocks and heads of the four stages.
        window_size: of the attention.
        v2: with a residual convolution before each stage (SwinUNETR-V2).

    Raises:
        ImportError: MONAI is not installed.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        dims: int = 3,
        feature_size: int = 24,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        v2: bool = False,
    ):
        check_dims(dims)
        need_monai()
        from monai.networks.nets.swin_unetr import SwinUNETR

        # it reads numbers back from tensors as it is built, which a device without memory cannot give
        with torch.device("cpu"):
            net = SwinUNETR(
                in_channels=in_chans,
                out_channels=num_classes,
                feature_size=feature_size,
                depths=tuple(depths),
                num_heads=tuple(num_heads),
                window_size=window_size,
                spatial_dims=dims,
                use_v2=v2,
            )
        net = net.to(torch.empty(0).device)
        # five halvings; its deepest instance norm needs more than one place
        super().__init__(net, in_chans, num_classes, dims, (32,) * dims, (64,) * dims)


def as_network(net: nn.Module, in_chans: int, num_classes: int, dims: int, multiple: int = 1) -> MonaiNetwork:
    """Any other module as a segmenter's network: a baseline from elsewhere, under the same recipe.

    Args:
        net: from ``[B, in_chans, ...]`` to logits ``[B, num_classes, ...]``.
        in_chans, num_classes, dims: of it.
        multiple: what the sizes of its inputs have to be multiples of.
    """
    return MonaiNetwork(net, in_chans, num_classes, dims, (multiple,) * dims)
