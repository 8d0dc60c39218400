"""agent-swin-base-384, ImageNet-1K at 384 pixels, 30 epochs from the 224-pixel weights.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train agent-swin-base-384_cls_30e_in1k --cfg-options load_from=FILE
Hardware:  written for 8 GPUs with 64 images each (global batch 512)
Time:      not measured here
Score:     84.9 % top-1 published (arXiv:2312.08874); not reproduced here
"""

from mmengine.config import read_base
from timm.loss import LabelSmoothingCrossEntropy

from zoo.backbones.agent_swin import agent_swin_base_384
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_finetune import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=agent_swin_base_384, drop_path_rate=0.5),
    num_classes=1000,
    loss=dict(type=LabelSmoothingCrossEntropy, smoothing=0.1),
)
train_dataloader.update(batch_size=64)
train_dataloader["dataset"]["transform"].update(size=384)
val_dataloader.update(batch_size=64)
val_dataloader["dataset"]["transform"].update(size=384, crop_pct=1.0)
test_dataloader = val_dataloader
optim_wrapper["optimizer"].update(lr=2e-5, weight_decay=1e-8)
optim_wrapper.update(paramwise_cfg=dict(layer_decay=1.0))
load_strict = False
