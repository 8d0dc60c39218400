"""Attention U-Net on volumes of 160 x 160 x 96 voxels, nnU-Net's schedule.

Command:   zoo train attention-unet-3d_seg_1000e_ct82
Hardware:  written for 1 GPU with 2 patches a step
Data:      Pancreas CT-82 or any other of two classes, in a layout of docs/medical_data.md below data/volumes
Time:      not measured here
Score:     none; the authors' schedule is not known here, their loss and crop are used. Not reproduced
"""

from mmengine.config import read_base

from zoo.medical.losses import soft_dice_loss
from zoo.medical.model import VolumeSegmenter
from zoo.medical.variants.attention_unet import attention_unet_3d

with read_base():
    from .._base_.default_runtime import *
    from .._base_.schedule_nnunet import *
    from .._base_.volumes import *

model = dict(
    type=VolumeSegmenter,
    network=dict(type=attention_unet_3d),
    num_classes=2,
    loss=dict(type=soft_dice_loss),
    window=(160, 160, 96),
)
default_hooks["checkpoint"].update(interval=50, save_best="volume/dice")
train_dataloader["dataset"].update(patch_size=(160, 160, 96))
