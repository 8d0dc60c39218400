"""nnU-Net's schedule (arXiv 1904.08128): SGD with Nesterov's momentum 0.99, a rate that falls by a power of 0.9.

nnU-Net's epoch is 250 steps whatever the size of the data; here it is a pass over the data's samples.
"""

from mmengine.optim import OptimWrapper, PolyLR
from torch.optim import SGD

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=SGD, lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5),
    paramwise_cfg=dict(decay_norm_and_bias=True),
    clip_grad=dict(max_norm=12.0),
)
param_scheduler = dict(type=PolyLR, power=0.9, eta_min=0.0, begin=0, end=1000, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=1000, val_interval=50)
val_cfg = dict()
test_cfg = dict()
