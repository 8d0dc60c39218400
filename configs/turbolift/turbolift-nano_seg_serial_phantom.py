"""Turbolift's serial training: one network, organ after organ, each stage from the weights of the one before.

Command:   zoo train turbolift-nano_seg_serial_phantom
Hardware:  1 CPU core
Time:      not measured
Score:     none recorded

The last stage segments the small organ, which has the fewest voxels to learn from. Each stage works in its own folder
below the work directory; --resume goes on where a run was stopped, within or between stages.
"""

from mmengine.config import read_base

from zoo.data.volume_task import VolumeTask
from zoo.medical.model import VolumeSegmenter
from zoo.medical.variants.turbolift import deep_supervised_unet_nano

with read_base():
    from .._base_.default_runtime import *
    from .._base_.phantom import *
    from .._base_.schedule_phantom import *

model = dict(type=VolumeSegmenter, network=dict(type=deep_supervised_unet_nano), num_classes=2, window_batch=16)
default_hooks["checkpoint"].update(save_best="volume/dice")
train_dataloader["dataset"].update(type=VolumeTask, organs=["liver"])
val_dataloader["dataset"].update(type=VolumeTask, organs=["liver"])
test_dataloader = val_dataloader


def _task(*organs):
    data = dict(dataset=dict(organs=list(organs)))
    return dict(train_dataloader=data, val_dataloader=data, test_dataloader=data)


stages = [
    dict(name="liver", train_cfg=dict(max_epochs=20), **_task("liver")),
    dict(name="spleen", train_cfg=dict(max_epochs=10), **_task("spleen")),
    dict(name="kidney", train_cfg=dict(max_epochs=10), **_task("kidney")),
    dict(name="gallbladder", train_cfg=dict(max_epochs=20), start_from="best", **_task("gallbladder")),
]
