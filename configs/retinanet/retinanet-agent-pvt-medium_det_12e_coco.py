"""RetinaNet, Agent-PVT-M, COCO 2017, 12 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train retinanet-agent-pvt-medium_det_12e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 45.8 box AP on val2017 (github.com/LeapLabTHU/Agent-Attention)
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.relationnetpp import dense_detections
from zoo.detection.variants.retinanet import retinanet_agent_pvt_medium

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_rcnn_adamw import *

model = dict(
    type=DetectionModel,
    detector=dict(type=retinanet_agent_pvt_medium),
    num_classes=80,
    data_preprocessor=dict(divisor=32),
    postprocess=dict(type=dense_detections, score_threshold=0.05, nms_threshold=0.5),
)
optim_wrapper["optimizer"].update(weight_decay=1e-4)
optim_wrapper.update(paramwise_cfg=dict(decay_norm_and_bias=True))
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader["dataset"].update(
    labels="contiguous",
    keep_empty=False,
    transform=dict(recipe="resize", train=True, size=800, max_size=1333),
)
val_dataloader["dataset"].update(labels="contiguous")
test_dataloader = val_dataloader
