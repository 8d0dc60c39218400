"""Small segmentation networks trained for equal CPU times; `make bench-medical` runs it.

    python tools/bench_medical_training.py [--part models|upsampling|nuclei] [--minutes 20] [--fold 0] [--seeds 1]
                                           [--only attention_unet_nano] [--threads 1] [--nuclei FOLDER]

- models: WAU-U-Net, MS-Dual-Guided, Attention U-Net and MONAI's U-Net, each by its own recipe (configs/), on the
  generated abdomens (40 volumes of 96 x 96 x 48, 5 folds by a seed).
- upsampling: the WAU-U-Net's recipe with window attention, linear interpolation and transposed convolutions.
- nuclei: a photograph of nuclei (image.png, instances.png): trained on three quadrants, evaluated on the fourth.

Time is the process's CPU time (all threads) in training, data included, evaluation not. Ten times on the way the moving
average of the weights is evaluated on what is not trained on. A run goes on where it was stopped; a finished one is
taken as it is. Results: docs/benchmarks/medical_<part>.csv and a picture of the curves.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor

from zoo.data.loading import read_image
from zoo.engine.config import load_config
from zoo.medical.data_sample import VolumeSample
from zoo.medical.model import VolumeSegmenter
from zoo.metrics.volume import score_labels
from zoo.registry import MODELS, build

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from timed_run import Recipe, TimedRun, shuffled_batch, with_earlier, write_points  # noqa: E402

#: model -> its recipe
RECIPES = {
    "wau_unet_nano": "wau-unet-nano_seg_40e_phantom",
    "ms_dual_guided_nano": "ms-dual-guided-nano_seg_40e_phantom",
    "attention_unet_nano": "attention-unet-nano_seg_40e_phantom",
    "monai_unet_nano": "monai-unet-nano_seg_40e_phantom",
}
UPSAMPLES = ("wau", "linear", "transposed")
PARTS = ("models", "upsampling", "nuclei")
#: Of the nuclei: side of a training patch, and patches of a step.
PATCH, PATCHES = 128, 6


@dataclass
class Point:
    """One evaluation of one run; ``dice`` is the mean over classes, ``classes`` has each, separated by spaces."""

    model: str
    fold: int
    seed: int
    cpu_minutes: float
    steps: int
    samples: int
    dice: float
    classes: str
    parameters: int


Scores = dict[str, float]


class Task:
    """What a run trains on: a model, batches that follow from the step alone, and an evaluation.

    Args:
        model: a segmenter.
        batch: step -> a batch as the model's preprocessor takes it.
        evaluate: a segmenter in evaluation mode -> Dice of each class.
        size: samples in a batch.
        optimizer: ``lr`` and ``weight_decay`` of AdamW.
    """

    def __init__(
        self,
        model: VolumeSegmenter,
        batch: Callable[[int], dict[str, Any]],
        evaluate: Callable[[VolumeSegmenter], Scores],
        size: int,
        optimizer: Mapping[str, Any],
    ):
        self.model, self.batch, self.evaluate, self.size = model, batch, evaluate, size
        lr, decay = optimizer["lr"], optimizer.get("weight_decay", 0.0)
        self.recipe = Recipe(lr, lr, decay, clip=5.0, decay=0.98, warmup=30)


def phantom_task(recipe: str, fold: int, seed: int, upsample: str | None = None, **data: Any) -> Task:
    """The task of a recipe on a fold.

    Args:
        recipe: name of a config whose data is the phantom.
        fold: held out.
        seed: of weights, patches and their order.
        upsample: another enlargement for the network.
        **data: other arguments for both data sets, such as ``volumes``.
    """
    config = load_config(recipe).to_dict()
    spec = dict(config["model"])
    if upsample is not None:
        spec["network"] = {**spec["network"], "upsample": upsample}
    torch.manual_seed(seed)
    model = build(spec, MODELS)
    train = build({**config["train_dataloader"]["dataset"], "fold": fold, "seed": seed, **data}, MODELS)
    val = build({**config["val_dataloader"]["dataset"], "fold": fold, **data}, MODELS)
    size = min(config["train_dataloader"]["batch_size"], len(train))

    def batch(step: int) -> dict[str, Any]:
        return shuffled_batch(train, size, step, seed)

    def evaluate(segmenter: VolumeSegmenter) -> Scores:
        batches = (pseudo_collate([val[i]]) for i in range(len(val)))
        found = (segmenter(**segmenter.data_preprocessor(batch), mode="predict")[0] for batch in batches)
        return mean_dice(found, val.classes)

    return Task(model, batch, evaluate, size, config["optim_wrapper"]["optimizer"])


def nuclei_task(recipe: str, folder: Path, quadrant: int, seed: int) -> Task:
    """The task of a recipe's model, for two classes, on a photograph.

    Args:
        recipe: name of a config.
        folder: of image.png and instances.png (0 is the background).
        quadrant: 0 to 3, row by row: not trained on.
        seed: of weights and patches.
    """
    config = load_config(recipe).to_dict()
    network = {k: v for k, v in config["model"]["network"].items() if k != "num_classes"}
    torch.manual_seed(seed)
    model = build({**config["model"], "network": network, "num_classes": 2}, MODELS)
    image, label = read_nuclei(folder)
    half = [n // 2 for n in label.shape]
    rows, columns = divmod(quadrant, 2)
    held = (
        slice(rows * half[0], rows * half[0] + half[0]),
        slice(columns * half[1], columns * half[1] + half[1]),
    )
    others = [divmod(q, 2) for q in range(4) if q != quadrant]

    def batch(step: int) -> dict[str, Any]:
        rng = np.random.default_rng((seed, step))
        found = []
        for _ in range(PATCHES):
            r, c = others[rng.integers(3)]
            y = r * half[0] + int(rng.integers(half[0] - PATCH + 1))
            x = c * half[1] + int(rng.integers(half[1] - PATCH + 1))
            a, b = image[y : y + PATCH, x : x + PATCH], label[y : y + PATCH, x : x + PATCH]
            turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
            a, b = (torch.rot90(t.flip(0) if mirrored else t, turns) for t in (a, b))
            a = a * float(rng.uniform(0.8, 1.2)) + float(rng.uniform(-0.2, 0.2))
            found.append(dict(inputs=a[None], data_samples=_labelled("patch", b, (1.0, 1.0))))
        return pseudo_collate(found)

    def evaluate(segmenter: VolumeSegmenter) -> Scores:
        sample = dict(inputs=image[held][None], data_samples=_labelled("quadrant", label[held], (1.0, 1.0)))
        found = segmenter(**segmenter.data_preprocessor(pseudo_collate([sample])), mode="predict")
        return mean_dice(found, ("background", "nuclei"))

    return Task(model, batch, evaluate, PATCHES, config["optim_wrapper"]["optimizer"])


def read_nuclei(folder: Path) -> tuple[Tensor, Tensor]:
    """The image, with mean 0 and deviation 1, and its foreground (1), ``[H, W]`` each.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: they have different sizes.
    """
    files = folder / "image.png", folder / "instances.png"
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}")
    image = torch.from_numpy(read_image(files[0])[..., 0].astype(np.float32))
    from PIL import Image

    label = torch.from_numpy((np.asarray(Image.open(files[1])) > 0).astype(np.int64))
    if image.shape != label.shape:
        raise ValueError(f"{files[0]} has size {tuple(image.shape)}, {files[1]} {tuple(label.shape)}")
    return (image - image.mean()) / image.std(), label


def mean_dice(samples: Iterable[VolumeSample], classes: Sequence[str]) -> Scores:
    """Dice of each class but the background, the mean over the cases where there is something to find."""
    values: dict[str, list[float]] = {name: [] for name in classes[1:]}
    for sample in samples:
        labels = sample.pred_label.numpy(), sample.gt_label.numpy()
        for score in score_labels(*labels, sample.spacing, classes, surface=False):
            if not math.isnan(score.dice):
                values[score.name].append(score.dice)
    return {name: float(np.mean(found)) if found else math.nan for name, found in values.items()}


def _labelled(case: str, label: Tensor, spacing: tuple[float, ...]) -> VolumeSample:
    return VolumeSample(metainfo={"case": case, "spacing": spacing}).set_gt_label(label)


class Run(TimedRun):
    """A training for a given CPU time, which can be stopped and gone on with.

    Args:
        name: of the model, for the table.
        fold, number: of it; the number is the seed.
        seconds: of CPU time.
        file: where its state is.
        make: the task, built when it is needed.
    """

    def __init__(self, name: str, fold: int, number: int, seconds: float, file: Path, make: Callable[[], Task]):
        super().__init__(name, seconds, file, Point)
        self.fold, self.number = fold, number
        if not self.finished:
            self.task = make()
            self.begin(self.task.model, self.task.recipe)

    def batch(self) -> dict[str, Any]:
        return self.task.batch(self.steps)

    def seed(self) -> int:
        return (self.number + 1) * 1_000_003 + self.steps

    def scored(self) -> Point:
        """Dice on what is not trained on."""
        found = self.task.evaluate(self.model)
        return Point(
            self.name,
            self.fold,
            self.number,
            round(self.used / 60, 2),
            self.steps,
            self.steps * self.task.size,
            round(float(np.nanmean(list(found.values()))), 4),
            " ".join(f"{k}={v:.4f}" for k, v in found.items()),
            sum(p.numel() for p in self.model.parameters()),
        )


def runs(args: argparse.Namespace) -> list[tuple[str, int, int, Callable[[], Task]]]:
    """Name, fold, seed and task of every run of a part.

    Raises:
        ValueError: no model is left by ``--only``, or the nuclei's folder is not given.
    """
    found: list[tuple[str, int, int, Callable[[], Task]]] = []
    kept = [n for n in RECIPES if args.only is None or args.only in n]
    if args.part == "upsampling":
        kept = [n for n in UPSAMPLES if args.only is None or args.only in n]
    if not kept:
        raise ValueError(f"--only {args.only}: there are {', '.join(RECIPES)}; of upsampling {', '.join(UPSAMPLES)}")
    if args.part == "nuclei" and args.nuclei is None:
        raise ValueError("--part nuclei needs --nuclei FOLDER, with image.png and instances.png")
    for seed in range(args.seeds):
        for name in kept:
            recipe = RECIPES.get(name, RECIPES["wau_unet_nano"])
            upsample = name if args.part == "upsampling" else None
            if args.part == "nuclei":

                def make(recipe: str = recipe, seed: int = seed) -> Task:
                    return nuclei_task(recipe, Path(args.nuclei), 3, seed)
            else:

                def make(recipe: str = recipe, seed: int = seed, upsample: str | None = upsample) -> Task:
                    return phantom_task(recipe, args.fold, seed, upsample)

            found.append((name, args.fold if args.part != "nuclei" else 3, seed, make))
    return found


def summary(points: Sequence[Point]) -> list[str]:
    """A line a model: its last Dice, the spread over runs, and the CPU minutes to 0.9."""
    lines = []
    for name in dict.fromkeys(p.model for p in points):
        own: dict[tuple[int, int], list[Point]] = {}
        for p in points:
            if p.model == name:
                own.setdefault((p.fold, p.seed), []).append(p)
        last = np.array([max(run, key=lambda p: p.cpu_minutes).dice for run in own.values()])
        spread = f" +- {last.std(ddof=1):.4f}" if len(last) > 1 else ""
        first = [min((p.cpu_minutes for p in run if p.dice >= 0.9), default=math.inf) for run in own.values()]
        reached = f"0.9 after {max(first)} CPU minutes" if max(first) < math.inf else "0.9 not reached"
        lines.append(f"{name}: Dice {last.mean():.4f}{spread} ({len(last)} runs), {reached}")
    return lines


def write_results(points: Sequence[Point], table: Path, picture: Path) -> None:
    """The table and the curves of all runs."""
    from zoo.viz.figures import COLOURS, new_figure, save_figure

    write_points(points, Point, table)
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    for number, name in enumerate(dict.fromkeys(p.model for p in points)):
        own = [p for p in points if p.model == name]
        for i, key in enumerate(sorted({(p.fold, p.seed) for p in own})):
            run = [p for p in own if (p.fold, p.seed) == key]
            axes.plot(
                [p.cpu_minutes for p in run],
                [p.dice for p in run],
                marker="o",
                ms=3,
                color=COLOURS[number % len(COLOURS)],
                label=name if i == 0 else None,
            )
    axes.axhline(0.9, color="0.6", lw=0.8, ls="--")
    axes.set(xlabel="CPU minutes of training", ylabel="mean Dice on held-out data", ylim=(0.5, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, default="models")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU minutes of training for each run")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model, with seeds 0, 1, ...")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="part of a model's name")
    parser.add_argument("--nuclei", help="folder of the photograph of nuclei")
    parser.add_argument("--work-dir", default="work_dirs/bench_medical")
    parser.add_argument("--out", help="table (default: docs/benchmarks/medical_<part>.csv)")
    parser.add_argument("--picture", help="curves (default: docs/images/medical_<part>.png)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = Path(args.out or ROOT / "docs" / "benchmarks" / f"medical_{_stem(args.part)}.csv")
    picture = Path(args.picture or ROOT / "docs" / "images" / f"medical_{_stem(args.part)}.png")
    everything: list[Point] = []
    for name, fold, seed, make in runs(args):
        file = Path(args.work_dir) / f"{args.part}-{args.minutes:g}" / f"{name}-fold{fold}-seed{seed}.pth"
        file.parent.mkdir(parents=True, exist_ok=True)
        run = Run(name, fold, seed, 60 * args.minutes, file, make)
        everything += run.run(lambda point: print(point, flush=True))
        write_results(with_earlier(everything, table, lambda p: (p.model, p.fold, p.seed)), table, picture)
    print("\n".join(summary(everything)))
    return 0


def _stem(part: str) -> str:
    return "training" if part == "models" else part


if __name__ == "__main__":
    sys.exit(main())
