"""MaskFormer-nano on generated shapes, 80 epochs.

Command:   zoo train maskformer-nano_pan_80e_shapes
Hardware:  2 CPU cores
Time:      not measured here
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.metrics.panoptic import PanopticQuality
from zoo.metrics.semantic import SemanticSegmentation
from zoo.segmentation.mask_postprocess import mask_postprocess
from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.maskformer import maskformer_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.schedule_segmentation_shapes import *
    from .._base_.shapes_segmentation import *

# the background is stuff, the five shapes are things
model = dict(
    type=SegmentationModel,
    segmenter=dict(type=maskformer_nano),
    num_classes=6,
    postprocess=dict(type=mask_postprocess, thing_classes=[1, 2, 3, 4, 5]),
)
train_dataloader["dataset"].update(targets=["panoptic"])
val_dataloader["dataset"].update(targets=["panoptic", "semantic"])
test_dataloader = val_dataloader
val_evaluator = [dict(type=PanopticQuality), dict(type=SemanticSegmentation)]
test_evaluator = val_evaluator
optim_wrapper["optimizer"].update(lr=5e-4, weight_decay=1e-4)
train_cfg.update(max_epochs=80)
default_hooks["checkpoint"].update(save_best="panoptic/PQ")
