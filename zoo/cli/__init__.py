"""The ``zoo`` command: one file a verb. A verb defines ``HELP``, ``add_arguments(parser)`` and ``run(args) -> int``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from zoo import __version__

VERBS = (
    "list",
    "show",
    "train",
    "test",
    "predict",
    "export",
    "explain",
    "compare",
    "bench",
    "data",
    "config",
    "convert",
    "pull",
    "push",
    "card",
    "doctor",
)

#: Errors of the user's input, shown as one message; anything else is a defect and shows its traceback.
USER_ERRORS = (ValueError, TypeError, LookupError, OSError, RuntimeError)


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for a command line; only the verb that is asked for is imported, so that `zoo list` starts at once."""
    parser = argparse.ArgumentParser(prog="zoo", description="Train, evaluate and use the models of attnzoo.")
    parser.add_argument("--version", action="version", version=f"attnzoo {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    asked = next((a for a in argv if not a.startswith("-")), None)
    for verb in VERBS:
        module = importlib.import_module(f"zoo.cli.{_file(verb)}") if asked in (verb, None) else None
        sub = subparsers.add_parser(
            verb, help=module.HELP if module else None, description=module.HELP if module else None
        )
        if module:
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zoo VERB ...``; returns the exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(argv).parse_args(argv)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader went away (`zoo list | head`); keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except USER_ERRORS as error:
        if args.debug:
            raise
        print(f"zoo {args.verb}: {type(error).__name__}: {_message(error)}", file=sys.stderr)
        return 1


def main_and_exit(argv: Sequence[str] | None = None) -> NoReturn:
    """Run :func:`main` and end the process with its status; under torchrun without tearing the interpreter down."""
    try:
        status = main(argv)
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        status = stop.code
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from zoo.engine.compat import end_process

        end_process(status)
    raise SystemExit(status)


def _file(verb: str) -> str:
    return "list_models" if verb == "list" else verb


def _message(error: BaseException) -> str:
    # KeyError and LookupError quote their message
    return str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
