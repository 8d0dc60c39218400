"""Any backbone of timm under this project's contract.

timm: https://github.com/huggingface/pytorch-image-models (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.backbones.base import Backbone


class TimmBackbone(Backbone):
    """A model of timm's that gives intermediate feature maps.

    Which image sizes run is timm's business: pass ``dynamic_img_size=True, dynamic_img_pad=True`` to its ViTs or
    ``strict_img_size=False`` to its Swins. ``num_classes=0`` removes what follows the last map.

    Args:
        model_name: a name that ``timm.list_models()`` has, with or without a weights tag.
        pretrained: load timm's weights (from the network, or timm's cache).
        num_classes: classes, or 0 for features.
        in_chans: image channels.
        out_indices: stages whose maps are given; all by default.
        frozen_stages: stem (0) and stages (1 ...), as timm groups parameters, that are not trained; -1 for none.
        **timm_kwargs: further arguments of ``timm.create_model``.

    Raises:
        ValueError: the model gives no intermediate maps.
    """

    model: Any

    def __init__(
        self,
        model_name: str,
        pretrained: bool = False,
        num_classes: int = 0,
        in_chans: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        **timm_kwargs: Any,
    ):
        # Here, because importing timm takes longer than importing torch.
        import timm
        from timm.models import group_parameters

        super().__init__()
        model: Any = timm.create_model(
            model_name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **timm_kwargs
        )
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"timm's {model_name} gives no intermediate feature maps")
        info = list(model.feature_info)
        self._describe(
            [f["num_chs"] for f in info],
            [f["reduction"] for f in info],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        if num_classes:
            self.num_features = model.num_features
        else:
            model.prune_intermediate_layers(len(info) - 1, prune_norm=True, prune_head=True)
        self.model = model
        self._layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        self._stages = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        last, maps = self.model.forward_intermediates(x)
        return list(maps), last if self.num_classes else maps[-1]

    def forward_head(self, trunk: Tensor) -> Tensor:
        return self.model.forward_head(trunk) if self.num_classes else trunk.mean((2, 3))

    def reset_classifier(self, num_classes: int) -> None:
        """As in the contract; a model built with ``num_classes=0`` has lost its head and can't get one."""
        if num_classes and not self.num_classes:
            raise ValueError(f"num_classes={num_classes}: this timm model was built without a classifier")
        self.model.reset_classifier(num_classes)
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        self.model.set_grad_checkpointing(enable)

    def freeze(self) -> None:
        for prefix, module in self.model.named_modules():
            names = [f"{prefix}.{n}" if prefix else n for n, _ in module.named_parameters(recurse=False)]
            if names and all(self._stages[n] <= self.frozen_stages for n in names):
                module.eval()
                for p in module.parameters(recurse=False):
                    p.requires_grad_(False)

    def stage_modules(self) -> list[list[nn.Module]]:
        """The whole model: timm groups parameters, not modules (see :meth:`freeze`)."""
        return [[self.model]]

    def layer_id(self, name: str) -> int:
        return self._layers[name.removeprefix("model.")]

    def num_layers(self) -> int:
        return max(self._layers.values()) + 1

    def no_weight_decay(self) -> set[str]:
        return {f"model.{n}" for n in getattr(self.model, "no_weight_decay", set)()}
