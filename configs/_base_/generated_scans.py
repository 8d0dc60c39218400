"""Generated chest CTs of three findings: 80 to train on, 20 held out."""

from mmengine.dataset import DefaultSampler

from zoo.data.volume_labels import GeneratedScans
from zoo.metrics.multi_label import MultiLabel

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=GeneratedScans, split="train"),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=GeneratedScans, split="val"),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=MultiLabel, prefix="scan")]
test_evaluator = val_evaluator
