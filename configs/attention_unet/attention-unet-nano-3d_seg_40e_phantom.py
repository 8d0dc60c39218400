"""Attention U-Net on patches of generated abdomens, 40 epochs.

Command:   zoo train attention-unet-nano-3d_seg_40e_phantom
Hardware:  1 CPU core; 3-D networks are trained in float32 on a CPU (docs/medical_training.md)
Time:      not measured
Score:     none recorded
"""

from mmengine.config import read_base

from zoo.medical.model import VolumeSegmenter
from zoo.medical.variants.attention_unet import attention_unet_nano_3d

with read_base():
    from .._base_.default_runtime import *
    from .._base_.phantom import *
    from .._base_.schedule_phantom import *

model = dict(type=VolumeSegmenter, network=dict(type=attention_unet_nano_3d), num_classes=5, window=(48, 48, 32))
default_hooks["checkpoint"].update(save_best="volume/dice")
train_dataloader.update(batch_size=2)
train_dataloader["dataset"].update(axis=None, patch_size=(48, 48, 32), samples_per_volume=2)
