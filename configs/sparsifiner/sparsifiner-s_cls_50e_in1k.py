"""sparsifiner-s, fine-tuned on ImageNet-1K at 224 pixels, 50 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train sparsifiner-s_cls_50e_in1k --amp --cfg-options load_from=WEIGHTS
Hardware:  written for 8 GPUs with 128 images each (global batch 1024)
Time:      not measured here
Score:     none published in text for this recipe; not reproduced here

The authors begin with DeiT-S, train the predictors for 5 epochs to reconstruct its attention, and then the network for
45 with distillation. Here the predictors learn through the attention itself (straight_through), without a teacher.
"""

from mmengine.config import read_base

from zoo.backbones.sparsifiner import sparsifiner_s
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_finetune import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=sparsifiner_s, drop_path_rate=0.1),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)
train_cfg.update(max_epochs=50)
