"""Train from a config: the same as ``zoo train``, and what torchrun starts.

python tools/train.py CONFIG [--work-dir DIR] [--resume] ...
torchrun --nproc-per-node 2 tools/train.py CONFIG ...
"""

import sys

from zoo.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
