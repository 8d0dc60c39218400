"""DAB-DETR, ResNet-50-DC5, three patterns, COCO 2017, 50 epochs.

Command:   torchrun --nproc_per_node 16 -m zoo.cli train dab-detr-r50-dc5-3pat_det_50e_coco
Hardware:  written for 16 GPUs with 1 images each (global batch 16)
Time:      not measured here
Score:     45.7 box AP on val2017 published (arXiv:2201.12329); not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.dab_detr import dab_detr_r50_dc5_3pat

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(type=DetectionModel, detector=dict(type=dab_detr_r50_dc5_3pat), num_classes=91)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader.update(batch_size=1)
train_cfg.update(max_epochs=50)
param_scheduler.update(milestones=[40])
