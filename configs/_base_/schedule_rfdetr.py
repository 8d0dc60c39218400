"""AdamW at a constant rate, lower in the backbone, and a moving average of the weights (RF-DETR's fine-tuning).

The authors also lower the rate from block to block of the backbone, by 0.8 each; here all blocks have the rate of the
highest, 1.5 * 0.7^2 of the head's.
"""

from mmengine.optim import MultiStepLR, OptimWrapper
from torch.optim import AdamW

from zoo.engine.hooks import EMAHook

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(decay_norm_and_bias=True, custom_keys={"detector.backbone": dict(lr_mult=0.735)}),
    clip_grad=dict(max_norm=0.1),
)
param_scheduler = dict(type=MultiStepLR, by_epoch=True, milestones=[100], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type=EMAHook, decay=0.993)]
