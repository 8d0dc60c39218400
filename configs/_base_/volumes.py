"""Volumes of a Medical Segmentation Decathlon task below data/volumes: patches to train on, whole ones to validate on.

`zoo train --model NAME --data FOLDER` writes such a recipe with spacing, intensities and patch size of one's own data.
"""

from mmengine.dataset import DefaultSampler

from zoo.data.volume_dataset import VolumeDataset
from zoo.metrics.volume import VolumeMetric

train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=VolumeDataset,
        source="data/volumes",
        split="train",
        fold=0,
        samples_per_volume=4,
        patch_size=(128, 128, 128),
        cache=0.0,
        on_missing_class="ignore",
        augment=dict(recipe="full"),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=VolumeDataset, source="data/volumes", split="val", fold=0, cache=0.0, on_missing_class="ignore"),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=VolumeMetric)]
test_evaluator = val_evaluator
