"""``zoo predict`` on bags of patch features: class probabilities, and heat maps of attention over the slide."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zoo.cli.output import track


def wanted(args: argparse.Namespace) -> bool:
    """Whether what is to be predicted are bags: files that can be nothing else, or folders of such."""
    from zoo.data.bags import is_bag_file

    def is_bag(path: str) -> bool:
        folder = Path(path)
        return is_bag_file(path) or (folder.is_dir() and any(is_bag_file(p) for p in folder.iterdir()))

    return all(is_bag(p) for p in args.images)


def predict(args: argparse.Namespace) -> int:
    """Predict bags; with ``--out`` also a picture and a table of the attention for each."""
    from zoo.files import save_atomically
    from zoo.inference.results import picture_name
    from zoo.medical.bag_inference import find_bags, load_bag_predictor

    bags = find_bags(args.images)  # before the model is loaded: a wrong path fails at once
    options = {n: getattr(args, n) for n in ("device", "amp", "compile") if getattr(args, n) not in (None, False)}
    predictor = load_bag_predictor(args.model_or_config, args.weights, **options)
    out = Path(args.out) if args.out else None
    failed = 0

    def each(write) -> None:
        nonlocal failed
        results = predictor(bags, stream=True, on_error=args.on_error)
        for number, result in enumerate(track(results, "predicting", total=len(bags))):
            write((result.to_json() + "\n").encode())
            failed += result.error is not None
            if args.json:
                print(result.to_json(), flush=True)
            elif result.error:
                print(f"{result.source}: {result.error}", file=sys.stderr)
            else:
                print(f"{result.source}\t{result.name}\t{result.score:.4f}", flush=True)
            if out is not None and result.error is None:
                picture = out / picture_name(number, result)
                if not args.no_pictures:
                    result.save(picture)
                result.save_attention(picture.with_name(f"{picture.stem}_attention.csv"))

    if out is None:
        each(lambda line: None)
    else:
        save_atomically(out / "predictions.jsonl", lambda file: each(file.write))
        print(f"{len(bags)} predictions are in {out}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(bags)} bags could not be used", file=sys.stderr)
    return 1 if failed else 0
