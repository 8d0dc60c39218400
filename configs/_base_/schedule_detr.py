"""AdamW with a tenth of the learning rate for the backbone, clipped gradients, one drop of the rate (DETR's recipe)."""

from mmengine.optim import MultiStepLR, OptimWrapper
from torch.optim import AdamW

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(decay_norm_and_bias=True, custom_keys={"detector.backbone": dict(lr_mult=0.1)}),
    clip_grad=dict(max_norm=0.1),
)
param_scheduler = dict(type=MultiStepLR, by_epoch=True, milestones=[40], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=50, val_interval=1)
val_cfg = dict()
test_cfg = dict()
