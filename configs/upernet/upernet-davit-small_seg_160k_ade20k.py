"""UPerNet, DaViT-S, ADE20K, 160,000 iterations.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train upernet-davit-small_seg_160k_ade20k
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 48.8 mIoU on the validation images (arXiv:2204.03645)
Note:      the authors publish the settings of DaViT-T; the stochastic depth here is that of it
"""

from mmengine.config import read_base

from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.upernet import upernet_davit_small

with read_base():
    from .._base_.ade20k import *
    from .._base_.default_runtime import *
    from .._base_.schedule_segmentation_160k import *

model = dict(type=SegmentationModel, segmenter=dict(type=upernet_davit_small, norm="sync_bn"), num_classes=150)
train_dataloader.update(batch_size=2)
optim_wrapper.update(paramwise_cfg=dict(decay_norm_and_bias=True))
default_hooks["checkpoint"].update(by_epoch=False, interval=16000, save_best="semantic/mIoU")
log_processor.update(by_epoch=False)
