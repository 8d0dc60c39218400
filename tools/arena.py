"""The arena: the same as ``zoo compare``.

python tools/arena.py --quick
python tools/arena.py --all --report docs/benchmarks/arena
"""

import sys

from zoo.cli import main_and_exit

if __name__ == "__main__":
    main_and_exit(["compare", *sys.argv[1:]])
