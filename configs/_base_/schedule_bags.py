"""Heads for bags: AdamW and one cosine without warm-up."""

from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.optim import WarmupCosineLR

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3, weight_decay=1e-4))
param_scheduler = dict(type=WarmupCosineLR, warmup_iters=0, min_ratio=0.01)
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=5)
val_cfg = dict()
test_cfg = dict()
