"""Mask R-CNN-nano on generated shapes, 60 epochs.

Command:   zoo train mask-rcnn-nano_ins_60e_shapes
Hardware:  2 CPU cores
Time:      not measured here
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.mask_rcnn import mask_rcnn_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.schedule_detr_shapes import *
    from .._base_.shapes_instance import *

model = dict(type=DetectionModel, detector=dict(type=mask_rcnn_nano), num_classes=8)
optim_wrapper["optimizer"].update(lr=1e-3)
optim_wrapper["clip_grad"].update(max_norm=1.0)
default_hooks["checkpoint"].update(save_best="coco/mask_AP")
