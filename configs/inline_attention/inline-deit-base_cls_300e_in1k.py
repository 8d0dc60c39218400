"""inline-deit-base, ImageNet-1K at 448 pixels, 300 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train inline-deit-base_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 32 images each (global batch 256)
Time:      not measured here
Score:     82.3 % top-1 published (arXiv:2412.06590); not reproduced here
Schedule:  that of the Agent network of this size, by the same authors; InLine's own configuration was not read
"""

from mmengine.config import read_base

from zoo.backbones.inline_deit import inline_deit_base
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=inline_deit_base, drop_path_rate=0.3),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)
train_dataloader.update(batch_size=32)
train_dataloader["dataset"]["transform"].update(size=448)
val_dataloader.update(batch_size=32)
val_dataloader["dataset"]["transform"].update(size=448, crop_pct=1.0)
test_dataloader = val_dataloader
optim_wrapper["optimizer"].update(lr=2.5e-4)
