"""``python tools/predict.py ...`` is ``zoo predict ...`` from a checkout."""

import sys

from zoo.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
