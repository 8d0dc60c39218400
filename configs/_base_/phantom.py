"""Slices of 32 generated abdomens (96 x 96 x 48 voxels, four organs) to train on, 8 whole ones to validate on.

The volumes are written once into a cache folder; `fold` (0 to 4) says which eight are held out.
"""

from mmengine.dataset import DefaultSampler

from zoo.data.phantom_dataset import PhantomDataset
from zoo.metrics.volume import VolumeMetric

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=PhantomDataset,
        split="train",
        fold=0,
        axis=2,
        samples_per_volume=8,
        foreground=0.7,
        normalisation=dict(kind="ct", lower=-200, upper=350, mean=-77.5, std=129.4),
        augment=dict(recipe="light"),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=PhantomDataset,
        split="val",
        fold=0,
        normalisation=dict(kind="ct", lower=-200, upper=350, mean=-77.5, std=129.4),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=VolumeMetric)]
test_evaluator = val_evaluator
