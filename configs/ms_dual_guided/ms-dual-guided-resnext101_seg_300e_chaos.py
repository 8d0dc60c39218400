"""MS-Dual-Guided over ResNeXt-101 on slices of abdominal MRI.

Command:   zoo train ms-dual-guided-resnext101_seg_300e_chaos
Hardware:  written for 1 GPU with 8 slices of 256 x 256 pixels a step
Data:      CHAOS, T1 dual, four organs, in a layout of docs/medical_data.md below data/volumes
Time:      not measured here
Score:     none recorded; the authors' losses are used, their schedule is not known here. Not reproduced
"""

from mmengine.config import read_base

from zoo.medical.model import VolumeSegmenter
from zoo.medical.variants.ms_dual_guided import ms_dual_guided_resnext101

with read_base():
    from .._base_.default_runtime import *
    from .._base_.schedule_phantom import *
    from .._base_.volumes import *

model = dict(type=VolumeSegmenter, network=dict(type=ms_dual_guided_resnext101), num_classes=5)
default_hooks["checkpoint"].update(save_best="volume/dice")
optim_wrapper["optimizer"].update(lr=1e-3)
train_cfg.update(max_epochs=300)
train_dataloader.update(batch_size=8)
train_dataloader["dataset"].update(axis=2, patch_size=(256, 256), samples_per_volume=16)
