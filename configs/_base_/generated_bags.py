"""Generated slides: 80 bags to train on, 20 held out; tumours show in a tenth of a bag's patches."""

from mmengine.dataset import DefaultSampler

from zoo.data.generated_bags import GeneratedBags
from zoo.metrics.accuracy import Accuracy
from zoo.metrics.multi_label import MultiLabel

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=GeneratedBags, split="train"),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=GeneratedBags, split="val"),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=Accuracy, topk=(1,)), dict(type=MultiLabel, prefix="slide")]
test_evaluator = val_evaluator
