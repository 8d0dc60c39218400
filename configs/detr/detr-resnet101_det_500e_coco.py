"""DETR, ResNet-101, COCO 2017, 500 epochs.

Command:   torchrun --nproc_per_node 16 -m zoo.cli train detr-resnet101_det_500e_coco
Hardware:  written for 16 GPUs with 4 images each (global batch 64)
Time:      not measured here
Score:     43.5 box AP on val2017 published (arXiv:2005.12872); not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.detr import detr_resnet101

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(type=DetectionModel, detector=dict(type=detr_resnet101), num_classes=91)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader.update(batch_size=4)
train_cfg.update(max_epochs=500)
param_scheduler.update(milestones=[400])
