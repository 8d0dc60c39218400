"""``zoo pull``: a weights file into the cache; prints where it is."""

from __future__ import annotations

import argparse

HELP = "get a weights file (model name, address, or hf:owner/repository) and print its path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="+", help="model name, http(s) address, or hf:owner/repository[@revision][:file]"
    )


def run(args: argparse.Namespace) -> int:
    from zoo.weights.hub import resolve_weights

    for source in args.source:
        print(resolve_weights(source))
    return 0
