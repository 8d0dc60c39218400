"""Loading weights into models: prefixes, authors' keys, other models, other classifiers."""

import pytest
import torch

import zoo
from zoo.weights.checkpoint import CheckpointError


@pytest.fixture
def nano():
    torch.manual_seed(0)
    return zoo.create_model("davit_nano", num_classes=5)


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_prefixes(nano, tmp_path, prefix):
    file = tmp_path / "c.pth"
    torch.save({"state_dict": {prefix + k: v for k, v in nano.state_dict().items()}}, file)
    other = zoo.create_model("davit_nano", num_classes=5)
    assert not _same(nano, other)
    report = zoo.load_weights(other, file)
    assert report.exact
    assert _same(nano, other)


def test_authors_keys_are_translated(nano):
    from zoo.weights.importers import davit

    official = davit.revert_state_dict(davit.NETWORK, nano.state_dict())
    assert set(official) != set(nano.state_dict())
    other = zoo.create_model("davit_nano", num_classes=5)
    report = zoo.load_weights(other, official)
    assert report.converted_by == davit.NETWORK
    assert _same(nano, other)


def test_another_model_lists_the_first_keys_and_changes_nothing(nano):
    other = zoo.create_model("biformer_nano", num_classes=5)
    before = {k: v.clone() for k, v in nano.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        zoo.load_weights(nano, other.state_dict())
    message = str(error.value)
    assert "another model than DaViT" in message
    assert next(iter(before)) in message  # the first missing key
    assert next(iter(other.state_dict())) in message  # the first unexpected key
    assert all(torch.equal(before[k], v) for k, v in nano.state_dict().items())


def test_shapes_are_named(nano):
    with pytest.raises(CheckpointError, match=r"head.fc.weight is \(7, 160\), the model has \(5, 160\)"):
        zoo.load_weights(nano, zoo.create_model("davit_nano", num_classes=7).state_dict())


def test_create_model_with_weights_of_other_classes(nano, tmp_path):
    torch.save(nano.state_dict(), tmp_path / "c.pth")
    model = zoo.create_model("davit_nano", num_classes=3, weights=tmp_path / "c.pth")
    x = torch.randn(2, 3, 32, 32)
    for a, b in zip(nano.eval().forward_features(x), model.eval().forward_features(x), strict=True):
        assert torch.equal(a, b)
    features = zoo.create_model("davit_nano", features_only=True, weights=tmp_path / "c.pth").eval()
    assert torch.equal(features(x)[-1], model.forward_features(x)[-1])
    with pytest.raises(CheckpointError, match="another model"):
        zoo.create_model("biformer_nano", weights=tmp_path / "c.pth")


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_weights_of_other_classes_leave_the_rest_as_it_was(task):
    """Fine-tuning on own classes: all but the tensors of classes come from the checkpoint, in every family."""
    from zoo.registry import MODELS

    for name in MODELS.names("*_nano", task=task):
        trained, own = (zoo.create_model(name, num_classes=n) for n in (7, 3))
        with torch.no_grad():
            for value in trained.parameters():
                value.add_(1)
        report = zoo.load_weights(own, trained.state_dict(), adapt=True)
        state, other = own.state_dict(), trained.state_dict()
        different = [k for k in state if state[k].shape != other[k].shape]
        assert different, name
        assert sorted(report.dropped) == sorted(different), name
        assert all(torch.equal(state[k], other[k]) for k in state if k not in different), name
