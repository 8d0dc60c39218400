"""ACMIL on generated slides, 20 epochs.

Command:   zoo train acmil-ga-nano_cls_20e_bags
Hardware:  1 CPU core
Time:      not measured
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.medical.bag_classifier import BagClassifier
from zoo.medical.variants.slides import acmil_ga_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.generated_bags import *
    from .._base_.schedule_bags import *

model = dict(type=BagClassifier, head=dict(type=acmil_ga_nano), num_classes=2)
default_hooks["checkpoint"].update(save_best="slide/auc")
train_cfg.update(max_epochs=20)
optim_wrapper["optimizer"].update(lr=3e-3)
