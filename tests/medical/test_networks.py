"""What every medical network does: half precision, the same twice, an image alone as in a batch, export."""

import pytest
import torch

from zoo.medical.acmil import GatedACMIL, QueryACMIL
from zoo.medical.additive_gate_unet import AdditiveGateUNet
from zoo.medical.aem import ABMIL, DSMIL, QueryMIL
from zoo.medical.attention_unet import AttentionUNet, GridAttentionUNet
from zoo.medical.ct_scroll import CTScroll
from zoo.medical.deep_supervised_unet import DeepSupervisedUNet
from zoo.medical.guided_context_gating import GuidedContextGating
from zoo.medical.ms_dual_guided import MSDualGuided
from zoo.medical.sononet import AGSononet
from zoo.medical.unet import UNet

WIDTHS = (2, 4, 8, 16, 32)
DAF = dict(stem=4, planes=(2, 3, 4, 4), layers=(1, 1, 1, 1), groups=1, base_width=64)
IMAGES = {
    "wau 2-D": (lambda: UNet(1, 2, 2, (8, 16)), (1, 21, 18)),
    "wau 3-D": (lambda: UNet(1, 2, 3, (8, 16)), (1, 9, 10, 12)),
    "attention": (lambda: AttentionUNet(1, 2, 3, WIDTHS), (1, 16, 16, 16)),
    "grid": (lambda: GridAttentionUNet(1, 2, 2, WIDTHS), (1, 32, 16)),
    "sononet": (lambda: AGSononet(1, 3, (2, 4, 6, 8)), (1, 32, 16)),
    "dual": (lambda: MSDualGuided(1, 3, 8, DAF), (1, 32, 32)),
    "deep": (lambda: DeepSupervisedUNet(1, 1, (4, 8, 12, 16, 20)), (1, 32, 16)),
    "additive": (lambda: AdditiveGateUNet(1, 2, 3, WIDTHS), (1, 16, 16, 16)),
    "scroll": (
        lambda: CTScroll(5, stem=4, planes=(4, 4, 8, 16), layers=(1, 1, 1, 1), num_heads=4),
        (1, 9, 32, 32),
    ),
    "context": (lambda: GuidedContextGating(8, 4), (8, 5, 6)),
}
BAGS = {
    "acmil gated": lambda: GatedACMIL(8, 16, 2),
    "acmil query": lambda: QueryACMIL(8, 16, 2),
    "abmil": lambda: ABMIL(8, 16, 2),
    "mha": lambda: QueryMIL(8, 16, 2),
    "dsmil": lambda: DSMIL(8, 16, 2),
}
EVERY = {**IMAGES, **{name: (make, (9, 8)) for name, make in BAGS.items()}}


def tensors(out):
    return [t for t in (out if isinstance(out, (list, tuple)) else [out]) if t is not None]


def prepared(name, batch=1):
    torch.manual_seed(0)
    make, shape = EVERY[name]
    return make().eval(), torch.randn(batch, *shape)


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_near_and_trains(name):
    model, x = prepared(name)
    full = tensors(model(x))
    with torch.autocast("cpu", torch.bfloat16):
        half = tensors(model(x))
        loss = sum(t.float().square().mean() for t in half)
    loss.backward()
    for a, b in zip(full, half):
        assert (a - b.float()).norm() <= 0.1 * a.norm() + 1e-3
    # PyTorch's own gradient of a bfloat16 Conv3d's weight on the CPU has, now and then, numbers that were never written
    # (2 x 2 x 2 maps of 16 channels); the others are checked.
    own = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Conv3d)}
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and n not in own}
    assert grads
    assert [n for n, g in grads.items() if not g.isfinite().all()] == []


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_an_image_alone_equals_one_in_a_batch(name):
    model, x = prepared(name, 2)
    for both, alone in zip(tensors(model(x)), tensors(model(x[1:]))):
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["wau 2-D", "wau 3-D", "attention", "deep", "scroll", "acmil gated"])
@torch.no_grad()
def test_export_gives_the_same(name):
    model, x = prepared(name)
    exported = torch.export.export(model, (x,)).module()
    for a, b in zip(tensors(exported(x)), tensors(model(x))):
        torch.testing.assert_close(a, b)
