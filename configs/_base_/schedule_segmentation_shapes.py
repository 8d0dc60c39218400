"""Small segmenters on generated shapes: AdamW, warm-up, a straight line to zero, a moving average of the weights."""

from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.hooks import EMAHook
from zoo.engine.optim import WarmupPolyLR

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(type=WarmupPolyLR, warmup_epochs=1, warmup_start=1e-2, power=1.0)
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=10)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type=EMAHook, decay=0.999)]
