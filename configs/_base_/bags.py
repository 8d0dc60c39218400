"""Bags of patch features below data/slides, one file a slide, with labels.csv; `fold` (0 to 4) is held out."""

from mmengine.dataset import DefaultSampler

from zoo.data.bags import BagDataset
from zoo.metrics.accuracy import Accuracy
from zoo.metrics.multi_label import MultiLabel

train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=BagDataset, root="data/slides", split="train", fold=0, cache=False),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=BagDataset, root="data/slides", split="val", fold=0, cache=False),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=Accuracy, topk=(1,)), dict(type=MultiLabel, prefix="slide")]
test_evaluator = val_evaluator
