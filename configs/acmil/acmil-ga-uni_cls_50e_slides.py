"""ACMIL with gated attention over features of UNI, 50 epochs; labels in data/slides/labels.csv.

Command:   zoo train acmil-ga-uni_cls_50e_slides
Hardware:  written for 1 GPU; runs on a CPU
Time:      not measured
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.medical.bag_classifier import BagClassifier
from zoo.medical.variants.slides import acmil_ga_uni

with read_base():
    from .._base_.bags import *
    from .._base_.default_runtime import *
    from .._base_.schedule_bags import *

model = dict(type=BagClassifier, head=dict(type=acmil_ga_uni), num_classes=2)
default_hooks["checkpoint"].update(save_best="slide/auc")
optim_wrapper["optimizer"].update(lr=1e-4)
train_cfg.update(max_epochs=50, val_interval=1)
