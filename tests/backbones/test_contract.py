"""The contract of a backbone, for every registered model; the registry alone says which there are."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from zoo.backbones.base import Backbone
from zoo.registry import MODELS

NAMES = MODELS.names(task="classification")
#: small enough to run; the others are built on the meta device
NANO = [n for n in NAMES if "nano" in n]
#: families whose small models are tested in test_changed_attention.py and test_prompts.py
ELSEWHERE = {"glsim", "moh", "prompts", "sparsifiner", "tapadl"}


def make(name: str, **kwargs) -> Backbone:
    torch.manual_seed(0)
    return MODELS.get(name)(**{"num_classes": 7, **kwargs})


def image(name: str, batch: int = 2, extra: tuple[int, int] = (0, 0)) -> torch.Tensor:
    size = MODELS.entry(name).meta["input_size"]
    return torch.randn(batch, 3, size + extra[0], size + extra[1], generator=torch.Generator().manual_seed(1))


def loss_of(model: Backbone, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(x), torch.arange(x.shape[0]) % 7)


def test_every_family_has_a_model_that_runs_here():
    families = {MODELS.entry(n).meta["family"] for n in NAMES}
    assert families == {MODELS.entry(n).meta["family"] for n in NANO} | ELSEWHERE
    assert {"davit", "vit", "pyramid"} <= families


@pytest.mark.parametrize("name", NAMES)
def test_full_size_builds_on_meta_and_refuses_unknown_arguments(name):
    entry = MODELS.entry(name)
    with torch.device("meta"):
        model = entry.builder()
        features = entry.builder(num_classes=0)
    assert model.num_classes == 1000
    assert len(features.out_channels) == len(features.strides) == len(features.out_indices)
    assert sum(p.numel() for p in features.parameters()) < sum(p.numel() for p in model.parameters())
    # Every parameter has a layer number for layer-wise decay, and both ends are used.
    layers = model.group_matcher()
    assert set(layers) == {n for n, _ in model.named_parameters()}
    assert min(layers.values()) == 0
    assert max(layers.values()) == model.num_layers() - 1
    assert model.no_weight_decay() <= set(layers)
    with pytest.raises(TypeError, match="num_clases"):
        entry.builder(num_clases=10)


@pytest.mark.parametrize("extra", [(9, 22), (37, 0)])
@pytest.mark.parametrize("name", NANO)
def test_maps_have_the_promised_sizes_at_any_image_size(name, extra):
    model = make(name).eval()
    x = image(name, extra=extra)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert model(x).shape == (2, 7)
    for m, channels, stride in zip(maps, model.out_channels, model.strides, strict=True):
        assert m.shape == (2, channels, math.ceil(x.shape[2] / stride), math.ceil(x.shape[3] / stride))
        assert m.isfinite().all()


@pytest.mark.parametrize("name", NANO)
def test_features_only_gives_the_chosen_stages(name):
    model = make(name, num_classes=0).eval()
    stages = len(model.stage_channels)
    chosen = make(name, num_classes=0, out_indices=(0, stages - 1)).eval()
    chosen.load_state_dict(model.state_dict())
    assert chosen.out_channels == (model.stage_channels[0], model.stage_channels[-1])
    assert chosen.strides == (model.stage_strides[0], model.stage_strides[-1])
    with torch.no_grad():
        x = image(name)
        maps, _ = model.forward_trunk(x)
        torch.testing.assert_close(chosen(x), (maps[0], maps[-1]))
        assert model.forward_classifier(x).shape == (2, model.num_features)
    with pytest.raises(ValueError, match="out_indices"):
        make(name, num_classes=0, out_indices=(stages,))


@pytest.mark.parametrize("num_classes", [7, 0])
@pytest.mark.parametrize("name", NANO)
def test_gradient_reaches_every_parameter(name, num_classes):
    model = make(name, num_classes=num_classes, drop_path_rate=0.0).train()
    out = model(image(name, extra=(8, 5)))
    generator = torch.Generator().manual_seed(2)
    out = (out,) if num_classes else out
    sum((m * torch.randn(m.shape, generator=generator)).sum() for m in out).backward()
    # Constants that count among the parameters, because they do in the authors' checkpoints, are not trained.
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) > 0.8 * len(list(model.parameters()))
    assert [n for n, p in trained if p.grad is None or not p.grad.isfinite().all()] == []
    # A bias of keys shifts all logits of a row alike, so single zero rows are right; a whole zero tensor is not.
    assert [n for n, p in trained if p.grad.abs().max() == 0] == []


@pytest.mark.parametrize("name", NANO)
def test_state_dict_survives_safetensors(name, tmp_path):
    model = make(name).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
        save_file(model.state_dict(), tmp_path / "m.safetensors")
        torch.manual_seed(5)
        other = MODELS.get(name)(num_classes=7).eval()
        other.load_state_dict(load_file(tmp_path / "m.safetensors"))
        x = image(name)
        assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("name", NANO)
def test_exports(name):
    model = make(name).eval()
    x = image(name, extra=(3, 6))
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NANO)
def test_compiles_without_graph_breaks(name):
    torch._dynamo.reset()
    model = make(name).eval()
    x = image(name)
    with torch.no_grad():
        # The graph capture is what breaks; generating code for it would only cost time.
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", NANO)
def test_one_step_lowers_the_loss(name):
    model = make(name).eval()
    x = image(name, batch=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = loss_of(model, x)
    before.backward()
    optimizer.step()
    with torch.no_grad():
        assert loss_of(model, x) < before


@pytest.mark.parametrize("name", NANO)
def test_bfloat16_autocast_stays_finite_and_close(name):
    model = make(name).eval()
    x = image(name, extra=(5, 2))
    with torch.no_grad():
        exact = model.forward_features(x)[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        last = model.forward_features(x)[-1]
        loss = loss_of(model, x)
    loss.float().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert (last.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", NANO)
def test_gradient_checkpointing_changes_nothing(name):
    model = make(name, drop_path_rate=0.0).train()
    x = image(name)
    grads = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model.load_state_dict(make(name).state_dict())  # normalisation statistics as well
        loss_of(model, x).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("name", NANO)
def test_frozen_stages_stay_as_they_are(name):
    model = make(name, frozen_stages=1).train()
    frozen = [m for modules in model.stage_modules()[:2] for m in modules]
    assert frozen
    assert not any(p.requires_grad for m in frozen for p in m.parameters())
    assert not any(m.training for m in frozen)
    loss_of(model, image(name)).backward()
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", NANO)
def test_reset_classifier(name):
    model = make(name).eval()
    x = image(name)
    with torch.no_grad():
        maps = model.forward_features(x)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), maps)
        assert set(model.state_dict()) == set(make(name, num_classes=0).state_dict())
        model.reset_classifier(5)
        assert model(x).shape == (2, 5)


@pytest.mark.parametrize("name", NANO)
def test_bad_images(name):
    model = make(name).eval()
    with pytest.raises(ValueError, match="3, height, width"):
        model(torch.randn(1, 4, 32, 32))
    with pytest.raises(ValueError, match="dtype"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 1, 1)).isfinite().all()
        assert make(name, in_chans=1).eval()(torch.randn(1, 1, 33, 20)).shape == (1, 7)
