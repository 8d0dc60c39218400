"""scikit-learn's handwritten digits: 1,438 scans to train on, 359 held out, enlarged from 8 x 8 to 32 x 32 pixels."""

from mmengine.dataset import DefaultSampler

from zoo.data.digits import Digits
from zoo.metrics.accuracy import Accuracy

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=Digits, split="train", size=32, transform=dict(recipe="light", train=True, size=32, border="black")
    ),
)
val_dataloader = dict(
    batch_size=120,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=Digits, split="test", size=32, transform=dict(train=False, size=32, crop_pct=1.0)),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=Accuracy, topk=(1, 5))]
test_evaluator = val_evaluator
