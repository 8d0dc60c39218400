"""Mask R-CNN, BiFormer-B, COCO 2017, 12 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train mask-rcnn-biformer-base_ins_12e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 48.6 box AP, 43.7 mask AP on val2017 (github.com/rayleizhu/BiFormer)
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.mask_rcnn import mask_rcnn_biformer_base

with read_base():
    from .._base_.coco_instance import *
    from .._base_.default_runtime import *
    from .._base_.schedule_rcnn_adamw import *

model = dict(
    type=DetectionModel,
    detector=dict(type=mask_rcnn_biformer_base),
    num_classes=80,
    data_preprocessor=dict(divisor=32),
)
default_hooks["checkpoint"].update(save_best="coco/mask_AP")
