"""Chest CTs below data/scans with labels.csv, 240 slices of 480 x 480 pixels; `fold` (0 to 4) is held out."""

from mmengine.dataset import DefaultSampler

from zoo.data.volume_labels import VolumeLabels
from zoo.metrics.multi_label import MultiLabel

train_dataloader = dict(
    batch_size=2,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=VolumeLabels, root="data/scans", split="train", spacing=(0.75, 0.75, 1.5), orientation="RAS"),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=VolumeLabels, root="data/scans", split="val", spacing=(0.75, 0.75, 1.5), orientation="RAS"),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=MultiLabel, prefix="scan")]
test_evaluator = val_evaluator
