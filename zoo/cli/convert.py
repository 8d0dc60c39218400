"""``zoo convert``: the authors' checkpoints as safetensors under our names, and back."""

from __future__ import annotations

import argparse
import json

from zoo.cli.output import human, print_json

HELP = "convert a checkpoint of a system's authors to safetensors, or back"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("system", help="whose checkpoint it is (davit, biformer, ...; 'list' names them)")
    parser.add_argument("source", nargs="?", help="the file to read; nothing in it is run")
    parser.add_argument("target", nargs="?", help="the file to write (.safetensors; .pth with --to-official)")
    parser.add_argument("--entry", help="the authors' class, where the system has several that fit")
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--kwargs", metavar="JSON", help="arguments of the authors' class; every key and shape is checked")
    of.add_argument("--model", help="our model that it is of; every key and shape is checked (default: looked for)")
    parser.add_argument("--to-official", action="store_true", help="write our weights under the authors' names")
    parser.add_argument("--no-ema", action="store_true", help="take the raw weights of a file that has averaged ones")
    parser.add_argument("--on-nan", choices=("error", "warn", "ignore"), default="error", help="weights that are NaN")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from zoo.weights.convert import convert, revert
    from zoo.weights.importers import importer, systems

    if args.system == "list" and args.source is None:
        for name in systems():
            print(f"{name}\t{', '.join(getattr(importer(name), 'CHECKPOINTS', {})) or 'no networks'}")
        return 0
    if args.source is None or args.target is None:
        raise ValueError("give the file to read and the file to write")
    if args.to_official:
        done = revert(args.system, args.source, args.target, entry=args.entry)
    else:
        done = convert(
            args.system,
            args.source,
            args.target,
            entry=args.entry,
            kwargs=_kwargs(args.kwargs),
            model=args.model,
            prefer_ema=not args.no_ema,
            on_nan=args.on_nan,
        )
    if args.json:
        print_json({**vars(done), "path": str(done.path)})
        return 0
    what = f"{done.tensors} tensors, {human(done.parameters)} numbers, of {done.entry}"
    print(f"{done.path}: {what}" + (f"; it fits {done.model}" if done.model else ""))
    if not args.to_official and done.model is None and args.kwargs is None:
        print("shapes were not checked: no model here has them; say which it is of with --kwargs")
    return 0


def _kwargs(text: str | None) -> dict | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--kwargs {text!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--kwargs {text!r}: a JSON object is expected")
    return found
