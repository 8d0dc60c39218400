"""What a mixer does in a host, checked one thing at a time; the contract test and the table in the docs share these.

Each check takes the name of a host and the spec of a mixer, and raises where the mixer does not do what it is named
after. Hosts are as small as they can be: one block of a ViT, two stages of a pyramid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.arena.status import check_export, check_onnx

Check = Callable[[str, Any], None]

#: Name of a check -> the check, cheap ones first.
CHECKS: dict[str, Check] = {}

HOSTS = ("vit", "pyramid")
DIM, HEADS = 32, 2
#: Image sizes in pixels; with tokens of 4 pixels (ViT) and 4 and 8 (pyramid) all maps have odd sides or need padding.
SIZES = ((20, 28), (44, 12), (33, 27))
_IMAGE = SIZES[0]


def _check(name: str) -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return add


def small_host(host: str, mixer: Any, double: bool = False) -> nn.Module:
    """One block of a ViT or two stages of a pyramid around a mixer, with weights that are not at their start.

    Raises:
        ValueError: ``host`` is neither "vit" nor "pyramid".
    """
    from zoo.backbones.hosts import Pyramid, ViT

    torch.manual_seed(0)
    common: dict[str, Any] = dict(num_classes=3, input_size=_IMAGE, mixer=mixer)
    if host == "vit":
        model: nn.Module = ViT(patch_size=4, dim=DIM, depth=1, num_heads=HEADS, **common)
    elif host == "pyramid":
        model = Pyramid(dims=(DIM, DIM), depths=(1, 1), num_heads=(HEADS, HEADS), stem_stride=4, **common)
    else:
        raise ValueError(f"host={host!r}: accepted are {', '.join(HOSTS)}")
    with torch.no_grad():
        for parameter in model.parameters():
            # tables start at zero or near it, and so would hide what they are for
            parameter.add_(0.1 * torch.randn_like(parameter))
    return (model.double() if double else model).eval()


def images(size: tuple[int, int] = _IMAGE, batch: int = 2, double: bool = False) -> Tensor:
    """Random images ``[B, 3, H, W]``, always the same."""
    dtype = torch.float64 if double else torch.float32
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


@_check("any size")
@torch.no_grad()
def odd_sizes(host: str, mixer: Any) -> None:
    """Three odd sizes give finite logits."""
    model = small_host(host, mixer)
    for size in SIZES:
        out = model(images(size))
        _require(out.shape == (2, 3) and bool(out.isfinite().all()), f"{size}: logits {tuple(out.shape)} {out}")


@_check("repeats")
@torch.no_grad()
def repeats(host: str, mixer: Any) -> None:
    """A rerun gives the same bits."""
    model, x = small_host(host, mixer), images()
    _require(torch.equal(model(x), model(x)), "a rerun gives other logits")


@_check("image by itself")
@torch.no_grad()
def alone(host: str, mixer: Any) -> None:
    """An image alone gives what it gives in a batch."""
    model, x = small_host(host, mixer), images(batch=3)
    _close(model(x[1:2]), model(x)[1:2], 1e-5)


@_check("gradient")
def gradient(host: str, mixer: Any) -> None:
    """Gradients of image and weights are finite and agree with float64 central differences along random directions.

    Where there is no gradient (weights that only choose, such as a router's) the difference must be none, too.
    """
    model, x = small_host(host, mixer, double=True), images(batch=1, double=True).requires_grad_()
    named = [("image", x), *model.named_parameters()]
    weights = torch.randn(1, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss() -> Tensor:
        return (model(x) * weights).sum()

    grads = torch.autograd.grad(loss(), [p for _, p in named], allow_unused=True)
    wrong = [name for (name, _), g in zip(named, grads) if g is not None and not g.isfinite().all()]
    _require(grads[0] is not None, "no gradient reaches the image")
    _require(not wrong, f"no finite gradient of {', '.join(wrong)}")
    generator = torch.Generator().manual_seed(3)
    step = 1e-6
    for group in ([named[0]], named[1:]):
        chosen = [(p, g) for (_, p), g in zip(named, grads) if any(p is q for _, q in group)]
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p, _ in chosen]
        slope = sum(float((g * d).sum()) for (_, g), d in zip(chosen, directions) if g is not None)
        values = []
        with torch.no_grad():
            for sign in (1, -2):
                for (p, _), d in zip(chosen, directions):
                    p.add_(d, alpha=sign * step)
                values.append(float(loss()))
            for (p, _), d in zip(chosen, directions):
                p.add_(d, alpha=step)
        measured = (values[0] - values[1]) / (2 * step)
        scale = max(abs(slope), abs(measured), 1e-3)
        _require(
            abs(slope - measured) <= 1e-4 * scale,
            f"slope of {'the image' if len(group) == 1 else 'the weights'}: gradient {slope}, measured {measured}",
        )


@_check("bf16 autocast")
@torch.no_grad()
def autocast(host: str, mixer: Any) -> None:
    """Under bfloat16 autocast the logits stay within a tenth."""
    model, x = small_host(host, mixer), images()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    _close(out.float(), expected, 0.1)


@_check("compile")
@torch.no_grad()
def compiles(host: str, mixer: Any) -> None:
    """One graph for torch.compile, run by PyTorch itself."""
    _compiled(host, mixer, "eager")


@_check("export")
def exports(host: str, mixer: Any) -> None:
    """torch.export gives a program that computes the same."""
    check_export(small_host(host, mixer), images())


@torch.no_grad()
def generates_code(host: str, mixer: Any) -> None:
    """torch.compile with its own code generator computes the same; as it takes many seconds, no part of the table."""
    _compiled(host, mixer, "inductor")


@_check("ONNX")
def onnx(host: str, mixer: Any) -> None:
    """onnxruntime computes the same from the exported file."""
    check_onnx(small_host(host, mixer), images())


#: Checks that take seconds a mixer.
SLOW = ("ONNX",)


def _compiled(host: str, mixer: Any, backend: str) -> None:
    torch.compiler.reset()
    model, x = small_host(host, mixer), images()
    expected = model(x)
    _close(torch.compile(model, fullgraph=True, backend=backend)(x), expected, 1e-4)


def _close(out: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((out - expected).norm() / expected.norm())
    _require(error <= tolerance, f"relative difference {error:.2e}, more than {tolerance:.0e}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
