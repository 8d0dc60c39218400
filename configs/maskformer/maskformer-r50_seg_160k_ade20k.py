"""MaskFormer, ResNet-50, ADE20K, 160,000 iterations.

Command:   torchrun --nproc_per_node 4 -m zoo.cli train maskformer-r50_seg_160k_ade20k
Hardware:  written for 4 GPUs with 4 images each (global batch 16)
Time:      not measured here
Score:     44.5 mIoU on the validation images reported (arXiv:2107.06278); not reproduced here
"""

from mmengine.config import read_base

from zoo.segmentation.mask_postprocess import mask_postprocess
from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.variants.maskformer import maskformer_r50

with read_base():
    from .._base_.ade20k import *
    from .._base_.default_runtime import *
    from .._base_.schedule_segmentation_160k import *

model = dict(
    type=SegmentationModel,
    segmenter=dict(type=maskformer_r50),
    num_classes=150,
    postprocess=dict(type=mask_postprocess, tasks=["sem_seg"]),
)
optim_wrapper["optimizer"].update(lr=1e-4, weight_decay=1e-4)
optim_wrapper.update(paramwise_cfg=dict(custom_keys={"segmenter.backbone": dict(lr_mult=0.1)}))
optim_wrapper.update(clip_grad=dict(max_norm=0.01))
param_scheduler.update(power=0.9, warmup_iters=0)
default_hooks["checkpoint"].update(save_best="semantic/mIoU")
log_processor.update(by_epoch=False)
