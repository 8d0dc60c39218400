"""SegFormer-B1, ADE20K, 160,000 iterations.

Command:   torchrun --nproc_per_node 8 -m zoo.cli train segformer-b1_seg_160k_ade20k
Hardware:  written for 8 GPUs with 2 images each (global batch 16)
Time:      not measured here
Score:     reported, not reproduced: 42.2 mIoU on the validation images (arXiv:2105.15203, table 1)
"""

from mmengine.config import read_base

from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.segformer import segformer_b1

with read_base():
    from .._base_.ade20k import *
    from .._base_.default_runtime import *
    from .._base_.schedule_segmentation_160k import *

model = dict(type=SegmentationModel, segmenter=dict(type=segformer_b1, norm="sync_bn"), num_classes=150)
train_dataloader.update(batch_size=2)
optim_wrapper.update(paramwise_cfg=dict(custom_keys={"segmenter.head.": dict(lr_mult=10.0)}))
default_hooks["checkpoint"].update(by_epoch=False, interval=16000, save_best="semantic/mIoU")
log_processor.update(by_epoch=False)
