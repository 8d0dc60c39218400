"""The teacher of deit-lt-nano: the four-stage host with window attention, on long-tailed digits, 20 epochs.

Command:   zoo train teacher-pyramid-nano_cls_20e_digits-lt
Hardware:  2 CPU cores
Time:      not measured here
Score:     95.54 % of 359 held-out (balanced) scans, seed 0; reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.hosts import pyramid_nano
from zoo.classification.model import ImageClassifier
from zoo.data.digits import Digits
from zoo.data.long_tail import LongTailed
from zoo.mixers.window import WindowAttention

with read_base():
    from .._base_.default_runtime import *
    from .._base_.digits import *
    from .._base_.schedule_adamw_cosine import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=pyramid_nano, mixer=dict(type=WindowAttention, window_size=4)),
    num_classes=10,
    data_preprocessor=dict(mean=[77.8] * 3, std=[95.9] * 3),
)
train_dataloader["dataset"] = dict(
    type=LongTailed,
    imbalance=20,
    dataset=dict(
        type=Digits, split="train", size=32, transform=dict(recipe="light", train=True, size=32, border="black")
    ),
)
train_cfg.update(max_epochs=20, val_interval=5)
param_scheduler.update(warmup_epochs=2)
optim_wrapper["optimizer"].update(lr=2e-3)
