"""Evaluate a checkpoint: the same as ``zoo test``, and what torchrun starts.

python tools/test.py CONFIG CHECKPOINT ...
"""

import sys

from zoo.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["test", *sys.argv[1:]]))
