"""``zoo predict``: classes of images, as a table, JSON lines and pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from zoo.cli.output import track

HELP = "predict images: files, folders or patterns; JSON and pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_or_config", help="model name, config name or config file")
    parser.add_argument("images", nargs="+", help="files, folders, glob patterns")
    parser.add_argument("--weights", help="checkpoint file (default: what the index knows for the model)")
    parser.add_argument("--out", help="folder for predictions.jsonl and the pictures")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--topk", type=int, default=5, help="best classes to name (default 5)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--no-pictures", action="store_true", help="only JSON")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of text")


def run(args: argparse.Namespace) -> int:
    from zoo.classification.inference import expand, load_predictor
    from zoo.files import write_file

    files = [item for _, item in expand(args.images)]
    predictor = load_predictor(args.model_or_config, args.weights, device=args.device, amp=args.amp)
    out = Path(args.out) if args.out else None
    pictures = out is not None and not args.no_pictures
    results = predictor(files, batch_size=args.batch_size, topk=args.topk, on_error="report", keep_images=pictures)
    lines, failed = [], 0
    for number, result in enumerate(track(results, "predicting", total=len(files))):
        lines.append(json.dumps(result.to_dict()))
        if args.json:
            print(lines[-1], flush=True)
        elif result.error:
            print(f"{result.source}: {result.error}", file=sys.stderr)
        else:
            print(f"{result.source}\t{result.name}\t{result.score:.4f}", flush=True)
        failed += result.error is not None
        if out is not None and result.image is not None:
            _draw(result, out / f"{number:05d}_{Path(result.source).stem}.png", args.topk)
    if out is not None:
        write_file(out / "predictions.jsonl", "".join(f"{x}\n" for x in lines))
        print(f"{len(lines)} predictions are in {out}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(lines)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def _draw(result, path: Path, topk: int) -> None:
    from zoo.viz.predictions import Prediction, save_predictions

    names, scores = zip(*result.top)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Prediction(result.image, names, scores, title=Path(result.source).name)
    save_predictions([picture], path, columns=1, topk=topk)
