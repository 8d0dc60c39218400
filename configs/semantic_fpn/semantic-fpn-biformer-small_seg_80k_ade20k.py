"""Semantic FPN, BiFormer-S, ADE20K, 80,000 iterations.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train semantic-fpn-biformer-small_seg_80k_ade20k
Hardware:  written for 8 GPUs with 4 images each (global batch 32)
Time:      not measured here
Score:     reported, not reproduced: 48.9 mIoU on the validation images (github.com/rayleizhu/BiFormer)
"""

from mmengine.config import read_base
from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.optim import WarmupCosineLR
from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.semantic_fpn import semantic_fpn_biformer_small

with read_base():
    from .._base_.ade20k import *
    from .._base_.default_runtime import *

model = dict(type=SegmentationModel, segmenter=dict(type=semantic_fpn_biformer_small, norm="sync_bn"), num_classes=150)

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=2e-4, weight_decay=1e-4))
param_scheduler = dict(type=WarmupCosineLR, warmup_iters=1000, warmup_start=0.1, min_ratio=1e-8)
train_cfg = dict(by_epoch=False, max_iters=80_000, val_interval=4_000)
val_cfg = dict()
test_cfg = dict()
optim_wrapper.update(paramwise_cfg=dict(decay_norm_and_bias=True))
default_hooks["checkpoint"].update(by_epoch=False, interval=4000, save_best="semantic/mIoU")
log_processor.update(by_epoch=False)
