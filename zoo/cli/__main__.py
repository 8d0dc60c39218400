"""``python -m zoo.cli``, which ``torchrun -m zoo.cli train ...`` needs."""

import sys

from zoo.cli import main_and_exit

if __name__ == "__main__":
    main_and_exit(sys.argv[1:])
