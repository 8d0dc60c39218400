"""Guided context gating over DaViT-nano on digits, 6 epochs.

Command:   zoo train gcg-davit-nano_cls_6e_digits
Hardware:  1 CPU core
Time:      not measured
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.medical.variants.classifiers import gcg_davit_nano
from zoo.medical.volume_classifier import VolumeClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.digits import *
    from .._base_.schedule_bags import *

model = dict(
    type=VolumeClassifier,
    network=dict(type=gcg_davit_nano),
    num_classes=10,
    score="softmax",
    data_preprocessor=dict(mean=127.5, std=64.0),
)
default_hooks["checkpoint"].update(save_best="accuracy/top1")
train_cfg.update(max_epochs=6, val_interval=1)
optim_wrapper["optimizer"].update(lr=3e-3)
