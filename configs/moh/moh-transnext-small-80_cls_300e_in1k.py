"""moh-transnext-small, 80 % of the heads on, ImageNet-1K at 224 pixels, 300 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train moh-transnext-small-80_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 128 images each (global batch 1024)
Time:      not measured here
Score:     none published in text for this variant (arXiv:2410.11842); not reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.moh import moh_transnext_small_80
from zoo.classification.auxiliary import LoadBalanceLoss
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=moh_transnext_small_80, drop_path_rate=0.5),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
    auxiliary=[dict(type=LoadBalanceLoss, weight=0.01)],
)
param_scheduler.update(warmup_epochs=5)
