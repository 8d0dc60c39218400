"""``zoo export``: a model as a file for another runtime, compared with PyTorch before it gets its name."""

from __future__ import annotations

import argparse
from typing import Any

from zoo.cli.output import print_json

HELP = "export a model to ONNX, torch.export or AOTInductor, or to ONNX in int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_or_config", help="model name, config name or config file")
    parser.add_argument("out", help="file to write: .onnx, or .pt2 for torch-export and aoti")
    parser.add_argument("--format", choices=("onnx", "torch-export", "aoti"), help="default: by the ending of OUT")
    parser.add_argument("--weights", help="checkpoint file (default: what the index knows for the model)")
    parser.add_argument(
        "--random-weights", action="store_true", help="export the model as initialised, to try out or to measure"
    )
    parser.add_argument("--num-classes", type=int, help="with --random-weights: size of the classifier")
    parser.add_argument("--size", type=int, help="image side in pixels (default: the model's)")
    parser.add_argument("--dynamic", action="store_true", help="leave the size open too, where the model allows it")
    parser.add_argument("--static", action="store_true", help="fix the number of images too, to --batch")
    parser.add_argument("--batch", type=int, default=1, help="number of images with --static (default 1)")
    parser.add_argument("--int8", action="store_true", help="ONNX with 8-bit weights and activations")
    parser.add_argument("--calibration", metavar="DATA", help="with --int8: folder of images, or 'digits'")
    parser.add_argument(
        "--calibration-images", type=int, default=128, help="images that set the ranges (default 128); others measure"
    )
    parser.add_argument("--max-drop", type=float, help="with --int8: write nothing if accuracy drops by more points")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    if args.int8 != (args.calibration is not None):
        raise ValueError("--int8 and --calibration DATA go together")
    if args.int8 and (args.format not in (None, "onnx") or not args.out.endswith(".onnx")):
        raise ValueError("--int8 writes ONNX: give --format onnx and a file that ends in .onnx")
    if args.dynamic and args.static:
        raise ValueError("--dynamic and --static exclude each other")
    if args.batch < 1:
        raise ValueError(f"--batch {args.batch}: accepted are 1 and above")
    predictor = _predictor(args)
    report: Any
    dynamic = "all" if args.dynamic else "none" if args.static else "batch"
    if args.int8:
        from zoo.export.quantize import export_int8

        report = export_int8(
            predictor,
            args.out,
            args.calibration,
            dynamic=dynamic,
            batch=args.batch,
            images=args.calibration_images,
            max_drop=args.max_drop,
        )
    else:
        from zoo.export.model import export_model

        report = export_model(predictor, args.out, format=args.format, dynamic=dynamic, batch=args.batch)
    if args.json:
        print_json(report.to_dict())
    else:
        print(report.summary())
    return 0


def _predictor(args: argparse.Namespace):
    from zoo.inference.load import load_predictor

    size = {} if args.size is None else {"size": args.size}
    if not args.random_weights:
        if args.num_classes is not None:
            raise ValueError("--num-classes goes with --random-weights; a checkpoint has its classes")
        return load_predictor(args.model_or_config, args.weights, device="cpu", **size)
    if args.weights is not None:
        raise ValueError("--random-weights and --weights exclude each other")
    from zoo.inference.load import untrained_predictor

    return untrained_predictor(args.model_or_config, num_classes=args.num_classes, **size)
