"""The networks of the agent attention paper: sizes, options, importer."""

import json

import pytest
import torch
from torch import nn

from zoo.backbones.agent_cswin import AgentCSWin
from zoo.backbones.agent_deit import AgentDeiT
from zoo.backbones.agent_pvt import AgentPVT
from zoo.backbones.agent_swin import AgentSwin
from zoo.backbones.hybrid_base import block_kinds
from zoo.backbones.hybrid_swin import swin_mask
from zoo.mixers.agent import AgentCore
from zoo.registry import MODELS, build
from zoo.weights.importers import agent_attention as importer

DEIT = dict(
    img_size=32, patch_size=4, embed_dim=24, depth=3, num_heads=2, agent_num=(9, 4, 4, 4), agent_layer=2, num_classes=5
)
PVT = dict(
    img_size=64,
    embed_dims=(8, 16, 24, 32),
    num_heads=(1, 2, 2, 4),
    depths=(1, 2, 1, 1),
    attn_type="AABA",
    agent_sr_ratios=(4, 2, 1, 1),
    agent_num=(4, 9, 4, 4),
    num_classes=5,
)
SWIN = dict(
    img_size=64,
    embed_dim=8,
    depths=(2, 2, 2),
    num_heads=(1, 2, 4),
    window_size=8,
    agent_num=(4, 9, 4),
    attn_type="AMB1",
    min_softmax_window=2,
    ape=True,
    num_classes=5,
)
CSWIN = dict(
    img_size=64,
    embed_dim=8,
    depth=(1, 1, 2, 1),
    split_size=(2, 2, 2, 2),
    la_split_size=(4, 8, 4, 2),
    num_heads=(2, 2, 4, 4),
    agent_num=(4, 9, 4, 4),
    attn_type="AAMB1",
    num_classes=5,
)
NETWORKS = [(AgentDeiT, DEIT), (AgentPVT, PVT), (AgentSwin, SWIN), (AgentCSWin, CSWIN)]
each_network = pytest.mark.parametrize("network, arguments", NETWORKS, ids=["deit", "pvt", "swin", "cswin"])


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "agent_attention.json").read_text(encoding="utf-8"))["variants"]
    assert len(variants) == 18
    for name, facts in variants.items():
        with torch.device("meta"):
            model = MODELS.get(name)()
        assert sum(p.numel() for p in model.parameters()) == facts["params"], name
        assert MODELS.entry(name).meta["input_size"] == facts["input_size"]


@each_network
@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 1)])
def test_any_size(network, arguments, size):
    torch.manual_seed(0)
    model = network(**arguments).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = model.forward_features(x)
        logits = model(x)
        alone = model(x[1:])
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(model.out_channels, model.strides)]
    assert [tuple(m.shape) for m in maps] == expected
    assert logits.shape == (2, 5)
    torch.testing.assert_close(alone, logits[1:], rtol=1e-4, atol=1e-5)


@each_network
def test_export_and_fullgraph(network, arguments):
    model = network(**arguments).eval()
    x = torch.randn(1, 3, 64, 40)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), want)


@each_network
def test_layer_groups_and_classifier(network, arguments):
    model = network(**arguments).eval()
    groups = model.group_matcher()
    assert set(groups.values()) == set(range(model.num_layers()))
    last = f"blocks.{model.depth - 1}" if network is AgentDeiT else f"stages.{len(model.depths) - 1}"
    assert groups["head.fc.weight"] == max(n for name, n in groups.items() if name.startswith(last)) + 1
    assert any("an_bias" in name for name in model.no_weight_decay())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
        norm = model.head.norm
        model.reset_classifier(9)
        assert model.head.norm is norm
        assert model(x).shape == (1, 9)
        model.reset_classifier(0)
        assert isinstance(model(x), tuple)
        assert model.forward_classifier(x).shape == (1, model.num_features)
    assert logits.shape == (1, 5)
    with pytest.raises(ValueError, match="num_classes=-1"):
        model.reset_classifier(-1)


@each_network
def test_gradient_checkpointing_changes_nothing(network, arguments):
    torch.manual_seed(0)
    model = network(**arguments).train()
    x = torch.randn(2, 3, 32, 48)
    grads = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad(set_to_none=True)
        model(x).square().sum().backward()
        grads.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    unused = [n for (n, _), g in zip(model.named_parameters(), grads[0]) if g is None]
    assert unused == []
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_class_token_of_an_all_agent_network_skips_the_last_convolution():
    model = AgentDeiT(**{**DEIT, "agent_layer": -1}).train()
    model(torch.randn(1, 3, 32, 32)).square().sum().backward()
    without = {n for n, p in model.named_parameters() if not p.grad.any()}
    # of the last block's output only the class token is read: what shapes the other tokens alone has no effect
    of_the_map = ("dwc.weight", "dwc.bias", "position.na_bias", "position.ha_bias", "position.wa_bias")
    assert without == {f"blocks.2.attn.core.{name}" for name in of_the_map}


@pytest.mark.parametrize(
    "attn_type, depths, kinds",
    [
        ("AAAB", (1, 2, 1, 2), ["A", "AA", "A", "BB"]),
        ("AAMB2", (1, 1, 3, 1), ["A", "A", "AAB", "B"]),
        ("MM1", (1, 3), ["A", "ABB"]),
        ("MB12", (2, 1), ["AA", "B"]),
    ],
)
def test_kinds_of_blocks(attn_type, depths, kinds):
    assert block_kinds(attn_type, depths) == kinds


def test_swin_mask_forbids_what_the_wrap_brings_together():
    mask = swin_mask((8, 12), 4, 2)
    assert mask.shape == (6, 16, 16)
    # token of the map at each place of each shifted window
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    place = torch.stack([rows, columns], -1).roll((-2, -2), (0, 1))
    place = place.reshape(2, 4, 3, 4, 2).transpose(1, 2).reshape(6, 16, 2)
    near = (place[:, :, None] - place[:, None]).abs().amax(-1) < 4
    assert torch.equal(mask == 0, near)


OFFICIAL = {
    importer.DEIT: dict(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, agent_num=["9", 4, 4, 4]),
    importer.PVT: dict(
        img_size=64,
        patch_size=4,
        embed_dims=[8, 16, 24, 32],
        num_heads=[1, 2, 2, 4],
        depths=[1, 2, 1, 1],
        attn_type="ABAA",
        agent_sr_ratios="2111",
        agent_num=[4, 4, 4, 4],
    ),
    importer.SWIN: dict(
        img_size=[112, 224],
        embed_dim=8,
        depths=[2, 2],
        num_heads=[1, 2],
        window_size=14,
        agent_num=[4, 4],
        attn_type="AB",
        ape=True,
    ),
    importer.CSWIN: dict(
        img_size=64,
        embed_dim=8,
        depth=[1, 1, 2, 1],
        split_size=[2, 2, 2, 2],
        la_split_size="4-8-4-2",
        num_heads=[2, 2, 4, 4],
        agent_num=[4, 4, 4, 4],
        attn_type="AAMB1",
    ),
}


@pytest.mark.parametrize("entry", OFFICIAL)
def test_importer_is_strict_both_ways(entry):
    model = build(importer.config_from_official(entry, {**OFFICIAL[entry], "num_classes": 3}), MODELS)
    own = model.state_dict()
    official = importer.revert_state_dict(entry, own)
    back = importer.convert_state_dict(entry, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    assert type(model).__name__ in importer.CHECKPOINTS[entry]
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(entry, {**official, "extra.0.weight": torch.zeros(1)})
    if entry == importer.SWIN:
        masks = {k: v.shape for k, v in official.items() if k.endswith("attn_mask")}
        assert masks == {"layers.0.blocks.1.attn_mask": (8, 196, 196), "layers.1.blocks.1.attn_mask": (8, 49, 49)}
        wrong = {**official, "layers.0.blocks.1.attn_mask": torch.zeros(8, 196, 196)}
        with pytest.raises(ValueError, match="attn_mask"):
            importer.convert_state_dict(entry, wrong)
        index = "layers.1.blocks.0.attn.relative_position_index"
        with pytest.raises(ValueError, match="relative_position_index"):
            importer.convert_state_dict(entry, {**official, index: official[index].flip(0)})
        with pytest.raises(KeyError, match="missing"):
            importer.convert_state_dict(entry, {k: v for k, v in official.items() if k != index})


@pytest.mark.parametrize(
    "entry, kwargs, error, message",
    [
        (importer.DEIT, dict(distilled=True), ValueError, "distilled"),
        (importer.DEIT, dict(representation_size=8), ValueError, "representation_size"),
        (importer.DEIT, dict(agent_nums=[4]), TypeError, "agent_num"),
        (importer.DEIT, dict(act_layer="ReLU"), ValueError, "act_layer"),
        (importer.PVT, dict(num_stages=3), ValueError, "num_stages"),
        (importer.PVT, dict(norm_layer="BatchNorm2d"), ValueError, "norm_layer"),
        (importer.SWIN, dict(use_checkpoint=True), ValueError, "use_checkpoint"),
        (importer.SWIN, dict(attn_drop_rate=0.1), ValueError, "attn_drop_rate"),
        (importer.CSWIN, dict(agent_num=49), ValueError, "agent_num"),
        (importer.CSWIN, dict(num_classes=0), ValueError, "num_classes"),
        ("models.other.Other", {}, LookupError, "models.other.Other"),
    ],
)
def test_importer_refuses(entry, kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(entry, {**OFFICIAL.get(entry, {}), **kwargs})


@pytest.mark.parametrize(
    "network, arguments, message",
    [
        (AgentDeiT, dict(DEIT, depth=13, agent_layer=-1), "at most 12"),
        (AgentDeiT, dict(DEIT, agent_num=(4, 4)), "agent_num"),
        (AgentPVT, dict(PVT, attn_type="AAAC"), "attn_type='AAAC'"),
        (AgentPVT, dict(PVT, depths=(1, 1)), "depths"),
        (AgentPVT, dict(PVT, img_size=16, drop_remainder=True), "img_size"),
        (AgentSwin, dict(SWIN, attn_type="AMB"), "attn_type='AMB'"),
        (AgentSwin, dict(SWIN, agent_num=(5, 4, 4)), "num_agents=5"),
        (AgentCSWin, dict(CSWIN, num_heads=(1, 2, 4, 4)), "num_heads=1"),
    ],
)
def test_bad_arguments(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_drop_remainder_follows_the_authors():
    torch.manual_seed(0)
    cut = AgentPVT(**PVT, drop_remainder=True).eval()
    padded = AgentPVT(**PVT).eval()
    padded.load_state_dict(cut.state_dict())
    x = torch.randn(1, 3, 70, 72)
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in cut.forward_features(x)] == [(17, 18), (8, 9), (4, 4), (2, 2)]
        assert [tuple(m.shape[2:]) for m in padded.forward_features(x)] == [(18, 18), (9, 9), (5, 5), (3, 3)]
        torch.testing.assert_close(cut(x[..., :64, :64]), padded(x[..., :64, :64]))
    assert isinstance(cut.head.fc, nn.Linear)


@pytest.mark.parametrize("network, arguments, sides", [(AgentPVT, PVT, (3, 2, 5, 4)), (AgentSwin, SWIN, (4, 5, 2))])
def test_more_agents_for_large_images(network, arguments, sides):
    """The weights are those of classification; more agents are pooled, and their biases are interpolated."""
    torch.manual_seed(0)
    plain = network(**arguments).eval()
    more = network(**arguments, pool_sides=sides).eval()
    more.load_state_dict(plain.state_dict())
    pooled = [m for m in more.modules() if isinstance(m, AgentCore)]
    assert {m.side for m in pooled} <= set(sides)
    assert len({m.side for m in pooled}) > 1
    same = network(**arguments, pool_sides=[int(n**0.5) for n in arguments["agent_num"]]).eval()
    same.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        want, got = plain(x), more(x)
        torch.testing.assert_close(same(x), want, rtol=0, atol=0)
    assert (got - want).abs().max() > 1e-7


def test_norm_of_every_map():
    torch.manual_seed(0)
    plain = AgentSwin(**{**SWIN, "num_classes": 0}).eval()
    normed = AgentSwin(**{**SWIN, "num_classes": 0}, norm_outputs=True).eval()
    missing, unexpected = normed.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("output_norms.") for name in missing)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for got, given in zip(normed.forward_features(x), plain.forward_features(x)):
            want = nn.functional.layer_norm(given.permute(0, 2, 3, 1), given.shape[1:2]).permute(0, 3, 1, 2)
            torch.testing.assert_close(got, want)
    assert set(normed.group_matcher().values()) == set(range(normed.num_layers()))
    with pytest.raises(ValueError, match="num_classes=5"):
        AgentSwin(**SWIN, norm_outputs=True)
    with pytest.raises(ValueError, match="num_classes=3"):
        normed.reset_classifier(3)
