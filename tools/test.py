"""Evaluate a checkpoint: the same as ``zoo test``, and what torchrun starts.

python tools/test.py CONFIG CHECKPOINT ...
"""

import sys

from zoo.cli import main_and_exit

if __name__ == "__main__":
    main_and_exit(["test", *sys.argv[1:]])
