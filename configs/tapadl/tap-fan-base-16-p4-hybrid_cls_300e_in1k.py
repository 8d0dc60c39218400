"""tap-fan-base-hybrid with attention diversification, ImageNet-1K at 224 pixels, 300 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train tap-fan-base-16-p4-hybrid_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 128 images each (global batch 1024)
Time:      not measured here
Score:     84.3 % top-1 published (arXiv:2303.11126); not reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.tap_fan import tap_fan_base_16_p4_hybrid
from zoo.classification.auxiliary import AttentionDiversificationLoss
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=tap_fan_base_16_p4_hybrid, drop_path_rate=0.35),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
    auxiliary=[dict(type=AttentionDiversificationLoss, threshold=2.0)],
)
param_scheduler.update(warmup_epochs=5)
