"""``zoo explain``: where a model looks on an image, as one picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "draw where a model looks: attention, rollout, flow, relevance, windows, routed regions, agents, points"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_or_config", help="model name, config name or config file")
    parser.add_argument("image", help="image file")
    parser.add_argument("--weights", help="checkpoint file (default: what the index knows for the model)")
    parser.add_argument("--untrained", action="store_true", help="random weights, to see what a model looks like")
    parser.add_argument("--mixer", help="for hosts without weights: the mixer (needs --untrained)")
    parser.add_argument(
        "--methods", help="comma-separated: attention, rollout, flow, relevance, sampling, distance, heads"
    )
    parser.add_argument("--mixers", help="names or patterns of the mixers to look at, comma-separated (default: all)")
    parser.add_argument("--query", help="the position that attends, Y,X as shares between 0 and 1 (default: all)")
    parser.add_argument("--class", dest="target", type=int, help="number of the class to explain (default: the best)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", help="picture to write (default: IMAGE's name with -explained.png, here)")


def run(args: argparse.Namespace) -> int:
    import numpy as np
    import torch

    import zoo
    from zoo.data.loading import read_image
    from zoo.inference.load import load_predictor, task_of, untrained_predictor
    from zoo.viz.explain import explain
    from zoo.viz.figures import save_figure

    query = _query(args.query)
    original = read_image(args.image)
    if args.mixer and not args.untrained:
        raise ValueError(
            f"--mixer {args.mixer} needs --untrained: weights come with the mixer that they were trained with"
        )
    if args.untrained and (args.mixer or task_of(args.model_or_config) == "classification"):
        torch.manual_seed(0)
        model = zoo.create_model(args.model_or_config, **({"mixer": args.mixer} if args.mixer else {}))
        predictor = load_predictor(model, device=args.device, size=_input_size(args.model_or_config))
    elif args.untrained:
        predictor = untrained_predictor(args.model_or_config)
    else:
        predictor = load_predictor(args.model_or_config, args.weights, device=args.device)
    out = args.out or f"{Path(args.image).stem}-explained.png"
    if hasattr(predictor, "draw_attention"):  # a detector: where its best queries look
        for name in ("methods", "mixers", "query", "target"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{'class' if name == 'target' else name} is for classifiers, not for a detector")
        print(save_figure(predictor.draw_attention(original), out))
        return 0
    network = predictor.network
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"{args.model_or_config} is an exported file; its mixers cannot be looked into")
    pixels = np.ascontiguousarray(predictor.prepare(original)[0])  # [h, w, 3]
    x = torch.from_numpy(pixels).to(predictor.device).permute(2, 0, 1)[None].float() / 255
    found = explain(
        network,
        (x - predictor.mean) / predictor.std,
        pixels,
        methods=_words(args.methods),
        mixers=_words(args.mixers),
        query=query,
        target=args.target,
        class_name=predictor.class_name,
    )
    for line in found.left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(save_figure(found.figure, out))
    return 0


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _query(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--query {text!r}: accepted are two numbers Y,X between 0 and 1") from None
    if not (0 <= y <= 1 and 0 <= x <= 1):
        raise ValueError(f"--query {text!r}: accepted are two numbers Y,X between 0 and 1")
    return y, x


def _input_size(name: str) -> int:
    from zoo.registry import MODELS

    return MODELS.entry(name).meta.get("input_size", 224)
