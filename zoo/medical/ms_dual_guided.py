"""MS-Dual-Guided ("DAF stack"): position and channel attention of four scales, twice, guided by a semantic code.

Multi-scale self-guided attention for medical image segmentation (arXiv 1906.02849), section III. Authors' code:
github.com/sinAshish/Multi-Scale-Attention (no licence file). Here the layers that their model has but never calls are
left out unless ``keep_unused``, which their checkpoints need, and so is the download of an ImageNet backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.dual_attention import FuseConvs, GuidedAttention
from zoo.medical.layers import check_divisible, conv_block, resize

SCALES = 4


class ResNeXt(nn.Module):
    """Maps of the four stages of a ResNeXt, of strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image.
        stem: channels of the first convolution.
        planes: widths of the stages, of which each gives four times as many channels.
        layers: blocks of the stages.
        groups: of the 3x3 convolutions.
        base_width: channels of a group where a stage has a width of 64.
    """

    def __init__(
        self,
        in_chans: int = 3,
        stem: int = 64,
        planes: Sequence[int] = (64, 128, 256, 512),
        layers: Sequence[int] = (3, 4, 23, 3),
        groups: int = 32,
        base_width: int = 8,
    ):
        super().__init__()
        if len(planes) != SCALES or len(layers) != SCALES:
            raise ValueError(f"planes={tuple(planes)}, layers={tuple(layers)}: accepted are four of each")
        from torchvision.models import resnet  # takes a second to import, and only this network needs it

        # torchvision's constructor fixes the widths; its own method makes stages of any.
        whole = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], groups=groups, width_per_group=base_width)
        whole.inplanes = stem
        first = nn.Conv2d(in_chans, stem, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(first, nn.BatchNorm2d(stem))
        self.stages = nn.ModuleList(
            whole._make_layer(resnet.Bottleneck, width, count, stride=1 if i == 0 else 2)
            for i, (width, count) in enumerate(zip(planes, layers))
        )
        self.out_channels = tuple(4 * p for p in planes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images ``[B, in_chans, H, W]`` to four maps."""
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class SemanticModule(nn.Module):
    """Encoder and decoder of a map: a code of it, a quarter as high and wide, and the map decoded from the code.

    Args:
        dim: channels of the map; the code has four times as many.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.enc1, self.enc2 = conv_block(2, dim, 2 * dim), conv_block(2, 2 * dim, 4 * dim)
        self.dec2 = nn.Sequential(conv_block(2, 4 * dim, 2 * dim), nn.ConvTranspose2d(2 * dim, 2 * dim, 2, 2))
        self.dec1 = nn.Sequential(conv_block(2, 2 * dim, dim), nn.ConvTranspose2d(dim, dim, 2, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, dim, H, W]``, H and W even, to the code as one vector of the batch and a map of the same shape."""
        first = F.max_pool2d(self.enc1(x), 2)
        code = F.max_pool2d(self.enc2(first), 2)
        return code.reshape(-1), self.dec1(resize(self.dec2(code), first.shape[2:]))


class _Guide(nn.Module):
    """One stack: attention of four scales, finest first, guided by one semantic module that they share."""

    def __init__(self, dim: int):
        super().__init__()
        self.semantic = SemanticModule(2 * dim)
        self.position = nn.ModuleList(GuidedAttention(dim, True) for _ in range(SCALES))
        self.channel = nn.ModuleList(GuidedAttention(dim, False) for _ in range(SCALES))
        self.guide = nn.ModuleList(nn.Conv2d(2 * dim, dim, 3, padding=1) for _ in range(SCALES))
        self.project = nn.ModuleList(nn.Conv2d(dim, dim, 1) for _ in range(SCALES))

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Maps ``[B, 2 dim, h, w]`` to attended maps ``[B, dim, h, w]``, codes, and decoded maps."""
        attended: list[Tensor] = []
        codes: list[Tensor] = []
        decoded: list[Tensor] = []
        # From coarse to fine, as the authors: the shared module's running statistics depend on the order.
        for i in reversed(range(SCALES)):
            code, back = self.semantic(maps[i])
            both = self.channel[i](maps[i]) + self.position[i](maps[i])
            attended.insert(0, self.project[i](both * self.guide[i](back)))
            codes.insert(0, code)
            decoded.insert(0, back)
        return attended, codes, decoded


class MSDualGuided(nn.Module):
    """Segmentation by two stacks of guided attention over a ResNeXt.

    Args:
        in_chans: channels of the image.
        num_classes: classes, background included.
        dim: channels of the projected scales, at least 8.
        backbone: arguments of :class:`ResNeXt`; those of ResNeXt-101 (32 x 8d) by default.
        keep_unused: also hold the layers that the authors' model has and does not call, for their checkpoints.

    Raises:
        ValueError: an image whose sizes are no multiples of 8.
    """

    dims = 2
    #: what the sizes of an input have to be multiples of
    size_multiple = 8
    #: the authors train with cross entropy
    default_loss: ClassVar[dict[str, Any]] = {"type": "zoo.medical.losses.voxel_cross_entropy"}

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 5,
        dim: int = 64,
        backbone: Mapping[str, Any] | None = None,
        keep_unused: bool = False,
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.backbone = ResNeXt(in_chans, **(backbone or {}))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, 1), nn.BatchNorm2d(dim), nn.PReLU()) for c in self.backbone.out_channels
        )
        self.fuse = FuseConvs(SCALES * dim, dim)
        self.stacks = nn.ModuleList(_Guide(dim) for _ in range(2))
        self.predict = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(dim, num_classes, 1) for _ in range(SCALES)) for _ in range(2)
        )
        if keep_unused:
            self.unused = self._unused(dim)
        for name, part in self.named_modules():
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)) and not name.startswith("backbone"):
                nn.init.xavier_normal_(part.weight)
            elif isinstance(part, nn.BatchNorm2d) and not name.startswith("backbone"):
                nn.init.normal_(part.weight, 1.0, 0.02)

    @staticmethod
    def _unused(dim: int) -> nn.ModuleDict:
        def four(make: Callable[[], nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(make() for _ in range(SCALES))

        parts = {
            "attention": four(lambda: FuseConvs(2 * dim, dim, softmax=True)),
            "refine": four(lambda: FuseConvs(2 * dim, dim)),
            "conv6": four(lambda: nn.Conv2d(dim, dim, 1)),
            "conv7": four(lambda: nn.Conv2d(dim, dim, 1)),
        }
        unused = nn.ModuleDict(parts)
        return unused.requires_grad_(False)

    def outputs(self, x: Tensor) -> dict[str, list[Tensor]]:
        """What both stacks make of an image ``[B, in_chans, H, W]``.

        Returns:
            Lists whose entries run over the stacks, and in each over the scales from fine to coarse: ``logits`` of
            the image's size, 8; ``codes``, the semantic vectors, 8; ``inputs`` and ``decoded``, what the semantic
            module was given and gave back, 8. The first stack's logits are those of its unattended scales.
        """
        check_divisible(x, (8, 8), self.in_chans)
        maps = self.backbone(x)
        # The coarse ones come first in the authors' model; a batch normalisation of each does not depend on it.
        scales = [resize(down(m), maps[0].shape[2:]) for down, m in zip(self.down, maps)]
        fused = self.fuse(torch.cat(scales[::-1], 1))
        found: dict[str, list[Tensor]] = {"logits": [], "codes": [], "inputs": [], "decoded": []}
        guided, to_predict = [fused] * SCALES, scales
        heads: Any
        for stack, heads in zip(self.stacks, self.predict):
            inputs = [torch.cat([s, g], 1) for s, g in zip(scales, guided)]
            attended, codes, decoded = stack(inputs)
            guided = [a * fused for a in attended]
            if len(found["codes"]):
                to_predict = attended
            found["logits"] += [resize(head(m), x.shape[2:]) for head, m in zip(heads, to_predict)]
            found["codes"] += codes
            found["inputs"] += inputs
            found["decoded"] += decoded
        return found

    def forward(self, x: Tensor) -> Tensor | dict[str, list[Tensor]]:
        """Logits ``[B, num_classes, H, W]``, the mean over the second stack's scales; :meth:`outputs` in training."""
        found = self.outputs(x)
        return found if self.training else torch.stack(found["logits"][SCALES:]).mean(0)

    @staticmethod
    def training_losses(
        outputs: Mapping[str, list[Tensor]], target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Weighted losses by name, of what the network gives in training; see :func:`guided_losses`."""
        found = guided_losses(outputs, target, loss)
        return {
            "loss_seg": found["ce"].sum(),
            "loss_guidance": 0.25 * found["semantic"].sum(),
            "loss_reconstruction": 0.1 * found["reconstruction"].sum(),
        }


def guided_losses(
    outputs: Mapping[str, list[Tensor]], target: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Losses of MS-Dual-Guided: segmentation + 0.25 guidance + 0.1 reconstruction.

    Args:
        outputs: see :meth:`MSDualGuided.outputs`.
        target: labels ``[B, H, W]``.
        loss: of logits and labels, in place of the authors' cross entropy.

    Returns:
        ``ce`` (or the loss given) of the eight predictions; ``semantic``, the squared difference of the stacks' codes,
        by scale; ``reconstruction``, that of what the semantic modules were given and gave back; and their weighted
        ``total``. Nothing is detached: guidance pulls both codes.
    """
    codes = outputs["codes"]
    ce = torch.stack([(loss or F.cross_entropy)(logits, target.long()) for logits in outputs["logits"]])
    semantic = torch.stack([F.mse_loss(a, b) for a, b in zip(codes[:SCALES], codes[SCALES:])])
    reconstruction = torch.stack([F.mse_loss(a, b) for a, b in zip(outputs["inputs"], outputs["decoded"])])
    total = ce.sum() + 0.25 * semantic.sum() + 0.1 * reconstruction.sum()
    return {"ce": ce, "semantic": semantic, "reconstruction": reconstruction, "total": total}
