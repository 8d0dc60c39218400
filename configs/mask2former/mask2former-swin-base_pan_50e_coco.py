"""Mask2Former, Swin-B (ImageNet-22k), COCO 2017 panoptic, 50 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train mask2former-swin-base_pan_50e_coco
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     56.4 PQ on val2017 reported (arXiv:2112.01527); not reproduced here
"""

from mmengine.config import read_base

from zoo.segmentation.mask_postprocess import mask_postprocess
from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.mask2former import mask2former_swin_base

with read_base():
    from .._base_.coco_panoptic import *
    from .._base_.default_runtime import *
    from .._base_.schedule_mask2former import *

# COCO lists its 80 classes of things first
model = dict(
    type=SegmentationModel,
    segmenter=dict(type=mask2former_swin_base),
    num_classes=133,
    postprocess=dict(type=mask_postprocess, thing_classes=list(range(80))),
)
default_hooks["checkpoint"].update(save_best="panoptic/PQ")
