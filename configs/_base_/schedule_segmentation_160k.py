"""160,000 iterations of AdamW: 1,500 of warm-up, then a straight line to zero (Swin's recipe for UPerNet on ADE20K)."""

from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.optim import WarmupPolyLR

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01))
param_scheduler = dict(type=WarmupPolyLR, warmup_iters=1500, warmup_start=1e-6, power=1.0)
train_cfg = dict(by_epoch=False, max_iters=160_000, val_interval=16_000)
val_cfg = dict()
test_cfg = dict()
