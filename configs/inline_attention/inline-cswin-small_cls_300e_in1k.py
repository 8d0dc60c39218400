"""inline-cswin-small, ImageNet-1K at 224 pixels, 300 epochs.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train inline-cswin-small_cls_300e_in1k --amp
Hardware:  written for 8 GPUs with 128 images each (global batch 1024)
Time:      not measured here
Score:     83.8 % top-1 published (arXiv:2412.06590); not reproduced here
Schedule:  that of the Agent network of this size, by the same authors; InLine's own configuration was not read
"""

from mmengine.config import read_base

from zoo.backbones.inline_cswin import inline_cswin_small
from zoo.classification.model import ImageClassifier
from zoo.engine.hooks import EMAHook

with read_base():
    from .._base_.default_runtime import *
    from .._base_.imagenet import *
    from .._base_.schedule_in1k_300e import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=inline_cswin_small, drop_path_rate=0.4),
    num_classes=1000,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
)
custom_hooks = [dict(type=EMAHook, decay=0.99984)]
