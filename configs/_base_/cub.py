"""CUB-200-2011 in class folders below data/cub/{train,val}, at 224 pixels."""

from mmengine.dataset import DefaultSampler

from zoo.data.image_folder import ImageFolder
from zoo.metrics.accuracy import Accuracy

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=ImageFolder,
        root="data/cub/train",
        on_error="skip",
        transform=dict(recipe="imagenet", train=True, size=224),
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=ImageFolder, root="data/cub/val", transform=dict(train=False, size=224, crop_pct=0.875)),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=Accuracy, topk=(1, 5))]
test_evaluator = val_evaluator
