"""Train three flagship backbones on real scans, evaluate them, draw what they see, and find shapes in pictures.

    make demo        or        python tools/demo.py [--out demo_out] [--configs NAME ...]

The data, scikit-learn's 1,797 handwritten digits, and the photograph, scikit-image's, come with packages that attnzoo
depends on; nothing is downloaded. The detector comes with the repository (weights/dino_nano_shapes.safetensors).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

CONFIGS = ("davit-nano_cls_12e_digits", "biformer-nano_cls_12e_digits", "agent-swin-nano_cls_12e_digits")
#: Held-out accuracy in percent that the first model has to reach.
REQUIRED = 97.0
DETECTOR = "dino_nano"
#: Held-out pictures that the detector is evaluated on, the AP50 that it has to reach, and how many are drawn.
PICTURES, REQUIRED_AP50, DRAWN = 60, 0.6, 8


def train(name: str, work_dir: Path) -> dict:
    """Train from a config by name and evaluate the last checkpoint as a user would."""
    from zoo.cli import main as zoo
    from zoo.complexity import count_parameters
    from zoo.engine.config import load_config
    from zoo.engine.runner import Runner

    started = time.perf_counter()
    options = ["log_level=WARNING"]
    if zoo(["train", name, "--work-dir", str(work_dir), "--cfg-options", *options]):
        raise SystemExit(f"training {name} failed")
    seconds = time.perf_counter() - started
    checkpoint = work_dir / (work_dir / "last_checkpoint").read_text(encoding="utf-8").strip()
    cfg = load_config(name, options)
    cfg.work_dir, cfg.load_from = str(work_dir / "test"), str(checkpoint)
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    return {
        "config": name,
        "parameters": count_parameters(runner.model),
        "seconds": round(seconds, 1),
        "top1": round(metrics["accuracy/top1"], 2),
        "checkpoint": str(checkpoint),
    }


def draw_predictions(result: dict, out: Path) -> None:
    """A grid of held-out scans with what the model says of them, mistakes first."""
    from zoo.classification.inference import load_predictor
    from zoo.data.digits import Digits
    from zoo.viz.predictions import Prediction, save_predictions

    data = Digits("test", size=32)
    predictor = load_predictor(result["config"], result["checkpoint"])
    images = [data.load_image(i) for i in range(len(data))]
    drawn = []
    for label, image, said in zip(data.labels, images, predictor(images, topk=3), strict=True):
        names, scores = zip(*said.top, strict=True)
        drawn.append(Prediction(image, names, scores, truth=data.classes[label]))
    drawn.sort(key=lambda p: (p.labels[0] == p.truth, p.scores[0]))
    save_predictions(drawn[:18], out / "predictions.png")


def draw_attention(result: dict, out: Path) -> None:
    """What an eye in a photograph of a cat attends to, in the first and the last mixer of the trained model."""
    import numpy as np
    import skimage.data
    import torch

    from zoo.classification.inference import load_predictor
    from zoo.viz.attention import attention_heat, collect_attention, mixer_names, save_attention

    photo = np.ascontiguousarray(skimage.data.chelsea()[22:278, 96:352])  # the cat's face, 256 x 256
    predictor = load_predictor(result["config"], result["checkpoint"])
    x = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    x = (x - predictor.mean) / predictor.std
    eye = (0.44, 0.37)
    names = mixer_names(predictor.network)
    heats = {
        record.name.removeprefix("model.backbone."): attention_heat(record, eye)
        for record in collect_attention(predictor.network, x, [names[0], names[-1]])
    }
    save_attention(
        photo,
        heats,
        out / "attention.png",
        query=eye,
        title=f"What the eye attends to, in mixers of {result['config']}",
    )


def detect(out: Path) -> float:
    """Find shapes in generated pictures that the detector was not trained on; draws them, and where it looks.

    Returns:
        AP50 over the pictures.
    """
    import numpy as np
    from PIL import Image
    from timed_run import predictions

    from zoo.data.shapes_detection import ShapesDetection
    from zoo.detection.inference import load_predictor
    from zoo.files import save_atomically
    from zoo.metrics.coco import CocoBoxes
    from zoo.viz.figures import save_figure

    data = ShapesDetection(split="test", length=PICTURES, size=128, transform=dict(train=False, size=128))
    predictor = load_predictor(DETECTOR)
    metric = CocoBoxes()
    metric.dataset_meta = data.metainfo
    metric.process(None, [f.to_dict() for f in predictions(predictor.model, data)])
    images = [data[i]["inputs"].permute(1, 2, 0).numpy() for i in range(DRAWN)]
    drawn = [np.asarray(result.draw()) for result in predictor(images)]
    rows = [np.concatenate(drawn[i : i + 4], axis=1) for i in range(0, DRAWN, 4)]
    picture = Image.fromarray(np.concatenate(rows))
    save_atomically(out / "detections.png", lambda file: picture.save(file, "PNG"))
    save_figure(predictor.draw_attention(images[0]), out / "detection_attention.png")
    return metric.evaluate(PICTURES)["coco/AP50"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    args = parser.parse_args()
    started = time.perf_counter()
    results = []
    for name in args.configs:
        work_dir = args.out / name
        shutil.rmtree(work_dir, ignore_errors=True)
        print(f"training {name} ...", flush=True)
        results.append(train(name, work_dir))
        print(f"  {results[-1]['top1']:.2f} % of 359 held-out scans, {results[-1]['seconds']:.0f} s", flush=True)
    draw_predictions(results[0], args.out)
    draw_attention(results[-1], args.out)
    shutil.copy(args.out / args.configs[0] / "curves.png", args.out / "curves.png")
    (args.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    print(f"\n{'config':<36}{'parameters':>12}{'held-out top-1':>16}{'training':>10}")
    for r in results:
        print(f"{r['config']:<36}{r['parameters']:>12,}{r['top1']:>14.2f} %{r['seconds']:>8.0f} s")
    ap50 = detect(args.out)
    print(f"\n{DETECTOR}, weights of this repository: AP50 {ap50:.3f} on {PICTURES} pictures of generated shapes")
    print(f"\n{time.perf_counter() - started:.0f} s in all; files in {args.out}/:")
    drawings = ("predictions.png", "attention.png", "curves.png", "detections.png", "detection_attention.png")
    for name in (*drawings, "results.json"):
        print(f"  {args.out / name}")
    if results[0]["top1"] < REQUIRED:
        print(f"{results[0]['config']} reached {results[0]['top1']} %, less than {REQUIRED} %", file=sys.stderr)
        return 1
    if ap50 < REQUIRED_AP50:
        print(f"{DETECTOR} has an AP50 of {ap50:.3f}, less than {REQUIRED_AP50}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
