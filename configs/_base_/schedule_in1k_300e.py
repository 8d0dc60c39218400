"""ImageNet-1K from nothing in 300 epochs: AdamW, global batch 1024, mixup and cutmix (DeiT, arXiv:2012.12877)."""

from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.optim import WarmupCosineLR

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = dict(type=WarmupCosineLR, warmup_epochs=20, warmup_start=1e-3, min_ratio=0.01)
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
