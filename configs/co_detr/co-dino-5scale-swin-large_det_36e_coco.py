"""Co-DINO, Swin-L, five scales, COCO 2017, 36 epochs.

Command:   torchrun --nproc_per_node 16 -m zoo.cli train co-dino-5scale-swin-large_det_36e_coco
Hardware:  written for 16 GPUs with 1 image each (global batch 16)
Time:      not measured here
Score:     60.0 box AP on val2017 published (arXiv:2211.12860 and its repository); not reproduced here
"""

from mmengine.config import read_base

from zoo.backbones.swin import Swin
from zoo.detection.co_postprocess import best_of_pairs_clipped
from zoo.detection.model import DetectionModel
from zoo.detection.variants.co_detr import co_dino_5scale_swin_large

with read_base():
    from .._base_.coco_detection import *
    from .._base_.default_runtime import *
    from .._base_.schedule_detr import *

model = dict(
    type=DetectionModel,
    detector=dict(
        type=co_dino_5scale_swin_large,
        backbone=dict(
            type=Swin,
            embed_dim=192,
            depths=(2, 2, 18, 2),
            num_heads=(6, 12, 24, 48),
            window_size=12,
            out_indices=(0, 1, 2, 3),
            drop_path_rate=0.6,
        ),
    ),
    num_classes=80,
    postprocess=dict(type=best_of_pairs_clipped, count=300, soft_threshold=0.8),
)
default_hooks["checkpoint"].update(save_best="coco/AP")
# The published checkpoints have the 80 classes without gaps.
train_dataloader["dataset"].update(labels="contiguous")
val_dataloader["dataset"].update(labels="contiguous")
train_dataloader.update(batch_size=1)
train_cfg.update(max_epochs=36)
param_scheduler.update(milestones=[30])
optim_wrapper["optimizer"].update(lr=2e-4)
