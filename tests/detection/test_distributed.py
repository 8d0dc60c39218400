"""Two processes with one image each train as one process with both: losses are divided by the boxes of all."""

import os
import socket
import subprocess
import sys

import torch

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from zoo.detection.criterion import global_number
from zoo.detection.data_sample import DetDataSample
from zoo.detection.model import DetectionModel

rank, world, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", rank=rank, world_size=world)
torch.manual_seed(0)
resnet = dict(type="zoo.detection.resnet.ResNetBackbone", name="resnet18", planes=(8, 8, 16, 16), stem=8)
# Dense attention: the gradients of sampling points jump between pixels, which rounding decides.
model = DetectionModel(dict(type="conditional_detr_nano", backbone=resnet), 4).train()
generator = torch.Generator().manual_seed(1)
images, samples = [], []
for i, boxes in enumerate(([[2.0, 3, 40, 50], [10, 10, 30, 30], [5, 20, 60, 60]], [[8.0, 8, 20, 24]])):
    images.append(torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8))
    samples.append(DetDataSample(metainfo=dict(img_id=i, img_shape=(64, 64))).set_gt(boxes, [i + 1] * len(boxes)))
own = slice(rank, rank + 1) if world > 1 else slice(None)
if world > 1:
    assert float(global_number(3.0 if rank == 0 else 1.0, torch.device("cpu"))) == 2.0
    model = torch.nn.parallel.DistributedDataParallel(model)
bare = model.module if world > 1 else model
data = bare.data_preprocessor({"inputs": images[own], "data_samples": samples[own]}, True)
losses = model(**data, mode="loss")
sum(v for k, v in losses.items() if "loss" in k).backward()
if rank == 0:
    torch.save({n: p.grad for n, p in bare.named_parameters() if p.grad is not None}, out)
if world > 1:
    dist.destroy_process_group()
"""


def test_gradients_are_those_of_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}

    def start(rank, world):
        command = [sys.executable, "-c", SCRIPT, str(rank), str(world), str(tmp_path / f"{world}.pth")]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    running = [start(0, 1), start(0, 2), start(1, 2)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    alone, together = (torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in (1, 2))
    assert set(alone) == set(together)
    assert len(alone) > 100
    for name, gradient in alone.items():
        assert torch.allclose(gradient, together[name], rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-7), name
