"""ctm_resnet152, ImageNet-1K at 224 pixels, 300 epochs, with the loss over all ticks.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train ctm-resnet152_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 64 images each, as the authors (global batch 512)
Time:      not measured here
Score:     not trained here; the authors train for 500,000 iterations (arXiv:2505.05522)
"""

from mmengine.config import read_base

from zoo.backbones.ctm import ctm_resnet152
from zoo.classification.ticks import TickClassifier, TickLoss

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(type=TickClassifier, backbone=dict(type=ctm_resnet152), num_classes=1000, loss=dict(type=TickLoss))
train_dataloader.update(batch_size=64)
optim_wrapper["optimizer"].update(lr=5e-4, weight_decay=0.0)
optim_wrapper["clip_grad"].update(max_norm=20.0)
