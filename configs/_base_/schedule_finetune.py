"""Fine-tuning from pretrained weights: AdamW, layer-wise learning rates, a moving average of the weights."""

from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.hooks import EMAHook
from zoo.engine.optim import WarmupCosineLR

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.75),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(type=WarmupCosineLR, warmup_epochs=2, warmup_start=1e-2, min_ratio=0.01)
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type=EMAHook, decay=0.999)]
