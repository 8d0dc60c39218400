"""DeiT-LT, base, on a long-tailed ImageNet-1K at 224 pixels, 1400 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train deit-base-distilled-patch16-224_cls_1400e_in1k-lt --amp
Hardware:  written for 8 GPUs with 128 images each (global batch 1024)
Time:      not measured here
Score:     59.1 % top-1 published on ImageNet-LT, whose subset is another (arXiv:2404.02900); not reproduced here

The teacher is a network trained on the same subset; set model.teacher and model.teacher_weights to yours.
"""

from mmengine.config import read_base

from zoo.backbones.deit_lt import deit_base_distilled_patch16_224
from zoo.backbones.hosts import pyramid_small
from zoo.classification.distillation import DistilledClassifier
from zoo.data.image_folder import ImageFolder
from zoo.data.long_tail import LongTailed
from zoo.engine.long_tail import DeferredReweightingHook

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=DistilledClassifier,
    backbone=dict(type=deit_base_distilled_patch16_224, drop_path_rate=0.1),
    num_classes=1000,
    distillation=dict(kind="hard", alpha=0.5),
    teacher=dict(type=pyramid_small),
    teacher_weights="work_dirs/teacher/epoch_300.pth",
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)
train_dataloader["dataset"] = dict(
    type=LongTailed,
    imbalance=256,
    dataset=dict(
        type=ImageFolder,
        root="data/imagenet/train",
        on_error="skip",
        transform=dict(
            recipe="imagenet", train=True, size=224, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25
        ),
    ),
)
train_cfg.update(max_epochs=1400, val_interval=10)
param_scheduler.update(warmup_epochs=5)
custom_hooks = [dict(type=DeferredReweightingHook, start_epoch=1200)]
