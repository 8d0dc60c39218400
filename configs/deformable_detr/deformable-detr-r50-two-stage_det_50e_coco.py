"""Deformable DETR in two stages, ResNet-50, COCO 2017, 50 epochs.

Command:   torchrun --nproc_per_node 16 -m zoo.cli train deformable-detr-r50-two-stage_det_50e_coco
Hardware:  written for 16 GPUs with 2 images each (global batch 32)
Time:      not measured here
Score:     46.9 box AP on val2017 published (arXiv:2010.04159); not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.deformable_detr import deformable_detr_r50_two_stage

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(type=DetectionModel, detector=dict(type=deformable_detr_r50_two_stage), num_classes=91)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader.update(batch_size=2)
train_cfg.update(max_epochs=50)
param_scheduler.update(milestones=[40])
optim_wrapper["optimizer"].update(lr=2e-4)
optim_wrapper["paramwise_cfg"]["custom_keys"].update(
    {
        "sampling_offsets": dict(lr_mult=0.1),
    }
)
