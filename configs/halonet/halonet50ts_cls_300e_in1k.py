"""halonet50ts, ImageNet-1K at 256 pixels, 300 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train halonet50ts_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 128 images each (global batch 1024)
Time:      not measured here
Score:     not trained here; timm's weights were trained by another recipe
"""

from mmengine.config import read_base

from zoo.backbones.halonet import halonet50ts
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=halonet50ts, drop_path_rate=0.1),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)
train_dataloader["dataset"]["transform"].update(size=256)
val_dataloader["dataset"]["transform"].update(size=256, crop_pct=0.94)
test_dataloader = val_dataloader
