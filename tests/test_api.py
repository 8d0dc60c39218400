"""The Python front door: models by name as a timm user expects, and clear errors."""

import subprocess
import sys

import pytest
import torch

import zoo
from zoo.registry import UnknownNameError


def test_lists():
    agents = zoo.list_models("*agent*")
    assert agents == [n for n in zoo.list_models() if "agent" in n]
    assert "agent_swin_tiny" in agents
    assert {"softmax", "window", "channel", "bra", "agent"} <= set(zoo.list_mixers())


def test_logits_and_features():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    model = zoo.create_model("davit_nano", num_classes=7).eval()
    assert model(x).shape == (2, 7)
    features = zoo.create_model("davit_nano", features_only=True, out_indices=(0, 2)).eval()
    features.load_state_dict(model.state_dict(), strict=False)
    maps = features(x)
    assert [m.shape[1] for m in maps] == list(features.out_channels)
    assert [32 // m.shape[-1] for m in maps] == list(features.strides)
    assert torch.equal(maps[1], model.forward_features(x)[2])


def test_mixer_in_a_host():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    kinds = {}
    for mixer in ("softmax", dict(type="agent", num_agents=9)):
        model = zoo.create_model("vit_nano", mixer=mixer, num_classes=3).eval()
        kinds[str(mixer)] = {type(m).__name__ for m in model.modules()}
        assert torch.isfinite(model(x)).all()
    assert "SoftmaxAttention" in kinds["softmax"]
    assert any("AgentAttention" in k for kind in list(kinds.values())[1:] for k in kind)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (dict(name="davit_tny"), UnknownNameError, "davit_tiny"),
        (dict(name="davit_nano", drop_path=0.1), TypeError, "drop_path_rate"),
        (dict(name="biformer_nano", mixer="agent"), TypeError, "vit_nano"),
        (dict(name="vit_nano", mixer="agnt"), UnknownNameError, "agent"),
        (dict(name="vit_nano", mixer=dict(type="agent", num_agnts=9)), TypeError, "num_agents"),
        (dict(name="davit_nano", num_classes=-1), ValueError, "num_classes=-1"),
        (dict(name="davit_nano", features_only=True, num_classes=3), ValueError, "features_only"),
        (dict(name="davit_nano", out_indices=(5,)), ValueError, "out_indices"),
        (dict(name="davit_nano", pretrained=True), LookupError, "no weights for davit_nano"),
        (dict(name="davit_tiny", pretrained=True), LookupError, "by hand"),
    ],
)
def test_wrong_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        zoo.create_model(**kwargs)


def test_wrong_images():
    model = zoo.create_model("davit_nano", num_classes=3)
    with pytest.raises(ValueError, match=r"\(1, 4, 32, 32\)"):
        model(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match=r"torch.uint8"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_import_is_free():
    code = (
        "import sys, zoo; heavy = {'torch', 'timm', 'triton', 'mmengine', 'cv2', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy; assert 'create_model' in dir(zoo)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="creat_model"):
        zoo.creat_model  # noqa: B018
