"""RF-DETR base, 560 pixels, COCO 2017, 100 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train rfdetr-base-560_det_100e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     none published by the authors for this checkpoint; not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.rfdetr import rfdetr_base_560

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_rfdetr import *

model = dict(type=DetectionModel, detector=dict(type=rfdetr_base_560), num_classes=91)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader["dataset"].update(
    # whole windows
    transform=dict(recipe="resize", train=True, size=tuple(range(280, 896, 56)), square=True)
)
val_dataloader["dataset"].update(transform=dict(train=False, size=560, square=True))
test_dataloader = val_dataloader
