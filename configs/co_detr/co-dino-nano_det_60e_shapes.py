"""Co-DINO-nano on generated shapes, 60 epochs.

Command:   zoo train co-dino-nano_det_60e_shapes
Hardware:  2 CPU cores
Time:      not measured yet
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.detection.co_postprocess import best_of_pairs_clipped
from zoo.detection.model import DetectionModel
from zoo.detection.variants.co_detr import co_dino_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.schedule_detr_shapes import *
    from .._base_.shapes_detection import *

model = dict(
    type=DetectionModel,
    detector=dict(type=co_dino_nano),
    num_classes=8,
    postprocess=dict(type=best_of_pairs_clipped, count=300, soft_threshold=0.8),
)
default_hooks["checkpoint"].update(save_best="coco/AP")
