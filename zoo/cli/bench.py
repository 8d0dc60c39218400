"""``zoo bench``: latency, throughput, peak memory and FLOPs of a model on this machine."""

from __future__ import annotations

import argparse
import statistics
import time

from zoo.cli.output import human, print_json, track

HELP = "measure a model here: latency, throughput, peak memory, FLOPs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model name")
    parser.add_argument("--mixer", help="for hosts: the mixer")
    parser.add_argument("--size", type=int, help="image side in pixels (default: the model's)")
    parser.add_argument("--batch", type=int, default=1, help="images a step (default 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile(model)")
    parser.add_argument("--train", action="store_true", help="measure forward and backward")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--steps", type=int, default=10, help="measured steps (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    for name in ("batch", "steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: accepted are 1 and above")
    result = measure(**{k: v for k, v in vars(args).items() if k not in ("json", "verb", "debug", "run")})
    if args.json:
        print_json(result)
    else:
        for key, value in result.items():
            print(f"{key:<22} {value}")
    return 0


def measure(
    model: str,
    mixer: str | None,
    size: int | None,
    batch: int,
    device: str,
    dtype: str,
    compile: bool,
    train: bool,
    threads: int | None,
    steps: int,
) -> dict:
    """Build, warm up and time a model; times are medians of ``steps`` steps in milliseconds."""
    import numpy as np
    import torch

    import zoo
    from zoo.complexity import count_flops, count_parameters
    from zoo.weights.index import model_info

    if threads:
        torch.set_num_threads(threads)
    where = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    info = model_info(model)
    side = size or (int(np.max(info.input_size)) if info else 224)
    net = zoo.create_model(model, mixer=mixer).train(train)
    flops = count_flops(net, side)
    params = count_parameters(net)
    net = net.to(where, getattr(torch, dtype))
    run_net = torch.compile(net) if compile else net
    images = torch.randn(batch, 3, side, side, device=where, dtype=getattr(torch, dtype))

    def step() -> None:
        if train:
            net.zero_grad(set_to_none=True)
            run_net(images).float().square().mean().backward()
        else:
            with torch.inference_mode():
                run_net(images)
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    step()
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    times = []
    for _ in track(range(steps), f"{model} on {where}"):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    median = statistics.median(times)
    return {
        "model": model if mixer is None else f"{model} with {mixer}",
        "device": torch.cuda.get_device_name(where)
        if where.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "dtype": dtype,
        "mode": ("training step" if train else "inference") + (", compiled" if compile else ""),
        "image": f"{side}x{side}",
        "batch": batch,
        "params": human(params),
        "flops_per_image": human(flops),
        "first_step_ms": round(first * 1e3, 1),
        "latency_ms": round(median * 1e3, 2),
        "latency_min_max_ms": [round(min(times) * 1e3, 2), round(max(times) * 1e3, 2)],
        "images_per_second": round(batch / median, 2),
        "peak_memory_mb": round(_peak_memory(where) / 2**20, 1),
        "torch": torch.__version__,
    }


def _peak_memory(device) -> int:
    """Bytes: of tensors on a GPU; of the whole process (libraries included) on a CPU, 0 where it cannot be read."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
