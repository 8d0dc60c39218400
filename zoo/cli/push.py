"""``zoo push``: a model with its weights, config and card to the Hugging Face Hub."""

from __future__ import annotations

import argparse
import json

HELP = "push a model (weights, config, card) to the Hugging Face Hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model name")
    parser.add_argument("weights", help="checkpoint file")
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--num-classes", type=int, help="classes of the weights (default: the model's own)")
    parser.add_argument("--arguments", metavar="JSON", help="further arguments that the model is built with")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", help="of the commit")


def run(args: argparse.Namespace) -> int:
    from zoo.weights.hf import push

    try:
        arguments = json.loads(args.arguments) if args.arguments else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"--arguments {args.arguments!r} is no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"--arguments {args.arguments!r}: a JSON object is expected")
    if args.num_classes is not None:
        arguments["num_classes"] = args.num_classes
    address = push(
        args.model,
        args.weights,
        args.repository,
        arguments=arguments,
        private=args.private,
        message=args.message,
    )
    print(address)
    return 0
