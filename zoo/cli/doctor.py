"""``zoo doctor``: what is installed, what works here, and why the rest does not."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from importlib import metadata

from zoo.cli.output import print_json

HELP = "say what is installed, which backends work here, and why others do not"

REQUIRED = (
    "torch",
    "torchvision",
    "timm",
    "mmengine",
    "numpy",
    "albumentations",
    "safetensors",
    "torchmetrics",
    "scikit-learn",
    "scikit-image",
    "tensorboard",
    "matplotlib",
    "rich",
    "pyyaml",
)
OPTIONAL = ("triton", "transformers", "onnx", "onnxruntime", "monai", "pycocotools", "huggingface_hub")
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    report = diagnose()
    if args.json:
        print_json(report)
    else:
        for title in ("system", "packages", "optional packages", "devices", "operators"):
            print(title)
            for name, value in report[title].items():
                print(f"  {name:<26} {value}")
        print("\n".join(f"PROBLEM: {p}" for p in report["problems"]) or "no problems found")
    return 1 if report["problems"] else 0


def diagnose() -> dict:
    """Versions, devices, operator backends with reasons, and what is wrong."""
    problems: list[str] = []
    packages = {name: _version(name) or "missing" for name in REQUIRED}
    problems += [f"{n} is not installed; pip install {n}" for n, v in packages.items() if v == "missing"]
    packages["opencv"] = _opencv(problems)
    if packages["mmengine"] not in ("missing", "0.10.7"):
        problems.append(f"mmengine is {packages['mmengine']}; the training engine is made for 0.10.7")
    return {
        "system": {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "cpu cores": os.cpu_count(),
            "attnzoo": _version("attnzoo") or "run from a checkout, not installed",
        },
        "packages": packages,
        "optional packages": {name: _version(name) or "not installed" for name in OPTIONAL},
        "devices": _devices(),
        "operators": _operators(problems),
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _opencv(problems: list[str]) -> str:
    """Both OpenCV wheels may be there (mmengine wants one, albumentations the other); they must agree."""
    installed = {n: v for n in OPENCV if (v := _version(n))}
    try:
        cv2 = importlib.import_module("cv2")
        version = cv2.__version__
    except ImportError as error:
        problems.append(f"cv2 does not import ({error}); pip install --force-reinstall opencv-python-headless")
        return "broken"
    if len(set(installed.values())) > 1:
        listed = ", ".join(f"{n} {v}" for n, v in installed.items())
        problems.append(f"OpenCV packages of different versions overwrite each other: {listed}; install one version")
    return f"{version} ({' and '.join(installed) or 'from elsewhere'})"


def _devices() -> dict[str, str]:
    torch = importlib.import_module("torch")
    found = {"cpu": f"yes, {torch.get_num_threads()} threads; bf16 autocast works"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            found[f"cuda:{i}"] = f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}"
    else:
        found["cuda"] = "no: " + ("this torch is built without CUDA" if torch.version.cuda is None else "no GPU driver")
    return found


def _operators(problems: list[str]) -> dict[str, str]:
    """For each operator which backends run here, and the reason where triton does not."""
    import zoo_kernels
    from zoo_kernels.dispatch import BACKENDS, triton_missing

    missing = triton_missing()
    found = {}
    for name in zoo_kernels.operators():
        try:
            operator = importlib.import_module(f"zoo_kernels.{name}").OPERATOR
        except Exception as error:
            problems.append(f"operator {name} does not import: {type(error).__name__}: {error}")
            continue
        parts = []
        for backend in BACKENDS:
            if backend not in operator.backends:
                parts.append(f"{backend}: none written")
            elif backend == "triton" and missing:
                parts.append(f"triton: no, {missing}")
            else:
                parts.append(f"{backend}: yes")
        found[name] = "; ".join(parts)
    return found
