"""``zoo card``: the card of a model, in Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "print the card of models (what is known of them, in Markdown), or write one file a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", help="model names or patterns (all of them: '*')")
    parser.add_argument("--out", help="folder for <model>.md instead of printing")


def run(args: argparse.Namespace) -> int:
    from zoo.files import write_file
    from zoo.registry import MODELS
    from zoo.weights.card import model_card
    from zoo.weights.index import model_info

    names = [n for pattern in args.models for n in (MODELS.names(pattern) or [MODELS.entry(pattern).name])]
    for name in dict.fromkeys(names):
        text = model_card(name, model_info(name))
        if args.out:
            print(write_file(Path(args.out) / f"{name}.md", text))
        else:
            print(text)
    return 0
