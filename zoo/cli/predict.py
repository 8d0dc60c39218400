"""``zoo predict``: what a model says of images, videos and volumes, as text, JSON lines, pictures and label maps."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zoo.cli import bags, segmentation, volumes
from zoo.cli.output import track

HELP = "predict images, videos and volumes: files, folders, patterns, addresses; JSON lines, pictures, label maps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_or_config", help="model name, config name or file, or a file that zoo export wrote")
    parser.add_argument(
        "images", nargs="+", help="files, folders, glob patterns, videos, volumes; addresses with --allow-urls"
    )
    parser.add_argument("--weights", help="checkpoint file (default: what the index knows for the model)")
    parser.add_argument(
        "--runtime", default="auto", help="eager, or onnx, torch-export, aoti for exported files (default: by the file)"
    )
    parser.add_argument("--out", help="folder for predictions.jsonl and the pictures")
    parser.add_argument("--batch-size", type=int, help="images, or windows, at once (default 16 images, 1 window)")
    parser.add_argument("--topk", type=int, default=5, help="best classes to name (default 5)")
    parser.add_argument("--score-threshold", type=float, help="detectors: drop boxes below it (default 0.3)")
    parser.add_argument("--max-detections", type=int, help="detectors: boxes of an image at most (default 100)")
    parser.add_argument(
        "--polygons", action="store_true", help="models of masks: write outlines rather than run lengths"
    )
    parser.add_argument(
        "--attention", action="store_true", help="detectors: also draw where the best queries look; needs --out"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--amp", nargs="?", const="bfloat16", default=False, help="autocast: bfloat16 (default) or float16"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    parser.add_argument("--size", type=int, help="image side in pixels (default: the model's)")
    parser.add_argument("--workers", type=int, help="threads that decode and prepare (default: CPU cores, 8 at most)")
    parser.add_argument("--frames", choices=("first", "all"), default="first", help="of animations and TIFF pages")
    parser.add_argument("--video-stride", type=int, default=1, help="take every n-th frame of a video")
    parser.add_argument("--allow-urls", action="store_true", help="fetch http and https addresses")
    parser.add_argument(
        "--on-error",
        choices=("report", "skip", "raise"),
        default="report",
        help="images that cannot be read: say so and go on (default), leave out, or stop",
    )
    parser.add_argument("--no-pictures", action="store_true", help="only JSON")
    parser.add_argument("--coco", help="file to write all results to as a COCO results file")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of text")
    segmentation.add_predict_arguments(parser)
    volumes.add_predict_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import json

    from zoo.files import save_atomically, write_file
    from zoo.inference.load import is_exported, load_predictor, task_of
    from zoo.inference.results import picture_name
    from zoo.inference.sources import count

    if bags.wanted(args):
        return bags.predict(args)
    if not is_exported(args.model_or_config) and task_of(args.model_or_config) == "medical":
        return volumes.predict(args)
    for option in volumes.given_for_volumes(args):
        raise ValueError(f"{option} is for models of volumes, not for {args.model_or_config}")
    paths = [p for p in args.images if "://" not in p]
    total = count(args.images) if paths else len(args.images)  # before the model is loaded: a wrong path fails at once
    names = ("device", "amp", "compile", "size", "runtime")
    predictor = load_predictor(
        args.model_or_config, args.weights, **{n: getattr(args, n) for n in names if _given(args, n)}
    )
    own = [n for n in ("topk", "score_threshold", "max_detections", "polygons") if n in predictor.options]
    masks = segmentation.predict_options(args, predictor.options)
    for name in ("score_threshold", "max_detections", "polygons"):
        if _given(args, name) and name not in own and not (name == "polygons" and "masks" in masks):
            raise ValueError(f"--{name.replace('_', '-')} is for detectors, not for {args.model_or_config}")
    if args.attention and (args.out is None or not hasattr(predictor, "draw_attention")):
        raise ValueError("--attention is for detectors, and needs --out for its pictures")
    out = Path(args.out) if args.out else None
    pictures = out is not None and not args.no_pictures
    call = ("batch_size", *own, "on_error", "workers", "frames", "video_stride", "allow_urls")
    results = predictor(
        args.images,
        stream=True,
        keep_images=pictures or args.attention,
        **{n: getattr(args, n) for n in call if _given(args, n)},
        **masks,
    )
    mask_files = segmentation.MaskFiles(out) if out is not None and "masks" in predictor.options else None
    state = {"lines": 0, "failed": 0}
    entries: list[dict] = []

    def each(write) -> None:
        for number, result in enumerate(track(results, "predicting", total=total)):
            write((result.to_json() + "\n").encode())
            state["lines"] += 1
            state["failed"] += result.error is not None
            if args.json:
                print(result.to_json(), flush=True)
            elif result.error:
                print(f"{result.source}: {result.error}", file=sys.stderr)
            else:
                print(_line(result), flush=True)
            if args.coco:
                entries.extend(result.to_coco(number))
            if pictures and out is not None and result.error is None:
                result.save(out / picture_name(number, result))
            if mask_files is not None and result.error is None:
                mask_files.add(number, result)
            if args.attention and out is not None and result.error is None:
                from zoo.viz.figures import save_figure

                name = f"{Path(picture_name(number, result)).stem}_attention.png"
                save_figure(predictor.draw_attention(result.image), out / name)  # type: ignore[attr-defined]

    if out is None:
        each(lambda line: None)
    else:
        save_atomically(out / "predictions.jsonl", lambda file: each(file.write))
        if mask_files is not None:
            mask_files.finish()
        print(f"{state['lines']} predictions are in {out}", file=sys.stderr)
    if args.coco:
        write_file(args.coco, json.dumps(entries) + "\n")
    if state["failed"]:
        print(f"{state['failed']} of {state['lines']} images could not be read", file=sys.stderr)
    return 1 if state["failed"] else 0


def _given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name)
    return value is not None and value is not False  # a threshold of 0 is given


def _line(result) -> str:
    frame = "" if result.frame is None else f"#{result.frame}"
    best = result.rows()[0] if result.rows() else {}
    return "\t".join(
        [
            result.source + frame,
            *(str(best[k]) if k == "name" else f"{best[k]:.4f}" for k in ("name", "score", "share") if k in best),
        ]
    )
