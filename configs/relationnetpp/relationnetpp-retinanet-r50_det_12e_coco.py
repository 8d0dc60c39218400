"""RelationNet++ over RetinaNet, ResNet-50, COCO 2017, 12 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train relationnetpp-retinanet-r50_det_12e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     38.5 box AP on val2017 published by the authors; not reproduced here
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.relationnetpp import dense_detections
from zoo.detection.variants.relationnetpp import relationnetpp_retinanet_r50

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_relationnetpp import *

model = dict(
    type=DetectionModel,
    detector=dict(type=relationnetpp_retinanet_r50),
    num_classes=80,
    data_preprocessor=dict(divisor=32),
    postprocess=dict(type=dense_detections, score_threshold=0.05, nms_threshold=0.5),
)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader["dataset"].update(
    labels="contiguous", transform=dict(recipe="resize", train=True, size=800, max_size=1333)
)
val_dataloader["dataset"].update(labels="contiguous")
test_dataloader = val_dataloader
