"""A small Continuous Thought Machine on scikit-learn's handwritten digits, 12 epochs, with the loss over all ticks.

Command:   zoo train ctm-nano_cls_12e_digits
Hardware:  2 CPU cores
Time:      about 30 s on one core of an AMD EPYC
Score:     98.61 % of 359 held-out scans, seed 0; reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.ctm import ctm_nano
from zoo.classification.ticks import TickClassifier, TickLoss

with read_base():
    from .._base_.default_runtime import *
    from .._base_.digits import *
    from .._base_.schedule_adamw_cosine import *

model = dict(
    type=TickClassifier,
    backbone=dict(type=ctm_nano),
    num_classes=10,
    loss=dict(type=TickLoss, label_smoothing=0.1),
    data_preprocessor=dict(mean=[77.8] * 3, std=[95.9] * 3),
)
train_cfg.update(max_epochs=12, val_interval=3)
param_scheduler.update(warmup_epochs=1)
optim_wrapper["optimizer"].update(lr=2e-3)
