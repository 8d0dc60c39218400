"""What every run has: logging to the terminal, JSON lines and TensorBoard, checkpoints, curves, a seed."""

from mmengine.hooks import IterTimerHook, LoggerHook, ParamSchedulerHook, RuntimeInfoHook
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer

from zoo.engine.hooks import CheckpointHook, CurveHook, FiniteLossHook

default_hooks = dict(
    runtime_info=dict(type=RuntimeInfoHook),
    finite_loss=dict(type=FiniteLossHook),
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=20),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, interval=1, max_keep=2, save_best="accuracy/top1"),
    curves=dict(type=CurveHook),
)
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
log_processor = dict(window_size=20, by_epoch=True)
randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
