"""RetinaNet, DaViT-S, COCO 2017, 12 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train retinanet-davit-small_det_12e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 46.0 box AP on val2017 (github.com/dingmyu/davit)
Note:      the authors publish the settings of DaViT-T; the stochastic depth here is a guess
"""

from mmengine.config import read_base

from zoo.detection.model import DetectionModel
from zoo.detection.relationnetpp import dense_detections
from zoo.detection.variants.retinanet import retinanet_davit_small

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_rcnn_adamw import *

model = dict(
    type=DetectionModel,
    detector=dict(type=retinanet_davit_small),
    num_classes=80,
    data_preprocessor=dict(divisor=32),
    postprocess=dict(type=dense_detections, score_threshold=0.05, nms_threshold=0.5),
)
optim_wrapper.update(paramwise_cfg=dict(decay_norm_and_bias=True))
# the norm of the first map takes no part
find_unused_parameters = True
default_hooks["checkpoint"].update(save_best="coco/AP")
train_dataloader["dataset"].update(labels="contiguous", keep_empty=False)
val_dataloader["dataset"].update(labels="contiguous")
test_dataloader = val_dataloader
