"""600 generated images of 128 pixels with one to five of five shapes that hide parts of each other, 150 to test on."""

from mmengine.dataset import DefaultSampler

from zoo.data.shapes_segmentation import ShapesSegmentation
from zoo.metrics.semantic import SemanticSegmentation

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=ShapesSegmentation,
        split="train",
        length=600,
        size=128,
        targets=["semantic"],
        transform=dict(recipe="crop", train=True, crop=128, ratio_range=(0.75, 1.5), vflip=0.5, rotate=180),
    ),
)
val_dataloader = dict(
    batch_size=25,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=ShapesSegmentation,
        split="test",
        length=150,
        size=128,
        targets=["semantic"],
        transform=dict(train=False),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=SemanticSegmentation)]
test_evaluator = val_evaluator
