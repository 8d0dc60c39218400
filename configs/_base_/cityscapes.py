"""Cityscapes below data/cityscapes (leftImg8bit, gtFine): 19 classes, random resize, crops of 512 x 1024 pixels."""

from mmengine.dataset import DefaultSampler

from zoo.data.segmentation_layouts import Cityscapes
from zoo.metrics.semantic import SemanticSegmentation

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=Cityscapes,
        root="data/cityscapes",
        split="train",
        on_error="skip",
        transform=dict(recipe="crop", train=True, crop=(512, 1024), size=1024, max_size=2048),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=Cityscapes,
        root="data/cityscapes",
        split="val",
        transform=dict(train=False),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=SemanticSegmentation)]
test_evaluator = val_evaluator
