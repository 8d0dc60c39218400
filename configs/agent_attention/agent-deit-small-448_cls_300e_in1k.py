"""agent-deit-small-448, ImageNet-1K at 448 pixels, 300 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train agent-deit-small-448_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 64 images each (global batch 512)
Time:      not measured here
Score:     83.1 % top-1 published (arXiv:2312.08874); not reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.agent_deit import agent_deit_small_448
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=agent_deit_small_448, drop_path_rate=0.1),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)
train_dataloader.update(batch_size=64)
train_dataloader["dataset"]["transform"].update(size=448)
val_dataloader.update(batch_size=64)
val_dataloader["dataset"]["transform"].update(size=448, crop_pct=1.0)
test_dataloader = val_dataloader
optim_wrapper["optimizer"].update(lr=5e-4)
