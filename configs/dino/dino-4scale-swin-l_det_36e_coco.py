"""DINO, Swin-L, four scales, COCO 2017, 36 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train dino-4scale-swin-l_det_36e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     58.0 box AP on val2017 published (arXiv:2203.03605); not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.dino import dino_4scale_swin_l

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(type=DetectionModel, detector=dict(type=dino_4scale_swin_l), num_classes=91)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader.update(batch_size=2)
train_cfg.update(max_epochs=36)
param_scheduler.update(milestones=[30])
