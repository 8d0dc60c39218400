"""A small TAP-FAN with attention diversification on scikit-learn's handwritten digits, 12 epochs.

Command:   zoo train tap-fan-small-images_cls_12e_digits
Hardware:  2 CPU cores
Time:      not measured here
Score:     99.44 % of 359 held-out scans, seed 0; reproduced here
"""

from mmengine.config import read_base
from timm.loss import LabelSmoothingCrossEntropy

from zoo.backbones.tap_fan import TapFan
from zoo.classification.auxiliary import AttentionDiversificationLoss
from zoo.classification.model import ImageClassifier

with read_base():
    from .._base_.default_runtime import *
    from .._base_.digits import *
    from .._base_.schedule_adamw_cosine import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=TapFan, patch_size=4, embed_dim=64, depth=4, num_heads=2, mlp_ratio=2.0),
    num_classes=10,
    loss=dict(type=LabelSmoothingCrossEntropy, smoothing=0.1),
    auxiliary=[dict(type=AttentionDiversificationLoss, threshold=2.0)],
    data_preprocessor=dict(mean=[77.8] * 3, std=[95.9] * 3),
)
train_cfg.update(max_epochs=12, val_interval=3)
param_scheduler.update(warmup_epochs=1)
optim_wrapper["optimizer"].update(lr=2e-3)
