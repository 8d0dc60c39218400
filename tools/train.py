"""Train from a config: the same as ``zoo train``, and what torchrun starts.

python tools/train.py CONFIG [--work-dir DIR] [--resume] ...
torchrun --nproc-per-node 2 tools/train.py CONFIG ...
"""

import sys

from zoo.cli import main_and_exit

if __name__ == "__main__":
    main_and_exit(["train", *sys.argv[1:]])
