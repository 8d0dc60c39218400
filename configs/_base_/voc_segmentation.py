"""Pascal VOC 2012 below data/VOCdevkit/VOC2012: 20 classes and background, random resize, crops of 512 pixels."""

from mmengine.dataset import DefaultSampler

from zoo.data.segmentation_layouts import VocSegmentation
from zoo.metrics.semantic import SemanticSegmentation

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=VocSegmentation,
        root="data/VOCdevkit/VOC2012",
        split="train",
        on_error="skip",
        transform=dict(recipe="crop", train=True, crop=512, size=512, max_size=2048),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=VocSegmentation,
        root="data/VOCdevkit/VOC2012",
        split="val",
        transform=dict(train=False, size=512, max_size=2048),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=SemanticSegmentation)]
test_evaluator = val_evaluator
