"""agent-pvt-medium-256, ImageNet-1K at 256 pixels, 300 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train agent-pvt-medium-256_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 64 images each (global batch 512)
Time:      not measured here
Score:     83.8 % top-1 published (arXiv:2312.08874); not reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.agent_pvt import agent_pvt_medium_256
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=agent_pvt_medium_256, drop_path_rate=0.3),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)
param_scheduler.update(warmup_epochs=5)
train_dataloader.update(batch_size=64)
train_dataloader["dataset"]["transform"].update(size=256)
val_dataloader.update(batch_size=64)
val_dataloader["dataset"]["transform"].update(size=256, crop_pct=1.0)
test_dataloader = val_dataloader
optim_wrapper["optimizer"].update(lr=5e-4)
