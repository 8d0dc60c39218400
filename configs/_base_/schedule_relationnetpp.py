"""SGD with a linear warm-up and two drops of the rate: mmdetection's schedule of 12 epochs."""

from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from torch.optim import SGD

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=SGD, lr=0.01, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(decay_norm_and_bias=True),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type=MultiStepLR, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
val_cfg = dict()
test_cfg = dict()
