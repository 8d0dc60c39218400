"""Start a training in its own process: ``python run_toy.py CONFIG WORK_DIR [resume]`` (or under torchrun)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

from zoo.engine.compat import end_process
from zoo.engine.launch import train, under_torchrun

if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], work_dir=sys.argv[2], resume="resume" in sys.argv[3:])
    if under_torchrun():
        end_process(0)
