"""RF-DETR large, 704 pixels, COCO 2017, 100 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train rfdetr-large-704_det_100e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     56.5 box AP on val2017 published by the authors for their own training; not
           reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.rfdetr import rfdetr_large_704

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_rfdetr import *

model = dict(type=DetectionModel, detector=dict(type=rfdetr_large_704), num_classes=91)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader["dataset"].update(
    # whole windows
    transform=dict(recipe="resize", train=True, size=tuple(range(544, 896, 32)), square=True)
)
val_dataloader["dataset"].update(transform=dict(train=False, size=704, square=True))
test_dataloader = val_dataloader
