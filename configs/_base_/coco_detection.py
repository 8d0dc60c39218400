"""COCO 2017 below data/coco (annotations, train2017, val2017), with the augmentation of DETR (arXiv:2005.12872).

Labels are COCO's category ids (91 outputs with gaps), as those of the published checkpoints.
"""

from mmengine.dataset import DefaultSampler

from zoo.data.coco import CocoDetection
from zoo.metrics.coco import CocoBoxes

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
        labels="category_id",
        on_error="skip",
        transform=dict(recipe="detr", train=True),
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
        labels="category_id",
        transform=dict(train=False, size=800, max_size=1333),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=CocoBoxes)]
test_evaluator = val_evaluator
