"""ImageNet-1K in class folders below data/imagenet/{train,val}, with the augmentation of DeiT (arXiv:2012.12877)."""

from mmengine.dataset import DefaultSampler

from zoo.data.image_folder import ImageFolder
from zoo.metrics.accuracy import Accuracy

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=ImageFolder,
        root="data/imagenet/train",
        on_error="skip",
        transform=dict(
            recipe="imagenet", train=True, size=224, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25
        ),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=ImageFolder, root="data/imagenet/val", transform=dict(train=False, size=224, crop_pct=0.875)),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=Accuracy, topk=(1, 5))]
test_evaluator = val_evaluator
