"""DINO, ResNet-50, five scales, COCO 2017, 24 epochs.

Command:   torchrun --nproc_per_node 16 -m zoo.cli train dino-5scale-r50_det_24e_coco
Hardware:  written for 16 GPUs with 1 images each (global batch 16)
Time:      not measured here
Score:     51.3 box AP on val2017 published (arXiv:2203.03605); not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.dino import dino_5scale_r50

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(type=DetectionModel, detector=dict(type=dino_5scale_r50), num_classes=91)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader.update(batch_size=1)
train_cfg.update(max_epochs=24)
param_scheduler.update(milestones=[20])
