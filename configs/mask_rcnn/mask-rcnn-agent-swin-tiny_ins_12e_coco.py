"""Mask R-CNN, Agent-Swin-T, COCO 2017, 12 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train mask-rcnn-agent-swin-tiny_ins_12e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 44.6 box AP, 40.7 mask AP on val2017 (github.com/LeapLabTHU/Agent-Attention)
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.mask_rcnn import mask_rcnn_agent_swin_tiny

with read_base():
    from .._base_.coco_instance import *
    from .._base_.default_runtime import *
    from .._base_.schedule_rcnn_adamw import *

model = dict(
    type=DetectionModel,
    detector=dict(type=mask_rcnn_agent_swin_tiny),
    num_classes=80,
    data_preprocessor=dict(divisor=32),
)
default_hooks["checkpoint"].update(save_best="coco/mask_AP")
train_dataloader["dataset"].update(transform=dict(recipe="detr", train=True))
