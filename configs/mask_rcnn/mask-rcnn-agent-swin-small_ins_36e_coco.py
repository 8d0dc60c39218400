"""Mask R-CNN, Agent-Swin-S, COCO 2017, 36 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train mask-rcnn-agent-swin-small_ins_36e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 48.9 box AP, 43.8 mask AP on val2017 (github.com/LeapLabTHU/Agent-Attention)
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.mask_rcnn import mask_rcnn_agent_swin_small

with read_base():
    from .._base_.coco_instance import *
    from .._base_.default_runtime import *
    from .._base_.schedule_rcnn_adamw import *

model = dict(
    type=DetectionModel,
    detector=dict(type=mask_rcnn_agent_swin_small),
    num_classes=80,
    data_preprocessor=dict(divisor=32),
)
train_cfg.update(max_epochs=36)
param_scheduler[1].update(milestones=[27, 33])
default_hooks["checkpoint"].update(save_best="coco/mask_AP")
train_dataloader["dataset"].update(transform=dict(recipe="detr", train=True))
