"""nat-base, ImageNet-1K at 224 pixels, 300 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train nat-base_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 128 images each (global batch 1024)
Time:      not measured here
Score:     84.3 % top-1 published (arXiv:2204.07143); not reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.nat import nat_base
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=nat_base, drop_path_rate=0.5),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)
