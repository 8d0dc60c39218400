"""Co-Deformable-DETR, Swin-L, COCO 2017, 12 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train co-deformable-detr-swin-large_det_12e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     56.9 box AP on val2017 published (arXiv:2211.12860 and its repository); not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.co_detr import co_deformable_detr_swin_large

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(type=DetectionModel, detector=dict(type=co_deformable_detr_swin_large), num_classes=80)
default_hooks["checkpoint"].update(save_best="coco/AP")
# The published checkpoints have the 80 classes without gaps.
train_dataloader["dataset"].update(labels="contiguous")
val_dataloader["dataset"].update(labels="contiguous")
train_dataloader.update(batch_size=2)
train_cfg.update(max_epochs=12)
param_scheduler.update(milestones=[11])
optim_wrapper["optimizer"].update(lr=2e-4, weight_decay=0.05)
optim_wrapper["paramwise_cfg"]["custom_keys"].update({"sampling_offsets": dict(lr_mult=0.1)})
