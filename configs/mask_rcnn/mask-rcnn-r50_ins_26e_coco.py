"""Mask R-CNN, ResNet-50, COCO 2017, 26 epochs: torchvision's reference recipe.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train mask-rcnn-r50_ins_26e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 37.9 box AP, 34.6 mask AP on val2017 (torchvision, weights COCO_V1)
"""

from mmengine.config import read_base
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from torch.optim import SGD

from zoo.detection.model import DetectionModel
from zoo.detection.variants.mask_rcnn import mask_rcnn_r50

with read_base():
    from .._base_.coco_instance import *
    from .._base_.default_runtime import *

model = dict(
    type=DetectionModel,
    detector=dict(type=mask_rcnn_r50),
    num_classes=90,
    data_preprocessor=dict(divisor=32),
)
# The published weights have an output for each of the category ids 1 to 90, gaps included.
train_dataloader["dataset"].update(labels="category_id - 1")
val_dataloader["dataset"].update(labels="category_id - 1")
test_dataloader = val_dataloader
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=SGD, lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(decay_norm_and_bias=True),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type=MultiStepLR, by_epoch=True, milestones=[16, 22], gamma=0.1),
]
train_cfg = dict(by_epoch=True, max_epochs=26, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks["checkpoint"].update(save_best="coco/mask_AP")
