"""AG-Sononet: a plain convolutional classifier that looks at two finer maps through attention gates.

Attention Gated Networks: Learning to Leverage Salient Regions in Medical Images (arXiv 1808.08114), section 3.2.
Authors' code: github.com/ozan-oktay/Attention-Gated-Networks (MIT). Here ``concat`` works, which fails there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.medical.grid_attention import ScoreGate
from zoo.medical.layers import conv_block, init_kaiming

AGGREGATIONS = ("concat", "mean", "deep_sup", "ft")


class AGSononet(nn.Module):
    """Five convolution stages; attended maps of stages 3 and 4 are summed, stage 5 is averaged, and all are classified.

    Args:
        in_chans: channels of the image.
        num_classes: classes.
        widths: channels of stages 1 to 4 (5 has those of 4).
        mode: of the gates, see :func:`zoo.medical.grid_attention.normalise_scores`.
        aggregation: "concat", one classifier on all three vectors; "mean", one on each, a list of three logits to be
            averaged; "deep_sup", the former's and the latter's logits as a list of four; "ft", a classifier on the
            three logits.
        depths: convolutions of each stage.
        norm: batch normalisation.

    Raises:
        ValueError: an unknown aggregation or mode, or lengths that do not fit; images under 16 pixels.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 14,
        widths: Sequence[int] = (8, 16, 32, 64),
        mode: str = "mean_flow",
        aggregation: str = "ft",
        depths: Sequence[int] = (3, 3, 3, 2, 2),
        norm: bool = True,
    ):
        super().__init__()
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation={aggregation!r}: accepted are {', '.join(map(repr, AGGREGATIONS))}")
        if len(widths) != 4 or len(depths) != 5 or min(*widths, *depths) < 1:
            raise ValueError(f"widths={tuple(widths)}, depths={tuple(depths)}: accepted are four and five numbers")
        self.aggregation, self.in_chans, self.num_classes = aggregation, in_chans, num_classes
        chans = [in_chans, *widths, widths[3]]
        blocks = [conv_block(2, a, b, 3, norm, n) for a, b, n in zip(chans[:-1], chans[1:], depths)]
        self.stages = nn.ModuleList(blocks)
        self.pool = nn.MaxPool2d(2)
        self.gates = nn.ModuleList(ScoreGate(w, widths[3], widths[3], 2, mode, output=False) for w in widths[2:])
        vectors = [widths[2], widths[3], widths[3]]
        single = vectors if aggregation != "concat" else []
        self.classifiers = nn.ModuleList(nn.Linear(n, num_classes) for n in single)
        self.classifier: nn.Linear | None = None
        if aggregation != "mean":
            self.classifier = nn.Linear(3 * num_classes if aggregation == "ft" else sum(vectors), num_classes)
        init_kaiming(self.stages)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits ``[B, num_classes]`` of ``x [B, in_chans, H, W]``, or a list of them: see ``aggregation``."""
        if min(x.shape[-2:]) < 16:
            raise ValueError(f"the image has size {tuple(x.shape[-2:])}: accepted are at least 16 x 16 pixels")
        maps: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else self.pool(x))
            maps.append(x)
        vectors = [gate(m, maps[4])[0].sum((2, 3)) for gate, m in zip(self.gates, maps[2:4])]
        vectors.append(maps[4].mean((2, 3)))
        single = [head(v) for head, v in zip(self.classifiers, vectors)]
        if self.classifier is None:
            return single
        joined = self.classifier(torch.cat(single if self.aggregation == "ft" else vectors, 1))
        return [joined, *single] if self.aggregation == "deep_sup" else joined
