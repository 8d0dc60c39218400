"""80,000 iterations of AdamW, a power of 0.9 to zero (PVT's recipe for Semantic FPN on ADE20K)."""

from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.optim import WarmupPolyLR

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-4, weight_decay=1e-4))
param_scheduler = dict(type=WarmupPolyLR, power=0.9)
train_cfg = dict(by_epoch=False, max_iters=80_000, val_interval=8_000)
val_cfg = dict()
test_cfg = dict()
