"""DeiT-LT on long-tailed digits: hard distillation from a teacher, its classes weighed from epoch 80 on, 100 epochs.

Command:   zoo train deit-lt-nano_cls_100e_digits-lt
Hardware:  2 CPU cores
Time:      not measured here
Score:     not measured here

Train the teacher first: zoo train teacher-pyramid-nano_cls_20e_digits-lt
"""

from mmengine.config import read_base

from zoo.backbones.deit_lt import deit_lt_nano
from zoo.backbones.hosts import pyramid_nano
from zoo.classification.distillation import DistilledClassifier
from zoo.data.digits import Digits
from zoo.data.long_tail import LongTailed
from zoo.engine.long_tail import DeferredReweightingHook
from zoo.mixers.window import WindowAttention

with read_base():
    from .._base_.default_runtime import *
    from .._base_.digits import *
    from .._base_.schedule_adamw_cosine import *

model = dict(
    type=DistilledClassifier,
    backbone=dict(type=deit_lt_nano, drop_path_rate=0.0),
    num_classes=10,
    distillation=dict(kind="hard", alpha=0.5, beta=0.9999),
    teacher=dict(type=pyramid_nano, mixer=dict(type=WindowAttention, window_size=4)),
    teacher_weights="work_dirs/teacher-pyramid-nano_cls_20e_digits-lt/epoch_20.pth",
    data_preprocessor=dict(mean=[77.8] * 3, std=[95.9] * 3),
)
train_dataloader["batch_size"] = 32
train_dataloader["dataset"] = dict(
    type=LongTailed,
    imbalance=20,
    dataset=dict(
        type=Digits, split="train", size=32, transform=dict(recipe="light", train=True, size=32, border="black")
    ),
)
train_cfg.update(max_epochs=100, val_interval=10)
param_scheduler.update(warmup_epochs=5)
optim_wrapper["optimizer"].update(lr=2e-3)
custom_hooks = [dict(type=DeferredReweightingHook, start_epoch=80)]
