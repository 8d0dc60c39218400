"""Every class of model goes through predict, save, load, convert and export; what does not is listed with the reason.

The registry alone says which classes there are; each is stood for by its smallest model.
"""

import numpy as np
import pytest
import torch

import zoo
from zoo.classification.inference import Classifier
from zoo.export.survey import build_small, representatives, try_export
from zoo.weights.checkpoint import save_safetensors
from zoo.weights.importers import importer, systems

ALL = representatives("classification")
#: Families whose export to ONNX is part of the fast suite; the others take minutes together.
FAST = ("agent", "biformer", "davit", "pyramid", "vit")

#: (class, format) -> words of the reason why it cannot be exported at all
UNSUPPORTED = {}
#: (class, format) -> words of the reason why the number of images has to be fixed
FIXED_BATCH = {
    ("InLineCSWin", "onnx"): "Unsupported attribute type",  # a convolution with as many groups as there are images
    ("InLineDeiT", "onnx"): "Unsupported attribute type",
    ("InLinePVT", "onnx"): "Unsupported attribute type",
    ("InLineSwin", "onnx"): "Unsupported attribute type",
}


def converters(model):
    """(system, entry) of importers that read checkpoints of this class."""
    for system in systems():
        module = importer(system)
        for entry, names in getattr(module, "CHECKPOINTS", {}).items():
            if type(model).__name__ in names:
                yield module, entry


@pytest.mark.parametrize("kind", ALL, ids=lambda r: r.kind)
def test_predict_save_load_convert(kind, tmp_path):
    model, side = build_small(kind.name)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side + 6, side, 3), dtype=np.uint8) for _ in range(2)]
    classes = [f"class {i}" for i in range(5)]
    before = zoo.predict(Classifier(model, dict(size=side), classes=classes, device="cpu"), images)
    assert [len(r.scores) for r in before] == [5, 5]
    assert all(torch.isfinite(r.scores).all() and abs(float(r.scores.sum()) - 1) < 1e-4 for r in before)
    assert all(r.name == f"class {r.label}" for r in before)

    state = model.state_dict()
    save_safetensors(tmp_path / "m.safetensors", state, {})
    other, _ = build_small(kind.name)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    report = zoo.load_weights(other, tmp_path / "m.safetensors")
    assert report.exact
    after = zoo.predict(Classifier(other, dict(size=side), device="cpu"), images)
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(before, after, strict=True))

    for module, entry in converters(model):
        try:
            theirs = module.revert_state_dict(entry, state)
        except (KeyError, ValueError):
            continue  # the entry is for another variant of the class
        back = module.convert_state_dict(entry, theirs)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[k], state[k]) for k in state)


def check(kind, format):
    found = try_export(kind, format)
    key = (kind.kind, format)
    if key in UNSUPPORTED:
        assert found.dynamic is None, f"{key} can be exported: take it off the list"
        assert UNSUPPORTED[key] in found.reason
    elif key in FIXED_BATCH:
        assert found.dynamic == "none", f"{key}: {found}"
        assert FIXED_BATCH[key] in found.reason
    else:
        assert found.dynamic == "batch", f"{key}: {found.reason}"
    if found.dynamic:
        assert found.error <= 1e-4


def one_a_family():
    """The smallest class of each of the fast families."""
    found = {}
    for r in sorted(ALL, key=lambda r: r.parameters):
        found.setdefault(r.family, r)
    return [found[f] for f in FAST]


@pytest.mark.parametrize("kind", one_a_family(), ids=lambda r: r.kind)
def test_onnx_of_flagship_families(kind, onnx_exporter):
    check(kind, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
@pytest.mark.parametrize("kind", ALL, ids=lambda r: r.kind)
def test_every_class_exports(kind, format):
    check(kind, format)


def test_the_lists_name_classes_that_exist():
    assert {k for k, _ in (*UNSUPPORTED, *FIXED_BATCH)} <= {r.kind for r in ALL}
    assert len(ALL) >= 10
