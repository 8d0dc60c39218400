"""Small segmenters on generated volumes: AdamW, warm-up and cosine, a moving average of the weights."""

from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.hooks import EMAHook
from zoo.engine.optim import WarmupCosineLR

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = dict(type=WarmupCosineLR, warmup_epochs=1, warmup_start=1e-2, min_ratio=0.02)
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=10)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type=EMAHook, decay=0.98)]
