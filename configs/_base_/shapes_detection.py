"""600 generated images of 128 pixels with one to five of eight shapes, and 200 others to validate on."""

from mmengine.dataset import DefaultSampler

from zoo.data.shapes_detection import ShapesDetection
from zoo.metrics.coco import CocoBoxes

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
        transform=dict(recipe="resize", train=True, size=(112, 128, 144)),
    ),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=ShapesDetection, split="val", length=200, size=128, transform=dict(train=False, size=128)),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=CocoBoxes)]
test_evaluator = val_evaluator
