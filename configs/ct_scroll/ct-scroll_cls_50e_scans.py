"""CT-Scroll on chest CTs of one's own with 18 labels, 50 epochs; labels in data/scans/labels.csv.

Command:   zoo train ct-scroll_cls_50e_scans
Hardware:  written for 1 GPU with 2 volumes a step
Time:      not measured
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.medical.variants.classifiers import ct_scroll
from zoo.medical.volume_classifier import VolumeClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.scans import *
    from .._base_.schedule_bags import *

model = dict(type=VolumeClassifier, network=dict(type=ct_scroll), num_classes=18)
default_hooks["checkpoint"].update(save_best="scan/auc")
optim_wrapper["optimizer"].update(lr=1e-4)
train_cfg.update(max_epochs=50, val_interval=1)
