"""600 generated images of 128 pixels with one to five of eight shapes and their masks, and 150 others to validate."""

from mmengine.dataset import DefaultSampler

from zoo.data.shapes_detection import ShapesDetection
from zoo.metrics.coco_masks import CocoMasks

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=ShapesDetection,
        split="train",
        length=600,
        size=128,
        with_masks=True,
        transform=dict(recipe="resize", train=True, size=(112, 128, 144)),
    ),
)
val_dataloader = dict(
    batch_size=15,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=ShapesDetection,
        split="val",
        length=150,
        size=128,
        with_masks=True,
        transform=dict(train=False, size=128),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=CocoMasks)]
test_evaluator = val_evaluator
