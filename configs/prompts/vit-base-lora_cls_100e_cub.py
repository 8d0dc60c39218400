"""ViT-B/16 with low-rank adapters, CUB-200-2011 at 224 pixels, 100 epochs.

Command:   zoo train vit-base-lora_cls_100e_cub --amp --cfg-options load_from=WEIGHTS
Hardware:  one GPU
Time:      not measured here
Score:     none: not trained here
"""

from mmengine.config import read_base

from zoo.backbones.hosts import vit_base
from zoo.classification.model import ImageClassifier
from zoo.engine.long_tail import TunedWeightsHook

with read_base():
    from .._base_.cub import *
    from .._base_.default_runtime import *
    from .._base_.schedule_adamw_cosine import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=vit_base, class_token=True),
    num_classes=200,
    lora=dict(r=8, alpha=16, targets=["qkv"]),
)
train_cfg.update(max_epochs=100, val_interval=5)
param_scheduler.update(warmup_epochs=10)
load_strict = False  # the classifier of the weights has other classes
custom_hooks = [dict(type=TunedWeightsHook)]
