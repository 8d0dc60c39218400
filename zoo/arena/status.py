"""Whether a mixer in a host can be exported: torch.export and ONNX, each checked by running what came out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zoo.arena.grid import Job, Settings, build_host
from zoo.arena.store import Row

_TOLERANCE = 1e-3


def status_rows(settings: Settings, job: Job) -> Iterator[Row]:
    """Rows "torch_export" and "onnx": 1, or the error."""
    torch.manual_seed(0)
    side = min(settings.image_size, 64)
    model = build_host(job.host, job.mixer, image_size=side, small=True).eval()
    x = torch.randn(1, 3, side, side)
    for name, check in (("torch_export", check_export), ("onnx", check_onnx)):
        try:
            check(model, x)
        except Exception as error:
            yield Row(name, error=brief(error))
        else:
            yield Row(name, 1.0)


@torch.no_grad()
def check_export(model: nn.Module, x: Tensor) -> None:
    """Export with torch.export and compare the program's output.

    Raises:
        ArithmeticError: the output differs; anything that the export raises.
    """
    expected = model(x)
    program = torch.export.export(model, (x,), strict=False)
    _compare(program.module()(x), expected)


@torch.no_grad()
def check_onnx(model: nn.Module, x: Tensor) -> None:
    """Export to ONNX, run it in onnxruntime and compare.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed (``pip install attnzoo[export]``).
        ArithmeticError: the output differs; anything that the export raises.
    """
    import onnxruntime

    expected = model(x)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None  # always so with dynamo=True
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (output, *_) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    _compare(torch.from_numpy(output), expected)


def _compare(output: Tensor, expected: Tensor) -> None:
    error = float((output - expected).norm() / expected.norm())
    if not error <= _TOLERANCE:
        raise ArithmeticError(f"the exported program's output differs by {error:.2e}")


def brief(error: BaseException) -> str:
    """The type of an error and the line of its message that says most: that of its innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
