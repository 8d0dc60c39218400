"""Conditional DETR, ResNet-50, COCO 2017, 50 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train conditional-detr-r50_det_50e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     41.0 box AP on val2017 published (arXiv:2108.06152); not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.conditional_detr import conditional_detr_r50

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(type=DetectionModel, detector=dict(type=conditional_detr_r50), num_classes=91)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader.update(batch_size=2)
train_cfg.update(max_epochs=50)
param_scheduler.update(milestones=[40])
