"""``zoo train``: from a config, or on one's own images. Several processes: ``torchrun -m zoo.cli train``."""

from __future__ import annotations

import argparse
import os

HELP = "train from a config, or on a folder of images of one's own"

#: Problems that end the training on one's own data; others are told.
_FATAL = ("no_images", "one_class", "annotations", "no classes", "duplicate images ids", "duplicate category ids")
#: The same of masks: training would end with the first of these, or learn something wrong.
_FATAL_OF_MASKS = ("classes", "values", "size_mismatch", "missing_mask", "rgb_mask", "mask", "unknown_segment")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="config file or name; not with --model")
    parser.add_argument("--work-dir", help="where logs and checkpoints go (default: work_dirs/<config>)")
    parser.add_argument("--resume", action="store_true", help="go on from the work directory's last good checkpoint")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast, on CPU and GPU")
    parser.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    parser.add_argument("--seed", type=int, help="of everything random (default: the config's)")
    parser.add_argument("--deterministic", action="store_true", help="only algorithms that repeat exactly")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the config")
    own = parser.add_argument_group("own data, instead of a config")
    own.add_argument("--model", help="model name; for detectors and segmenters also a family, such as dino or upernet")
    own.add_argument(
        "--data", help="folder of class folders; of boxes in COCO, VOC or YOLO format; of images and masks"
    )
    own.add_argument("--epochs", type=int, help="passes over the data (default: follows from its size)")
    own.add_argument("--batch-size", type=int)
    own.add_argument("--size", type=int, help="image side in pixels (default: follows from the images)")
    own.add_argument("--lr", type=float, help="learning rate")
    own.add_argument("--weights", help="checkpoint to start from; another classifier is replaced")
    own.add_argument("--mixer", help="for hosts (vit_*, pyramid_*): the mixer")
    own.add_argument("--workers", type=int, help="processes that load images")


def run(args: argparse.Namespace) -> int:
    from zoo.engine import launch
    from zoo.engine.config import load_config

    if (args.config is None) == (args.model is None and args.data is None):
        raise ValueError("give a config, or --model and --data")
    if args.config is None:
        config = _own_data(args)
    else:
        for name in ("epochs", "batch_size", "size", "lr", "weights", "mixer", "workers"):
            if getattr(args, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} goes with --model and --data; a config takes --cfg-options"
                )
        config = load_config(args.config)
    if args.deterministic:
        config.randomness = {**config.get("randomness", {}), "deterministic": True}
    runner = launch.train(
        config,
        work_dir=args.work_dir,
        options=args.cfg_options,
        resume=args.resume,
        amp=args.amp,
        compile=args.compile,
        seed=args.seed,
    )
    if runner.rank == 0:
        print(f"trained; checkpoints and logs are in {runner.work_dir}")
    return 0


def _own_data(args: argparse.Namespace):
    from zoo.data.check import check_folder
    from zoo.engine.own_data import own_data_config
    from zoo.engine.own_detection import is_detector, own_detection_config
    from zoo.engine.own_segmentation import data_format, is_segmenter, own_segmentation_config
    from zoo.engine.own_volumes import is_volume_segmenter, own_volumes_config

    if args.model is None or args.data is None:
        raise ValueError("own data needs both --model and --data")
    detects, segments = is_detector(args.model), is_segmenter(args.model)
    of_volumes = is_volume_segmenter(args.model)
    if int(os.environ.get("RANK", 0)) == 0:
        from zoo.cli.data import print_report

        report = check_folder(args.data, data_format(args.model, args.data) if segments else None)
        print_report(report)
        if detects and report.format not in ("coco", "voc", "yolo"):
            raise ValueError(f"{args.model} is a detector, and {args.data} holds no COCO, VOC or YOLO data; see above")
        if of_volumes and report.format != "volumes":
            raise ValueError(f"{args.model} is a network for volumes, and {args.data} holds none; see above")
        fatal = {*_FATAL, *(_FATAL_OF_MASKS if segments else ())}
        if any(p.kind in fatal or (of_volumes and p.severity == "error") for p in report.problems):
            raise ValueError(f"{args.data} cannot be trained on; see above")
    names = ("epochs", "batch_size", "size", "lr", "weights", "mixer", "workers", "work_dir")
    options = {n: getattr(args, n) for n in names}
    if of_volumes:
        make = own_volumes_config
    elif detects:
        make = own_detection_config
    else:
        make = own_segmentation_config if segments else own_data_config
    return make(args.model, args.data, **options, seed=args.seed or 0)
