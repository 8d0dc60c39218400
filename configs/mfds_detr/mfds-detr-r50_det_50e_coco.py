"""MFDS-DETR, ResNet-50, data in COCO's format, 50 epochs.

The authors train on leukocytes (LISC, BCCD, WBCDD; 6 classes with the background) and publish neither numbers in their
repository nor weights; the annotations are yours, in the place of COCO's, or
`zoo train --model mfds_detr_r50 --data FOLDER`.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train mfds-detr-r50_det_50e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     none published with this setting
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.mfds_detr import mfds_detr_r50

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(type=DetectionModel, detector=dict(type=mfds_detr_r50), num_classes=6)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader["dataset"].update(labels="contiguous")
val_dataloader["dataset"].update(labels="contiguous")
train_dataloader.update(batch_size=2)
