"""RelationNet++ over FCOS, ResNet-50, COCO 2017, 20 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train relationnetpp-fcos-r50_det_20e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     none published by the authors with this backbone (theirs has deformable convolutions)
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.relationnetpp import dense_detections
from zoo.detection.variants.relationnetpp import relationnetpp_fcos_r50

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_relationnetpp import *

model = dict(
    type=DetectionModel,
    detector=dict(type=relationnetpp_fcos_r50),
    num_classes=80,
    data_preprocessor=dict(divisor=32),
    postprocess=dict(type=dense_detections, score_threshold=0.05, nms_threshold=0.6),
)
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader["dataset"].update(
    labels="contiguous", transform=dict(recipe="resize", train=True, size=tuple(range(400, 1201, 32)), max_size=1333)
)
val_dataloader["dataset"].update(labels="contiguous")
test_dataloader = val_dataloader
train_cfg.update(max_epochs=20)
param_scheduler[1].update(milestones=[16, 19])
