"""Mask2Former on COCO: AdamW, a tenth of the rate for the backbone, two drops at 8/9 and 26/27 of 50 epochs."""

from mmengine.optim import MultiStepLR, OptimWrapper
from torch.optim import AdamW

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={"segmenter.backbone": dict(lr_mult=0.1)}),
    clip_grad=dict(max_norm=0.01),
)
param_scheduler = dict(type=MultiStepLR, by_epoch=False, milestones=[327_778, 355_092], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=50, val_interval=5)
val_cfg = dict()
test_cfg = dict()
