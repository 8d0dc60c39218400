"""MS-Dual-Guided on slices of generated abdomens, 40 epochs.

Command:   zoo train ms-dual-guided-nano_seg_40e_phantom
Hardware:  1 CPU core
Time:      see docs/benchmarks/medical_training.csv, where this recipe is trained by the clock
Score:     none recorded for this schedule; `make bench-medical` trains the same recipe for a given time
"""

from mmengine.config import read_base

from zoo.medical.model import VolumeSegmenter
from zoo.medical.training_losses import DiceCE
from zoo.medical.variants.ms_dual_guided import ms_dual_guided_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.phantom import *
    from .._base_.schedule_phantom import *

# the authors' losses, with Dice and cross entropy in place of cross entropy alone: one organ is small
model = dict(
    type=VolumeSegmenter,
    network=dict(type=ms_dual_guided_nano),
    num_classes=5,
    loss=dict(type=DiceCE),
    window_batch=16,
)
optim_wrapper["optimizer"].update(lr=4e-3)
default_hooks["checkpoint"].update(save_best="volume/dice")
