"""MONAI's Swin-UNETR under the same recipe, nnU-Net's schedule.

Command:   zoo train monai-swin-unetr-3d_seg_1000e_synapse
Hardware:  written for 1 GPU with 2 patches a step
Data:      Synapse (BTCV), 13 organs, in a layout of docs/medical_data.md below data/volumes
Time:      not measured here
Score:     none recorded; not reproduced. The authors' optimizer is another (AdamW)
"""

from mmengine.config import read_base

from zoo.medical.model import VolumeSegmenter
from zoo.medical.variants.monai import monai_swin_unetr_3d

with read_base():
    from .._base_.default_runtime import *
    from .._base_.schedule_nnunet import *
    from .._base_.volumes import *

model = dict(
    type=VolumeSegmenter,
    network=dict(type=monai_swin_unetr_3d),
    num_classes=14,
    window=(96, 96, 96),
)
default_hooks["checkpoint"].update(interval=50, save_best="volume/dice")
train_dataloader["dataset"].update(patch_size=(96, 96, 96))
