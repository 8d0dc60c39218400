"""COCO 2017's panoptic annotations below data/coco: 80 classes of things and 53 of stuff, large-scale jitter."""

from mmengine.dataset import DefaultSampler

from zoo.data.coco_panoptic import CocoPanoptic
from zoo.metrics.panoptic import PanopticQuality

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CocoPanoptic,
        annotations="data/coco/annotations/panoptic_train2017.json",
        images="data/coco/train2017",
        segments="data/coco/annotations/panoptic_train2017",
        on_error="skip",
        targets=["panoptic"],
        transform=dict(recipe="jitter", train=True, crop=1024),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoPanoptic,
        annotations="data/coco/annotations/panoptic_val2017.json",
        images="data/coco/val2017",
        segments="data/coco/annotations/panoptic_val2017",
        targets=["panoptic"],
        transform=dict(train=False, size=800, max_size=1333),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=PanopticQuality)]
test_evaluator = val_evaluator
