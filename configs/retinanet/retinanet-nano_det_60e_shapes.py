"""RetinaNet-nano on generated shapes, 60 epochs.

Command:   zoo train retinanet-nano_det_60e_shapes
Hardware:  2 CPU cores
Time:      not measured here
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.variants.retinanet import retinanet_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.schedule_detr_shapes import *
    from .._base_.shapes_detection import *

model = dict(type=DetectionModel, detector=dict(type=retinanet_nano), num_classes=8)
default_hooks["checkpoint"].update(save_best="coco/AP")
