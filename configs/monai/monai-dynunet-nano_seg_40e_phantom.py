"""MONAI's DynUNet on slices of generated abdomens, 40 epochs.

Command:   zoo train monai-dynunet-nano_seg_40e_phantom
Hardware:  1 CPU core
Time:      not measured
Score:     none recorded for this schedule; `make bench-medical` trains the same recipe for a given time
"""

from mmengine.config import read_base

from zoo.medical.model import VolumeSegmenter
from zoo.medical.variants.monai import monai_dynunet_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.phantom import *
    from .._base_.schedule_phantom import *

model = dict(type=VolumeSegmenter, network=dict(type=monai_dynunet_nano), num_classes=5, window_batch=16)
default_hooks["checkpoint"].update(save_best="volume/dice")
