"""The networks of the InLine attention paper: sizes, options, importer."""

import json

import pytest
import torch

from zoo.backbones.inline_cswin import InLineCSWin
from zoo.backbones.inline_deit import InLineDeiT
from zoo.backbones.inline_pvt import InLinePVT
from zoo.backbones.inline_swin import InLineSwin
from zoo.registry import MODELS, build
from zoo.weights.importers import inline_attention as importer

DEIT = dict(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5)
PVT = dict(
    img_size=64,
    embed_dims=(8, 16, 24, 32),
    num_heads=(1, 2, 2, 4),
    depths=(1, 2, 1, 1),
    attn_type="IISI",
    num_classes=5,
)
SWIN = dict(
    img_size=64,
    embed_dim=8,
    depths=(2, 2, 2),
    num_heads=(1, 2, 4),
    window_size=8,
    attn_type="IMS1",
    min_softmax_window=2,
    num_classes=5,
)
CSWIN = dict(
    img_size=64,
    embed_dim=8,
    depth=(1, 1, 2, 1),
    split_size=(2, 2, 2, 2),
    la_split_size=(16, 8, 4, 2),
    num_heads=(2, 2, 4, 4),
    attn_type="IIMI1",
    num_classes=5,
)
NETWORKS = [(InLineDeiT, DEIT), (InLinePVT, PVT), (InLineSwin, SWIN), (InLineCSWin, CSWIN)]
each_network = pytest.mark.parametrize("network, arguments", NETWORKS, ids=["deit", "pvt", "swin", "cswin"])


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "inline_attention.json").read_text(encoding="utf-8"))["variants"]
    assert len(variants) == 15
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


@pytest.mark.parametrize("network, arguments", [NETWORKS[0], NETWORKS[1], NETWORKS[3]], ids=["deit", "pvt", "cswin"])
def test_export(network, arguments):
    torch.manual_seed(0)
    model = network(**arguments).eval()
    x = torch.randn(2, 3, 64, 40)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@each_network
def test_layer_groups_and_gradients(network, arguments):
    torch.manual_seed(0)
    model = network(**arguments).train()
    groups = model.group_matcher()
    assert set(groups.values()) == set(range(model.num_layers()))
    model(torch.randn(2, 3, 32, 48)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_class_token_is_not_convolved():
    """Of the last block's output only the class token is read, to which the predicted convolution adds nothing."""
    model = InLineDeiT(**DEIT).train()
    model(torch.randn(1, 3, 32, 32)).square().sum().backward()
    without = {n for n, p in model.named_parameters() if not p.grad.any()}
    assert without == {f"blocks.1.attn.residual.{layer}.{p}" for layer in ("fc1", "fc2") for p in ("weight", "bias")}


def test_cswin_predicts_the_convolution_from_what_was_not_normalised():
    torch.manual_seed(0)
    block = InLineCSWin(**CSWIN).stages[0][0].double().eval()
    x = torch.randn(2, 16, 16, 8, dtype=torch.float64)
    want = block.attn.forward_tokens(block.norm1(x).flatten(1, 2), (16, 16), summary=x.mean((1, 2)))
    other = block.attn(block.norm1(x))
    y = x + want.unflatten(1, (16, 16))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))
    assert (other - want.unflatten(1, (16, 16))).abs().max() > 1e-6


def test_pvt_positions_by_count():
    """As at the authors', a first map of 32 x 8 takes the table of 16 x 16 as it is where that is asked for."""
    torch.manual_seed(0)
    model = InLinePVT(**PVT).eval()
    as_is = InLinePVT(**PVT, positions_by_count=True).eval()
    as_is.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 128, 32)
    with torch.no_grad():
        patches = model.embeds[0].norm(model.embeds[0].conv(x).permute(0, 2, 3, 1))
        table = model.embeds[0].positions.table.unflatten(1, (32, 8))
        torch.testing.assert_close(as_is.embeds[0](x), patches + table)
        assert (model.embeds[0](x) - patches - table).abs().max() > 1e-4
        square = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(as_is(square), model(square))


OFFICIAL = {
    importer.DEIT: dict(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2),
    importer.PVT: dict(
        img_size=64,
        patch_size=4,
        embed_dims=[8, 16, 24, 32],
        num_heads=[1, 2, 2, 4],
        depths=[1, 2, 1, 1],
        attn_type="ISSI",
        la_sr_ratios="1841",
    ),
    importer.SWIN: dict(
        img_size=[112, 224], embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=14, attn_type="IS", ape=True
    ),
    importer.CSWIN: dict(
        img_size=64,
        embed_dim=8,
        depth=[1, 1, 2, 1],
        split_size=[2, 2, 2, 2],
        la_split_size="16-8-4-9",
        num_heads=[2, 2, 4, 4],
        attn_type="IIMI1",
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
    if entry == importer.CSWIN:
        kept = {k.split(".attns.")[1].split(".")[0] for k in official if ".attns." in k and k.startswith("stage3.1")}
        assert kept == {"0", "1"}
        assert "stage3.0.attns.0.residual.0.weight" in official


def test_importer_reads_the_bare_attention():
    kwargs = dict(dim=12, window_size=[4, 4], num_heads=3, kernel_func="leakyrelu", qkv_bias=False, shift_size=2)
    config = importer.config_from_official(importer.ATTENTION, kwargs)
    assert config["feature_map"] == "leaky_relu"
    with pytest.raises(TypeError, match="num_heads"):
        importer.config_from_official(importer.ATTENTION, dict(dim=12, window_size=4))


@pytest.mark.parametrize(
    "entry, kwargs, error, message",
    [
        (importer.DEIT, dict(distilled=True), ValueError, "distilled"),
        (importer.DEIT, dict(agent_num=4), TypeError, "agent_num"),
        (importer.PVT, dict(la_sr_ratios="2111"), ValueError, "la_sr_ratios"),
        (importer.PVT, dict(num_stages=3), ValueError, "num_stages"),
        (importer.SWIN, dict(use_checkpoint=True), ValueError, "use_checkpoint"),
        (importer.SWIN, dict(drop_rate=0.1), ValueError, "drop_rate"),
        (importer.CSWIN, dict(num_classes=0), ValueError, "num_classes"),
        (importer.ATTENTION, dict(dim=8, window_size=4, num_heads=2, kernel_func="elu"), ValueError, "kernel_func"),
        ("models.other.Other", {}, LookupError, "models.other.Other"),
    ],
)
def test_importer_refuses(entry, kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(entry, {**OFFICIAL.get(entry, {}), **kwargs})


@pytest.mark.parametrize(
    "network, arguments, message",
    [
        (InLinePVT, dict(PVT, attn_type="IIIA"), "attn_type='IIIA'"),
        (InLineSwin, dict(SWIN, attn_type="IMS"), "attn_type='IMS'"),
        (InLineCSWin, dict(CSWIN, la_split_size=(4, 8, 4, 2)), "la_split_size=4 of stage 0"),
        (InLineDeiT, dict(DEIT, num_heads=5), "multiple of num_heads"),
    ],
)
def test_bad_arguments(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)
