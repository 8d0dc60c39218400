"""COCO 2017 with masks below data/coco (annotations, train2017, val2017); shorter side 800, flips.

Labels are 0 to 79; predictions carry COCO's category ids.
"""

from mmengine.dataset import DefaultSampler

from zoo.data.coco import CocoDetection
from zoo.metrics.coco_masks import CocoMasks

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CocoDetection,
        annotations="data/coco/annotations/instances_train2017.json",
        images="data/coco/train2017",
        with_masks=True,
        keep_empty=False,
        on_error="skip",
        transform=dict(recipe="resize", train=True, size=800, max_size=1333),
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoDetection,
        annotations="data/coco/annotations/instances_val2017.json",
        images="data/coco/val2017",
        with_masks=True,
        transform=dict(train=False, size=800, max_size=1333),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=CocoMasks)]
test_evaluator = val_evaluator
