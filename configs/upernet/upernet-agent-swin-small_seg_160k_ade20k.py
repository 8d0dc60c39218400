"""UPerNet, Agent-Swin-S, ADE20K, 160,000 iterations.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train upernet-agent-swin-small_seg_160k_ade20k
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 48.08 mIoU on the validation images
           (github.com/LeapLabTHU/Agent-Attention)
"""

from mmengine.config import read_base

from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.upernet import upernet_agent_swin_small

with read_base():
    from .._base_.ade20k import *
    from .._base_.default_runtime import *
    from .._base_.schedule_segmentation_160k import *

model = dict(type=SegmentationModel, segmenter=dict(type=upernet_agent_swin_small, norm="sync_bn"), num_classes=150)
train_dataloader.update(batch_size=2)
default_hooks["checkpoint"].update(by_epoch=False, interval=16000, save_best="semantic/mIoU")
log_processor.update(by_epoch=False)
