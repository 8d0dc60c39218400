"""HaloNets: the same logits as timm's models, sizes, options."""

import pytest
import torch

from zoo.backbones.halonet import HaloNet
from zoo.registry import MODELS, build
from zoo.weights.importers import timm_halonet as importer

TINY = dict(
    depths=(1, 2),
    dims=(32, 64),
    attention=((), (0, 1)),
    strides=(1, 2),
    stem_dim=16,
    num_heads=2,
    block_size=4,
    halo_size=1,
    num_classes=5,
)


def randomise(model: torch.nn.Module) -> None:
    """Norms away from their start, zero-initialised ones included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and "head" not in name:
                p.copy_(0.5 + 0.5 * torch.rand(p.shape, generator=generator))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.1 * torch.randn(b.shape, generator=generator))


@pytest.mark.parametrize("name", importer.ENTRIES)
def test_timm_weights_give_the_same_logits(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    randomise(theirs)
    ours = build(importer.config_from_official(name, dict(num_classes=7)), MODELS).eval()
    state = theirs.state_dict()
    ours.load_state_dict(importer.convert_state_dict(name, state))
    size = MODELS.entry(name).meta["input_size"]  # timm's blocks must tile every stage: no smaller image runs there
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        want = theirs(x)
        assert (ours(x) - want).norm() <= 1e-4 * want.norm()
    back = importer.revert_state_dict(name, ours.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)
    with torch.device("meta"):
        published, counted = timm.create_model(name), MODELS.get(name)()
    assert sum(p.numel() for p in counted.parameters()) == sum(p.numel() for p in published.parameters())


@pytest.mark.parametrize(
    "options",
    [{}, dict(stem="7x7"), dict(stem="3x3", stem_pool=False), dict(channel_attention="eca", final_dim=48, act="silu")],
)
@pytest.mark.parametrize("size", [(37, 50), (1, 1)])
def test_any_size(size, options):
    torch.manual_seed(0)
    model = HaloNet(**{**TINY, **options}).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert model(x).shape == (2, 5)
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(model.out_channels, model.strides)]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(bool(m.isfinite().all()) for m in maps)


def test_classifier_can_be_taken_off_and_put_on():
    options = {**TINY, "final_dim": 48}
    model = HaloNet(**options).eval()
    x = torch.randn(1, 3, 32, 32)
    kept = model.final_conv
    model.reset_classifier(9)
    assert model(x).shape == (1, 9)
    assert model.final_conv is kept
    model.reset_classifier(0)
    assert model.state_dict().keys() == HaloNet(**{**options, "num_classes": 0}).state_dict().keys()
    assert model.forward_classifier(x).shape == (1, model.num_features) == (1, 64)
    model.reset_classifier(4)
    assert model.state_dict().keys() == HaloNet(**options).state_dict().keys()
    assert model(x).shape == (1, 4)


def test_residual_branches_start_at_zero_or_not():
    zero, started = HaloNet(**TINY), HaloNet(**TINY, zero_init_last=False)
    assert not zero.stages[1][1].conv3_1x1.bn.weight.any()
    assert started.stages[1][1].conv3_1x1.bn.weight.all()
    without = HaloNet(**TINY, shortcut=False)
    assert not without.stages[1][0].residual  # the shape changes: no residual, so nothing starts at 0
    assert without.stages[1][0].conv3_1x1.bn.weight.all()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(stem="9x9"), "stem='9x9'"),
        (dict(act="gelu"), "act='gelu'"),
        (dict(channel_attention="cbam"), "channel_attention='cbam'"),
        (dict(depths=(1,)), "depths"),
        (dict(num_heads=(1, 2, 3)), "num_heads"),
        (dict(group_size=7), "group_size=7"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        HaloNet(**{**TINY, **options})


@pytest.mark.parametrize(
    "entry, kwargs, error, message",
    [
        ("halonet26t", dict(output_stride=16), ValueError, "output_stride=16"),
        ("halonet26t", dict(drop_rate=0.1), ValueError, "drop_rate"),
        ("halonet26t", dict(act_layer="gelu"), TypeError, "act_layer"),
        ("lamhalobotnet50ts_256", {}, LookupError, "lamhalobotnet50ts_256"),
    ],
)
def test_importer_refuses(entry, kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(entry, kwargs)


def test_importer_is_strict():
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict("halonet26t", {"stem.conv.conv.weight": torch.zeros(1)})
    spec = importer.config_from_official("halonet26t", dict(in_chans=1, drop_path_rate=0.1, img_size=256))
    assert (spec["in_chans"], spec["drop_path_rate"], spec["halo_size"]) == (1, 0.1, 2)
