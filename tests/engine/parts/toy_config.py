"""A toy training: 5 iterations an epoch, everything switched on that keeps a state."""

from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from torch.optim import AdamW
from toy_engine_parts import ToyAccuracy, ToyBackbone, ToyData

from zoo.classification.model import ImageClassifier
from zoo.engine.hooks import CheckpointHook, EMAHook
from zoo.engine.optim import WarmupCosineLR

model = dict(type=ImageClassifier, backbone=dict(type=ToyBackbone), num_classes=3, mixup=dict(mixup_alpha=0.4))
train_dataloader = dict(dataset=dict(type=ToyData), batch_size=4, sampler=dict(type=DefaultSampler, shuffle=True))
val_dataloader = dict(
    dataset=dict(type=ToyData, length=6), batch_size=4, sampler=dict(type=DefaultSampler, shuffle=False)
)
val_evaluator = dict(type=ToyAccuracy)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type=OptimWrapper, optimizer=dict(type=AdamW, lr=0.01, weight_decay=0.05), clip_grad=dict(max_norm=1.0)
)
param_scheduler = dict(type=WarmupCosineLR, warmup_iters=3)
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1, max_keep=2))
custom_hooks = [dict(type=EMAHook, decay=0.9)]
randomness = dict(seed=3)
log_level = "WARNING"
