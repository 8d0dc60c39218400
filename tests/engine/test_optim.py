"""Parameter groups against timm's and by hand; the schedule against its formula and torch's; clipping, accumulation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from zoo.engine.optim import WarmupCosineLR, WarmupPolyLR, layer_scales, parameter_groups, undecayed

LR, DECAY = 0.1, 0.05


@pytest.fixture
def classifier() -> Any:
    from toy_engine_parts import ToyBackbone

    from zoo.classification.model import ImageClassifier

    return ImageClassifier(ToyBackbone(), num_classes=3)


def _settings(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_undecayed_parameters(classifier: Any) -> None:
    """Biases, norms, and the table that the backbone names."""
    expected = {n for n, p in classifier.named_parameters() if n.endswith("bias") or ".norm." in n or ".bn." in n}
    assert undecayed(classifier) == expected | {"backbone.table"}
    found = _settings(classifier, parameter_groups(classifier, LR, DECAY))
    assert {n for n, (_, decay) in found.items() if decay == 0} == expected | {"backbone.table"}
    assert {decay for (decay,) in zip({d for _, d in found.values()})} == {0.0, DECAY}
    assert {lr for lr, _ in found.values()} == {LR}


def test_layer_decay_values(classifier: Any) -> None:
    found = _settings(classifier, parameter_groups(classifier, LR, DECAY, layer_decay=0.5))
    assert found["backbone.fc.weight"] == (LR, DECAY)
    assert found["backbone.blocks.1.conv.weight"] == (LR * 0.5, DECAY)
    assert found["backbone.blocks.0.conv.weight"] == (LR * 0.25, DECAY)
    assert found["backbone.blocks.0.conv.bias"] == (LR * 0.25, 0.0)
    assert found["backbone.stem.weight"] == (LR * 0.125, DECAY)
    assert found["backbone.table"] == (LR * 0.125, 0.0)


def test_like_timms_groups() -> None:
    """Learning-rate factors and weight decay of every parameter of a DaViT are timm's, given the same layers."""
    import zoo

    model = zoo.create_model("davit_tiny", num_classes=7)
    theirs = param_groups_layer_decay(
        _WithTimmsMatcher(model),
        weight_decay=DECAY,
        no_weight_decay_list=list(model.no_weight_decay()),
        layer_decay=0.8,
    )
    expected = _settings(model, [{**g, "lr": LR * g["lr_scale"]} for g in theirs])
    found = _settings(model, parameter_groups(model, LR, DECAY, layer_decay=0.8))
    assert found.keys() == expected.keys()
    assert len({lr for lr, _ in found.values()}) == model.num_layers()
    for name, (lr, decay) in found.items():
        assert lr == pytest.approx(expected[name][0], rel=1e-12), name
        assert decay == expected[name][1], name


class _WithTimmsMatcher(nn.Module):
    """Our model with the layer numbers in the form that timm's optimizer factory asks for."""

    def __init__(self, model: Any):
        super().__init__()
        self.__dict__["model"] = model

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.named_parameters(*args, **kwargs)

    def group_matcher(self, coarse: bool = False) -> Any:
        layers = self.model.group_matcher()
        return lambda name: (layers[name],)


def test_head_outside_of_the_backbone_trains_at_the_full_rate() -> None:
    from toy_engine_parts import ToyBackbone

    from zoo.classification.model import ImageClassifier

    model = ImageClassifier(ToyBackbone(num_classes=0), num_classes=3, head="pooled")
    scales = layer_scales(model, 0.5)
    assert scales["head.fc.weight"] == 1
    assert scales["backbone.stem.weight"] == 0.125


def test_custom_keys_and_frozen_parameters(classifier: Any) -> None:
    classifier.backbone.stem.requires_grad_(False)
    custom = {"blocks": {"lr_mult": 10.0}, "blocks.1": {"lr_mult": 2.0, "decay_mult": 0.0}}
    found = _settings(classifier, parameter_groups(classifier, LR, DECAY, custom_keys=custom))
    assert found["backbone.blocks.0.conv.weight"] == (LR * 10, DECAY)
    assert found["backbone.blocks.1.conv.weight"] == (LR * 2, 0.0)
    assert "backbone.stem.weight" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"layer_decay": 1.1}, "layer_decay=1.1"),
        ({"custom_keys": {"blocks": {"lr": 1.0}}}, "accepted are lr_mult and decay_mult"),
        ({"custom_keys": {"block_": {"lr_mult": 1.0}}}, "no parameter's name has 'block_' in it"),
    ],
)
def test_wrong_settings_are_refused(classifier: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(classifier, LR, DECAY, **arguments)


# -- the schedule -------------------------------------------------------------------------------------------------


def _rates(total: int, kind: Any = WarmupCosineLR, **arguments: Any) -> list[list[float]]:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 0.25}])
    schedule = kind(optimizer, total, **arguments)
    rates = []
    for _ in range(total + 3):
        rates.append([g["lr"] for g in optimizer.param_groups])
        schedule.step()
    return rates


def test_warmup_and_cosine_values() -> None:
    rates = _rates(20, warmup_epochs=0.5, epoch_length=8, warmup_start=0.2, min_ratio=0.1)
    for t, (first, second) in enumerate(rates):
        expected = 0.2 + 0.8 * t / 4 if t < 4 else 0.1 + 0.9 * (1 + math.cos(math.pi * min(1, (t - 4) / 16))) / 2
        assert first == pytest.approx(expected, rel=1e-12)
        assert second == pytest.approx(expected / 4, rel=1e-12)
    assert rates[0][0] == 0.2
    assert rates[4][0] == 1
    assert rates[20][0] == rates[22][0] == pytest.approx(0.1)


def test_cosine_is_torchs() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    for ours, _ in _rates(12)[:12]:
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("power", [1.0, 0.9])
def test_power_is_torchs(power: float) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=12, power=power)
    rates = _rates(16, WarmupPolyLR, warmup_iters=4, warmup_start=0.5, power=power)
    assert [r for r, _ in rates[:4]] == pytest.approx([0.5, 0.625, 0.75, 0.875])
    for ours, _ in rates[4:]:
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        theirs.step()
    assert _rates(8, WarmupPolyLR, min_ratio=0.25, power=power)[8][0] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="power=0"):
        _rates(8, WarmupPolyLR, power=0)


@pytest.mark.parametrize(
    "kind, share", [("WarmupCosineLR", (1 + math.cos(math.pi * 9 / 10)) / 2), ("WarmupPolyLR", 1 / 10)]
)
def test_runner_gives_the_length(toy: Any, kind: str, share: float) -> None:
    from toy_engine_parts import TraceHook

    runner = toy({"param_scheduler": {"type": f"zoo.engine.optim.{kind}", "warmup_epochs": 1, "warmup_start": 1e-3}})
    hook = TraceHook()
    runner.register_hook(hook)
    runner.train()
    rates = [line[3] for line in hook.lines]
    assert rates[0] == pytest.approx(0.01 * 1e-3)
    assert rates[5] == pytest.approx(0.01)
    assert rates[14] == pytest.approx(0.01 * share)


@pytest.mark.parametrize("arguments", [{"warmup_start": 2.0}, {"min_ratio": -1.0}, {"warmup_iters": -1}])
def test_wrong_schedules_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="accepted are"):
        _rates(5, **arguments)


# -- steps of the optimizer ---------------------------------------------------------------------------------------

STILL = {  # one big batch and several small ones are the same thing only without these
    "model.mixup": None,
    "model.backbone.dropout": 0.0,
    "model.backbone.batch_norm": False,
    "custom_hooks": [],
    "param_scheduler.warmup_iters": 0,
    "optim_wrapper.optimizer": {"type": "torch.optim.SGD", "lr": 0.1},
}


def test_accumulation_is_one_big_batch(toy: Any) -> None:
    """Four batches of 5 accumulated are one batch of 20, and so is the shorter rest at the end."""
    plain = {**STILL, "optim_wrapper.clip_grad": None, "param_scheduler.min_ratio": 1.0}
    small = toy({**plain, "train_dataloader.batch_size": 5, "optim_wrapper.accumulative_counts": 4}, name="small")
    big = toy({**plain, "train_dataloader.batch_size": 20}, name="big")
    for runner in (small, big):
        runner.train()
    assert (small.iter, big.iter) == (12, 3)
    start = toy(plain, name="start").bare_model.state_dict()
    for key, value in big.bare_model.state_dict().items():
        torch.testing.assert_close(small.bare_model.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(big.bare_model.state_dict()["backbone.fc.weight"], start["backbone.fc.weight"])


def test_clipped_gradient_has_the_norm(toy: Any) -> None:
    """A step of plain SGD at rate 1 moves by the clipped norm."""
    options = {
        **STILL,
        "optim_wrapper.optimizer": {"type": "torch.optim.SGD", "lr": 1.0},
        "optim_wrapper.clip_grad": {"max_norm": 0.01},
        "train_cfg": {"by_epoch": False, "max_iters": 1},
    }
    runner = toy(options)
    before = {k: v.clone() for k, v in runner.bare_model.named_parameters()}
    runner.train()
    moved = torch.cat([(v - before[k]).flatten() for k, v in runner.bare_model.named_parameters()])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)
    logged = runner.message_hub.get_scalar("train/grad_norm").current()
    assert logged > 0.01


def test_same_seed_same_run_and_another_seed_another(toy: Any) -> None:
    from toy_engine_parts import TraceHook

    traces = []
    for i, seed in enumerate((3, 3, 4)):
        runner = toy({"train_cfg.max_epochs": 1}, name=f"run{i}", seed=seed)
        hook = TraceHook()
        runner.register_hook(hook)
        runner.train()
        traces.append((hook.lines, runner.bare_model.state_dict()["backbone.fc.weight"]))
    assert traces[0][0] == traces[1][0]
    assert torch.equal(traces[0][1], traces[1][1])
    assert traces[0][0] != traces[2][0]


def test_deterministic_algorithms_can_be_asked_for(toy: Any) -> None:
    try:
        runner = toy({"randomness.deterministic": True, "train_cfg.max_epochs": 1})
        assert torch.are_deterministic_algorithms_enabled()
        runner.train()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
