"""Mask R-CNN, Agent-PVT-T, COCO 2017, 12 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train mask-rcnn-agent-pvt-tiny_ins_12e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 41.4 box AP, 38.7 mask AP on val2017 (github.com/LeapLabTHU/Agent-Attention)
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.mask_rcnn import mask_rcnn_agent_pvt_tiny

with read_base():
    from .._base_.coco_instance import *
    from .._base_.default_runtime import *
    from .._base_.schedule_rcnn_adamw import *

model = dict(
    type=DetectionModel,
    detector=dict(type=mask_rcnn_agent_pvt_tiny),
    num_classes=80,
    data_preprocessor=dict(divisor=32),
)
optim_wrapper["optimizer"].update(lr=2e-4, weight_decay=1e-4)
optim_wrapper.update(paramwise_cfg=dict(decay_norm_and_bias=True))
default_hooks["checkpoint"].update(save_best="coco/mask_AP")
