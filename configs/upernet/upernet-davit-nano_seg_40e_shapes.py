"""UPerNet, DaViT-nano, on generated shapes, 40 epochs.

Command:   zoo train upernet-davit-nano_seg_40e_shapes --cfg-options model.segmenter.backbone_weights=FILE
Hardware:  2 CPU cores
Time:      not measured yet
Score:     none recorded; the recipe is meant to begin with a backbone trained on pictures of single shapes
"""

from mmengine.config import read_base

from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.upernet import upernet_davit_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.schedule_segmentation_shapes import *
    from .._base_.shapes_segmentation import *

model = dict(type=SegmentationModel, segmenter=dict(type=upernet_davit_nano), num_classes=6)
default_hooks["checkpoint"].update(save_best="semantic/mIoU")
