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
import csv
import io
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.data.loading import read_image
from zoo.engine.config import load_config
from zoo.files import save_atomically, write_file
from zoo.medical.data_sample import VolumeSample
from zoo.medical.model import VolumeSegmenter
from zoo.metrics.volume import score_labels
from zoo.registry import MODELS, build

ROOT = Path(__file__).resolve().parents[1]
#: model -> its recipe
RECIPES = {
    "wau_unet_nano": "wau-unet-nano_seg_40e_phantom",
    "ms_dual_guided_nano": "ms-dual-guided-nano_seg_40e_phantom",
    "attention_unet_nano": "attention-unet-nano_seg_40e_phantom",
    "monai_unet_nano": "monai-unet-nano_seg_40e_phantom",
}
UPSAMPLES = ("wau", "linear", "transposed")
PARTS = ("models", "upsampling", "nuclei")
EVALUATIONS = 10
DECAY, WARMUP = 0.98, 30
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
        lr, weight_decay: of AdamW.
    """

    def __init__(
        self,
        model: VolumeSegmenter,
        batch: Callable[[int], dict[str, Any]],
        evaluate: Callable[[VolumeSegmenter], Scores],
        size: int,
        lr: float,
        weight_decay: float,
    ):
        self.model, self.batch, self.evaluate = model, batch, evaluate
        self.size, self.lr, self.weight_decay = size, lr, weight_decay


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
    optimizer = config["optim_wrapper"]["optimizer"]

    def batch(step: int) -> dict[str, Any]:
        epoch, number = divmod(step, len(train) // size)
        if train.epoch != epoch:
            train.set_epoch(epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(train))[number * size : (number + 1) * size]
        return _collate(train[int(i)] for i in order)

    def evaluate(segmenter: VolumeSegmenter) -> Scores:
        found = (
            segmenter(**segmenter.data_preprocessor(_collate([val[i]])), mode="predict")[0] for i in range(len(val))
        )
        return mean_dice(found, val.classes)

    return Task(model, batch, evaluate, size, optimizer["lr"], optimizer.get("weight_decay", 0.0))


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
        return _collate(found)

    def evaluate(segmenter: VolumeSegmenter) -> Scores:
        sample = dict(inputs=image[held][None], data_samples=_labelled("quadrant", label[held], (1.0, 1.0)))
        found = segmenter(**segmenter.data_preprocessor(_collate([sample])), mode="predict")
        return mean_dice(found, ("background", "nuclei"))

    optimizer = config["optim_wrapper"]["optimizer"]
    return Task(model, batch, evaluate, PATCHES, optimizer["lr"], optimizer.get("weight_decay", 0.0))


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


def _collate(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    samples = list(samples)
    return {k: [s[k] for s in samples] for k in ("inputs", "data_samples")}


class Run:
    """A training by the clock of the process, which can be stopped and gone on with.

    Args:
        name: of the model, for the table.
        fold, seed: of it.
        seconds: of CPU time.
        file: where its state is.
        make: the task, built when it is needed.
    """

    def __init__(self, name: str, fold: int, seed: int, seconds: float, file: Path, make: Callable[[], Task]):
        self.name, self.fold, self.seed, self.seconds, self.file = name, fold, seed, seconds, file
        self.used, self.steps, self.points = 0.0, 0, []
        saved = torch.load(file, weights_only=True) if file.is_file() else None
        if saved is not None:
            if saved["seconds"] != seconds:
                raise ValueError(f"{file} is of a run of {saved['seconds']} s, not {seconds} s; use another folder")
            self.used, self.steps = saved["used"], saved["steps"]
            self.points = [Point(**p) for p in saved["points"]]
        self.finished = self.used >= seconds and len(self.points) > 0
        if self.finished:
            return
        self.task = make()
        self.model = self.task.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.task.lr, weight_decay=self.task.weight_decay
        )
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        self.average = saved["average"] if saved else {k: v.clone() for k, v in self.model.state_dict().items()}

    def save(self) -> None:
        """Write everything that going on needs."""
        content = {
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "used": self.used,
            "steps": self.steps,
            "points": [asdict(p) for p in self.points],
        }
        save_atomically(self.file, lambda f: torch.save(content, f))

    def step(self) -> None:
        """One step of the optimizer; its rate follows from the share of the time that is used."""
        torch.manual_seed((self.seed + 1) * 1_000_003 + self.steps)
        self.model.train()
        data = self.model.data_preprocessor(self.task.batch(self.steps), True)
        loss = torch.stack(list(self.model(**data, mode="loss").values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        cosine = (1 + math.cos(math.pi * min(1.0, self.used / self.seconds))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.lr * min(1.0, (self.steps + 1) / WARMUP) * (0.02 + 0.98 * cosine)
        self.optimizer.step()
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - decay)
                else:
                    self.average[key].copy_(value)
        self.steps += 1

    @torch.no_grad()
    def evaluate(self) -> Point:
        """Dice of the averaged weights."""
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        found = self.task.evaluate(self.model)
        self.model.load_state_dict(own)
        return Point(
            self.name,
            self.fold,
            self.seed,
            round(self.used / 60, 2),
            self.steps,
            self.steps * self.task.size,
            round(float(np.nanmean(list(found.values()))), 4),
            " ".join(f"{k}={v:.4f}" for k, v in found.items()),
            sum(p.numel() for p in self.model.parameters()),
        )

    def run(self, note: Callable[[Point], None] = lambda point: None) -> list[Point]:
        """Train to the end of the time; evaluates and saves at every tenth of it."""
        while not self.finished:
            started = time.process_time()
            self.step()
            self.used += time.process_time() - started
            self.finished = self.used >= self.seconds
            if self.finished or self.used >= self.seconds * (len(self.points) + 1) / EVALUATIONS:
                self.points.append(self.evaluate())
                note(self.points[-1])
                self.save()
        return self.points


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
        lines.append(f"{name}: Dice {last.mean():.4f}{spread} ({len(last)} runs), 0.9 after {max(first)} CPU minutes")
    return lines


def write_results(points: Sequence[Point], table: Path, picture: Path) -> None:
    """The table and the curves of all runs."""
    from zoo.viz.figures import COLOURS, new_figure, save_figure

    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(p) for p in points)
    write_file(table, text.getvalue())
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


def earlier(table: Path, done: set[tuple[str, int, int]]) -> list[Point]:
    """Runs that the table has already and this call did not make."""
    if not table.is_file():
        return []
    kinds = (str, int, int, float, int, int, float, str, int)
    with table.open(newline="") as opened:
        points = [Point(*(k(row[f.name]) for k, f in zip(kinds, fields(Point)))) for row in csv.DictReader(opened)]
    return [p for p in points if (p.model, p.fold, p.seed) not in done]


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
        kept = earlier(table, {(p.model, p.fold, p.seed) for p in everything})
        write_results([*kept, *everything], table, picture)
    print("\n".join(summary(everything)))
    return 0


def _stem(part: str) -> str:
    return "training" if part == "models" else part


if __name__ == "__main__":
    sys.exit(main())
