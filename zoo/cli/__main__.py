"""``python -m zoo.cli``, which ``torchrun -m zoo.cli train ...`` needs."""

import sys

from zoo.cli import main

sys.exit(main())
