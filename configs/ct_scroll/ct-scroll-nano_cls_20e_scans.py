"""CT-Scroll on generated chest CTs of three findings, 20 epochs.

Command:   zoo train ct-scroll-nano_cls_20e_scans
Hardware:  1 CPU core
Time:      not measured
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.medical.variants.classifiers import ct_scroll_nano
from zoo.medical.volume_classifier import VolumeClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.generated_scans import *
    from .._base_.schedule_bags import *

model = dict(type=VolumeClassifier, network=dict(type=ct_scroll_nano), num_classes=3)
default_hooks["checkpoint"].update(save_best="scan/auc")
optim_wrapper["optimizer"].update(lr=3e-3)
