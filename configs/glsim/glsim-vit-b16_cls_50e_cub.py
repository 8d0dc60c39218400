"""glsim-vit-b16, CUB-200-2011 at 224 pixels, 50 epochs.

Command:   zoo train glsim-vit-b16_cls_50e_cub --amp --cfg-options load_from=WEIGHTS
Hardware:  one GPU
Time:      not measured here
Score:     published for CUB, but with larger images and other schedules (arXiv:2407.12891); not reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.glsim import glsim_vit_b16
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.cub import *
    from .._base_.default_runtime import *
    from .._base_.schedule_adamw_cosine import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=glsim_vit_b16),
    num_classes=200,
)
train_cfg.update(max_epochs=50, val_interval=5)
param_scheduler.update(warmup_epochs=5)
load_strict = False  # the classifier of the weights has other classes
