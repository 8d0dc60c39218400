"""Weights of another size: the adapted model gives what the old one gives on the new size; references for each rule."""

import pytest
import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from torch import nn

import zoo
from zoo.layers.relative_position import RelativePositionBias
from zoo.registry import MODELS, build
from zoo.weights.checkpoint import CheckpointError
from zoo.weights.load import load_weights


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def _moved(model):
    """Weights off their initial values, tables included."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


SIZED = {
    "agent_pvt": dict(type="agent_pvt_tiny", depths=(1, 1, 1, 1), embed_dims=(16, 32, 40, 64), num_heads=(1, 2, 5, 8)),
    "agent_deit": dict(type="agent_deit_tiny", depth=2, embed_dim=48, num_heads=3),
}


@pytest.mark.parametrize("name", SIZED)
def test_tables_are_those_that_the_model_itself_interpolates(name):
    spec = SIZED[name]
    small = _moved(build(dict(spec, img_size=64), MODELS))
    large = build(dict(spec, img_size=96), MODELS).eval()
    state = small.state_dict()
    with pytest.raises(CheckpointError, match="another shape"):
        load_weights(large, state)
    report = load_weights(large, state, adapt=True)
    assert report.fits
    assert not report.exact
    assert set(report.adapted) == {k for k, v in large.state_dict().items() if v.shape != state[k].shape}
    assert "adapted: " in str(report)
    assert not report.dropped
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected, found = small(x), large(x)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_host_tables():
    small = _moved(zoo.create_model("vit_nano", input_size=32, num_classes=5))
    large = zoo.create_model("vit_nano", input_size=48, num_classes=5).eval()
    report = load_weights(large, small.state_dict(), adapt=True)
    assert len(report.adapted) == 1
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(small(x), large(x), atol=1e-5)


@pytest.mark.parametrize("old, new", [(7, 12), (12, 7), (4, 4)])
def test_bias_tables_of_windows_against_timm(old, new):
    source, target = RelativePositionBias((old, old), 3), RelativePositionBias((new, new), 3)
    nn.init.normal_(source.table)
    model = nn.ModuleDict({"bias": target})
    report = load_weights(model, {"bias.table": source.table.detach()}, adapt=True)
    expected = resize_rel_pos_bias_table_simple(source.table.detach(), (new, new), tuple(target.table.shape))
    assert torch.equal(target.table, expected)
    assert bool(report.adapted) == (old != new)


@pytest.mark.parametrize("shape", [(168, 3), (169, 4), (144, 3), (169,)])
def test_tables_that_are_none_of_a_square_window_or_of_other_heads_are_not_adapted(shape):
    model = nn.ModuleDict({"bias": RelativePositionBias((4, 4), 3)})
    with pytest.raises(CheckpointError, match=r"bias\.table is \("):
        load_weights(model, {"bias.table": torch.zeros(shape)}, adapt=True)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 7])
def test_input_channels(channels):
    rgb = _moved(zoo.create_model("davit_nano", num_classes=5))
    other = zoo.create_model("davit_nano", num_classes=5, in_chans=channels).eval()
    with pytest.raises(CheckpointError, match=r"stem\.conv\.weight"):
        load_weights(other, rgb.state_dict())
    report = load_weights(other, rgb.state_dict(), adapt=True)
    assert list(report.adapted) == ["stem.conv.weight"]
    weight, made = rgb.stem.conv.weight, other.stem.conv.weight
    if channels == 1:
        assert torch.allclose(made, weight.sum(1, keepdim=True), atol=1e-6)
        x = torch.randn(1, 1, 32, 32)
        with torch.no_grad():  # a grey image in three channels
            assert torch.allclose(other(x), rgb(x.expand(-1, 3, -1, -1)), atol=1e-4)
    else:
        expected = torch.stack([weight[:, i % 3] for i in range(channels)], 1) * 3 / channels
        assert torch.allclose(made, expected, atol=1e-6)


def test_classifiers_are_left_as_initialised():
    old, new = _moved(zoo.create_model("davit_nano", num_classes=7)), zoo.create_model("davit_nano", num_classes=5)
    before = {k: v.clone() for k, v in new.state_dict().items()}
    report = load_weights(new, old.state_dict(), adapt=True)
    assert set(report.dropped) == {"head.fc.weight", "head.fc.bias"}
    assert "of 7 classes, the model has 5" in report.dropped["head.fc.bias"]
    after = new.state_dict()
    for key, value in old.state_dict().items():
        assert torch.equal(after[key], before[key] if key in report.dropped else value), key
    assert not set(report.dropped) & set(report.loaded)


def test_features_leave_the_classifier_of_the_file():
    old, new = _moved(zoo.create_model("davit_nano")), zoo.create_model("davit_nano", features_only=True)
    report = load_weights(new, old.state_dict(), adapt=True)
    assert set(report.dropped) == {k for k in old.state_dict() if k.startswith("head.")}
    assert report.fits


def test_a_task_model_around_a_backbone():
    from zoo.classification.model import ImageClassifier

    backbone = _moved(zoo.create_model("davit_nano", num_classes=7))
    model = ImageClassifier(backbone="davit_nano", num_classes=5)
    report = load_weights(model, backbone.state_dict(), adapt=True)
    assert set(report.dropped) == {"backbone.head.fc.weight", "backbone.head.fc.bias"}
    assert torch.equal(model.backbone.stem.conv.weight, backbone.stem.conv.weight)


def test_all_else_stays_strict():
    old, new = zoo.create_model("davit_nano", num_classes=7), zoo.create_model("davit_nano", num_classes=5)
    state = old.state_dict()
    for change in (
        {k: v for k, v in state.items() if k != "stem.conv.bias"},
        {**state, "more.weight": torch.zeros(1)},
        {**state, "stem.conv.bias": torch.zeros(3)},
        {**state, "head.norm.weight": torch.zeros(3, 3)},
    ):
        before = {k: v.clone() for k, v in new.state_dict().items()}
        with pytest.raises(CheckpointError, match="another model"):
            load_weights(new, change, adapt=True)
        assert all(torch.equal(v, before[k]) for k, v in new.state_dict().items())


def test_a_module_may_have_a_rule_of_its_own():
    class Table(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.rows = nn.Parameter(torch.zeros(size))

        def adapt_weight(self, name, value):
            return value[: len(self.rows)] if name == "rows" and len(value) >= len(self.rows) else None

    model = nn.Sequential(Table(3))
    report = load_weights(model, {"0.rows": torch.arange(5.0)}, adapt=True)
    assert model[0].rows.tolist() == [0, 1, 2]
    assert report.adapted == {"0.rows": "(5,) -> (3,), by Table"}
    with pytest.raises(CheckpointError):
        load_weights(model, {"0.rows": torch.arange(2.0)}, adapt=True)


def test_authors_files_of_another_size_are_adapted():
    from zoo.weights.importers import agent_attention as importer

    spec = SIZED["agent_pvt"]
    small = _moved(build(dict(spec, img_size=64), MODELS))
    large = build(dict(spec, img_size=96, num_classes=3), MODELS)
    official = importer.revert_state_dict(importer.PVT, small.state_dict())
    report = load_weights(large, official, adapt=True)
    assert report.converted_by == importer.PVT
    assert report.adapted
    assert set(report.dropped) == {"head.fc.weight", "head.fc.bias"}
