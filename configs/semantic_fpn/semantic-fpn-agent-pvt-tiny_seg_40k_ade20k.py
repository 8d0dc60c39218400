"""Semantic FPN, Agent-PVT-T, ADE20K, 40,000 iterations.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train semantic-fpn-agent-pvt-tiny_seg_40k_ade20k
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 40.18 mIoU on the validation images
           (github.com/LeapLabTHU/Agent-Attention)
"""

from mmengine.config import read_base
from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from zoo.engine.optim import WarmupPolyLR
from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.semantic_fpn import semantic_fpn_agent_pvt_tiny

with read_base():
    from .._base_.ade20k import *
    from .._base_.default_runtime import *

model = dict(type=SegmentationModel, segmenter=dict(type=semantic_fpn_agent_pvt_tiny, norm="sync_bn"), num_classes=150)
train_dataloader.update(batch_size=2)

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(decay_norm_and_bias=True),
)
param_scheduler = dict(type=WarmupPolyLR, power=0.9)
train_cfg = dict(by_epoch=False, max_iters=40_000, val_interval=4_000)
val_cfg = dict()
test_cfg = dict()
default_hooks["checkpoint"].update(by_epoch=False, interval=4000, save_best="semantic/mIoU")
log_processor.update(by_epoch=False)
