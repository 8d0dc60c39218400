"""ADE20K's scene parsing below data/ade (ADEChallengeData2016): 150 classes, random resize, crops of 512 pixels."""

from mmengine.dataset import DefaultSampler

from zoo.data.segmentation_layouts import Ade20k
from zoo.metrics.semantic import SemanticSegmentation

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=Ade20k,
        root="data/ade/ADEChallengeData2016",
        split="train",
        on_error="skip",
        transform=dict(recipe="crop", train=True, crop=512, size=512, max_size=2048),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=Ade20k,
        root="data/ade/ADEChallengeData2016",
        split="val",
        transform=dict(train=False, size=512, max_size=2048),
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=SemanticSegmentation)]
test_evaluator = val_evaluator
