"""Named networks: sizes of the authors, MONAI's baselines, backbones under an upsampling decoder."""

import json
import sys

import pytest
import torch

import zoo
from zoo.complexity import count_parameters, on_meta
from zoo.medical.backbone_unet import BackboneUNet
from zoo.medical.baselines import MonaiDynUNet, MonaiSwinUNETR, MonaiUNet, as_network
from zoo.medical.model import VolumeSegmenter
from zoo.medical.training_losses import halving_weights
from zoo.medical.unet import UNet
from zoo.medical.wau import WindowAttentionUpsample
from zoo.registry import MODELS, build

#: ours -> (file of facts, the authors' name, key of the number, arguments that theirs has and ours differs in)
PUBLISHED = {
    "attention_unet_3d": ("attention_unet", "unet_CT_multi_att_dsv_3D", "params", {}),
    "attention_unet_single_3d": ("attention_unet", "unet_CT_single_att_dsv_3D", "params", {}),
    "attention_unet_ungated_3d": ("attention_unet", "unet_CT_dsv_3D", "params", {}),
    "grid_attention_unet_3d": ("attention_unet", "unet_grid_attention_3D", "params", {}),
    "ms_dual_guided_resnext101": (
        "ms_dual_guided",
        "MS-Dual-Guided (DAF_stack, ResNeXt101-32x8d)",
        "params_used_in_forward",
        {},
    ),
    "deep_supervised_unet": ("turbolift", "DeepSupAttentionUnet", "params", {"num_classes": 1}),
    "additive_gate_unet_3d": ("turbolift", "AttU_Net (3-D)", "params", {"num_classes": 1}),
}
SEGMENTERS = MODELS.names(task="medical", kind="segmentation")


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_authors(name, conformance_dir):
    system, theirs, key, arguments = PUBLISHED[name]
    facts = json.loads((conformance_dir / "facts" / f"{system}.json").read_text(encoding="utf-8"))["variants"][theirs]
    assert count_parameters(on_meta(lambda: MODELS.get(name)(**arguments))) == facts[key]


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_name_makes_a_segmenter(name):
    """On no memory: classes, channels and dimensions are arguments or attributes, and the segmenter takes each."""
    model = on_meta(
        lambda: build(dict(type=VolumeSegmenter, network=dict(type=name, in_chans=2), num_classes=7), MODELS)
    )
    assert model.num_classes == model.network.num_classes == 7
    assert model.network.in_chans == 2
    size = [m * 4 for m in model.multiple] if max(model.multiple) > 1 else [64] * model.dims
    if model.dims == 3 and "monai" in name:
        size = [64, 64, 64]
    with torch.no_grad():
        logits = model.eval().logits(torch.empty(1, 2, *size, device="meta"))
    assert logits.shape == (1, 7, *size)


def test_lists():
    assert {"wau_unet_3d", "attention_unet_2d", "monai_swin_unetr_3d"} <= set(SEGMENTERS)
    assert set(SEGMENTERS) <= set(zoo.list_models(task="medical"))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (MonaiUNet, dict(widths=(4, 8, 8), num_res_units=1)),
        (MonaiDynUNet, dict(widths=(4, 8, 8, 8), deep_supervision=2)),
    ],
)
def test_monai_is_called_with_its_own_sizes(make, arguments, dims):
    """Logits are those of MONAI's network for the filled-up input; any size goes in."""
    ours = make(2, 3, dims, **arguments).eval()
    size = (19, 24, 10)[:dims]
    x = torch.randn(2, 2, *size)
    filled = [max(-(-n // m) * m, least) for n, m, least in zip(size, ours.multiples, ours.least)]
    padded = torch.zeros(2, 2, *filled)
    padded[(..., *(slice(n) for n in size))] = x
    with torch.no_grad():
        expected = ours.net(padded)[(..., *(slice(n) for n in size))]
        assert torch.equal(ours(x), expected)
    with pytest.raises(ValueError, match=r"accepted is \[B, 2\]"):
        ours(x[:, :1])


def test_dynunet_is_deeply_supervised():
    """As MONAI gives them: the finest first, all of the input's size, and weighted by halves."""
    ours = MonaiDynUNet(1, 3, 2, widths=(4, 8, 8, 8), deep_supervision=2).train()
    x, target = torch.randn(2, 1, 32, 32), torch.randint(0, 3, (2, 32, 32))
    outputs = ours(x)
    assert [o.shape for o in outputs] == [(2, 3, 32, 32)] * 3
    losses = ours.training_losses(outputs, target, torch.nn.functional.cross_entropy)
    each = torch.stack([torch.nn.functional.cross_entropy(o, target) for o in outputs])
    assert torch.allclose(sum(losses.values()), (halving_weights(3) * each).sum())
    anisotropic = MonaiDynUNet(
        1, 2, 3, widths=(4, 8, 8), strides=[(1, 2, 2), 2], kernels=[(1, 3, 3), 3, 3], deep_supervision=0
    )
    assert anisotropic.multiples == (2, 4, 4)
    assert anisotropic.eval()(torch.randn(1, 1, 4, 9, 8)).shape == (1, 2, 4, 9, 8)
    with pytest.raises(ValueError, match="1 strides and 3 kernels: 3 widths need 2 and 3"):
        MonaiDynUNet(1, 2, 2, widths=(4, 8, 8), strides=[2])
    with pytest.raises(ValueError, match="deep_supervision=2: accepted are 0 to 1"):
        MonaiDynUNet(1, 2, 2, widths=(4, 8, 8), deep_supervision=2)


def test_swin_unetr_of_any_size():
    ours = MonaiSwinUNETR(1, 2, 2, 12, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)).eval()
    x = torch.randn(1, 1, 40, 64)
    padded = torch.zeros(1, 1, 64, 64)
    padded[:, :, :40] = x
    with torch.no_grad():
        assert torch.equal(ours(x), ours.net(padded)[:, :, :40])


def test_any_module_is_a_baseline():
    net = as_network(torch.nn.Conv2d(1, 3, 3, padding=1), 1, 3, 2, multiple=8)
    (found,) = VolumeSegmenter(net).eval()([torch.randn(1, 9, 10, 3)], mode="predict")
    assert found.pred_label.shape == (9, 10, 3)


def test_without_monai_the_error_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    for make in (MonaiUNet, MonaiDynUNet, MonaiSwinUNETR):
        with pytest.raises(ImportError, match=r"pip install attnzoo\[medical\]"):
            make()


@pytest.mark.parametrize("upsample", ["wau", "linear", "transposed", dict(type="wau", window=2, num_heads=2)])
def test_a_backbone_with_an_upsampling_decoder(upsample):
    network = BackboneUNet("davit_nano", 1, 3, dim=16, upsample=upsample)
    logits = network(torch.randn(2, 1, 50, 70))
    assert logits.shape == (2, 3, 50, 70)
    logits.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None and p.requires_grad] == []
    kinds = {type(m) for m in network.modules()}
    assert (WindowAttentionUpsample in kinds) == (upsample not in ("linear", "transposed"))


def test_other_backbones_and_what_does_not_fit():
    assert BackboneUNet("biformer_nano", 3, 2, dim=16)(torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(ValueError, match=r"strides \(16,\)"):
        BackboneUNet(dict(type="vit_nano", out_indices=(0,), patch_size=16), 3, 2)
    with pytest.raises(ValueError, match="upsample='nearest'"):
        BackboneUNet("davit_nano", 1, 2, upsample="nearest")
    with pytest.raises(ValueError, match="accepted is .B, 1, H, W."):
        BackboneUNet("davit_nano", 1, 2, dim=16)(torch.randn(1, 3, 64, 64))


def test_the_same_unet_with_each_enlargement():
    """What is compared differs in the upsampling blocks alone."""
    rest = []
    for upsample in ("wau", "linear", "transposed"):
        state = UNet(1, 2, 2, (8, 16), upsample=upsample).state_dict()
        rest.append({k: v.shape for k, v in state.items() if not k.startswith("up.")})
    assert rest[0] == rest[1] == rest[2]


@pytest.mark.parametrize("dims", [2, 3])
def test_levels_of_the_unet_predict_together(dims):
    """The logits are a 1x1 convolution of the levels' predictions, enlarged to the input."""
    network = UNet(1, 3, dims, (4, 8, 8), upsample="linear", predictions=2).eval()
    x = torch.randn(1, 1, *(8, 12, 8)[:dims])
    maps = []
    hooks = [d.register_forward_hook(lambda m, i, o: maps.append(o)) for d in network.decoder]
    with torch.no_grad():
        logits = network(x)
        coarse, fine = maps
        larger = torch.nn.functional.interpolate(
            network.coarse_heads[0](coarse), size=x.shape[2:], mode="bilinear" if dims == 2 else "trilinear"
        )
        assert torch.equal(logits, network.final(torch.cat([network.head(fine), larger], 1)))
    for hook in hooks:
        hook.remove()
    assert UNet(1, 3, dims, (4, 8, 8)).final is None
    with pytest.raises(ValueError, match="predictions=3: accepted are 1 to 2"):
        UNet(1, 3, dims, (4, 8, 8), predictions=3)
