"""Swins of detectors: the authors' names and values are read and written, and give transformers' outputs."""

import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.backbones.swin import Swin
from zoo.layers.patch_merging import PatchMerging
from zoo.registry import MODELS, build
from zoo.weights.errors import CheckpointError
from zoo.weights.importers import co_detr, dino, focus_detr, swin
from zoo.weights.importers._swin import MICROSOFT, MMDET, naming, official_swin, own_swin, swin_config
from zoo.weights.load import load_weights

SIZES = dict(embed_dim=12, depths=(2, 1, 2, 1), num_heads=(1, 2, 3, 4), window_size=4)
#: of the backbone among the names of a detector's checkpoint
PREFIXES = {"dino": "backbone.0.", "focus_detr": "backbone.", "co_detr": "backbone.", "co_detr mmdet": "backbone."}


def unfold_order(channels):
    """For each place in what ``nn.Unfold`` gives, the place in Microsoft's concatenation of the same number."""
    x = torch.arange(4.0 * channels).view(1, channels, 2, 2)
    joined = torch.cat([x[..., 0, 0], x[..., 1, 0], x[..., 0, 1], x[..., 1, 1]], dim=1)[0].tolist()
    return [joined.index(n) for n in nn.Unfold(2, stride=2)(x)[0, :, 0].tolist()]


def microsofts(state):
    """transformers' tensors as Microsoft's code names them, buffers included."""
    found = {}
    for key, value in state.items():
        key = key.removeprefix("swin.").removeprefix("encoder.")
        if key.startswith("layernorm."):
            continue
        if key.startswith("hidden_states_norms.stage"):
            _, stage, name = key.split(".")
            key = f"norm{int(stage.removeprefix('stage')) - 1}.{name}"
        for theirs, his in (
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("embeddings.norm", "patch_embed.norm"),
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("attention.o_proj", "attn.proj"),
            ("attention.relative_position_bias.", "attn."),
        ):  # fmt: skip
            key = key.replace(theirs, his)
        if ".attention.q_proj." in key:
            rest = [state[f"swin.encoder.{key.replace('q_proj', f'{n}_proj')}"] for n in "kv"]
            key, value = key.replace("attention.q_proj", "attn.qkv"), torch.cat([value, *rest])
        if key.endswith("relative_position_bias_table"):
            found[key.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
        if ".attention." not in key:
            found[key] = value
    return found


def mmdets(state):
    """Microsoft's tensors as mmdet names and orders them."""
    found = {}
    for key, value in state.items():
        if ".downsample." in key:
            value = value[..., unfold_order(value.shape[-1] // 4)]
        for his, theirs in (
            ("layers.", "stages."), (".attn.", ".attn.w_msa."), ("patch_embed.proj.", "patch_embed.projection."),
            (".mlp.fc1.", ".ffn.LAYERS.0.0."), (".mlp.fc2.", ".ffn.LAYERS.1."),
        ):  # fmt: skip
            key = key.replace(his, theirs)
        found[key.replace("LAYERS", "layers")] = value
    return found


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    sizes = {k: list(v) if isinstance(v, tuple) else v for k, v in SIZES.items()}
    config = transformers.SwinConfig(**sizes, out_features=[f"stage{i}" for i in (1, 2, 3, 4)])
    torch.manual_seed(0)
    model = transformers.SwinBackbone(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def names_of(scheme, state):
    return microsofts(state) if scheme == MICROSOFT else mmdets(microsofts(state))


def test_patches_are_merged_as_mmdet_does():
    torch.manual_seed(0)
    x, weight, norm = torch.randn(2, 3, 7, 5), torch.randn(6, 12), torch.rand(2, 12)
    unfolded = nn.Unfold(2, stride=2)(F.pad(x, (0, 1, 0, 1))).transpose(1, 2)  # [B, 4*3, 12]
    expected = F.layer_norm(unfolded, (12,), norm[0], norm[1]) @ weight.T
    state = dict(zip(("norm.weight", "norm.bias", "reduction.weight"), (*norm, weight)))
    own = own_swin({f"stages.0.downsample.{k}": v for k, v in state.items()}, MMDET)
    merging = PatchMerging(3)
    merging.load_state_dict({k.removeprefix("embeds.1."): v for k, v in own.items()})
    torch.testing.assert_close(merging(x).flatten(1, 2), expected)
    plain = {k.removeprefix("embeds.1."): v for k, v in state.items()}
    merging.load_state_dict(plain)  # the order does matter
    assert not torch.allclose(merging(x).flatten(1, 2), expected, atol=0.1)


@pytest.mark.parametrize("scheme", [MICROSOFT, MMDET])
def test_maps_are_transformers(theirs, scheme):
    state = names_of(scheme, theirs.state_dict())
    assert sum(k.endswith("relative_position_index") for k in state) == 6
    state["layers.0.blocks.1.attn_mask" if scheme == MICROSOFT else "stages.0.blocks.1.attn_mask"] = torch.zeros(1)
    assert naming(state) == scheme
    own = Swin(**SIZES).eval()
    own.load_state_dict(own_swin(state, scheme))
    # padded patches, odd maps (merging is padded), maps that windows do not tile, and one that is within a window
    image = torch.randn(2, 3, 61, 83, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = theirs(image).feature_maps, own(image)
    assert [tuple(m.shape[2:]) for m in found] == [(16, 21), (8, 11), (4, 6), (2, 3)]
    for ours, his in zip(found, expected):
        assert (ours - his).norm() <= 1e-5 * his.norm()


@pytest.mark.parametrize("scheme", [MICROSOFT, MMDET])
def test_names_and_values_go_back(theirs, scheme):
    state = {k: v for k, v in names_of(scheme, theirs.state_dict()).items() if not k.endswith("_index")}
    back = official_swin(own_swin(state, scheme), scheme)
    assert set(back) == set(state)
    assert all(torch.equal(back[k], v) for k, v in state.items())
    with pytest.raises(KeyError, match="unexpected"):
        own_swin({**state, "absolute_pos_embed": torch.zeros(1)}, scheme)
    with pytest.raises(KeyError, match="unexpected"):
        official_swin({"head.fc.weight": torch.zeros(1)}, scheme)


@pytest.mark.parametrize("entry", [swin.MICROSOFT, swin.MMDET])
def test_backbones_start_from_files_of_classification(entry, theirs, tmp_path):
    scheme = MICROSOFT if entry == swin.MICROSOFT else MMDET
    state = {k: v for k, v in names_of(scheme, theirs.state_dict()).items() if not re.match(r"norm\d\.", k)}
    state |= {"norm.weight": torch.ones(96), "norm.bias": torch.zeros(96)}
    state |= {"head.weight": torch.ones(9, 96), "head.bias": torch.zeros(9)}
    torch.save({"model": state}, tmp_path / "swin.pth")
    _, _, model = detector("dino")
    report = load_weights(model.backbone, tmp_path / "swin.pth", strict=False, adapt=True)
    assert report.converted_by == entry
    assert set(report.dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert set(report.missing) == {f"norms.{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")}
    assert not report.unexpected
    assert not report.mismatched
    own = swin.convert_state_dict(entry, state)
    assert all(torch.equal(model.backbone.state_dict()[k], own[k]) for k in report.loaded)
    back = swin.revert_state_dict(entry, own)
    expected = {k: v for k, v in state.items() if not k.endswith("_index")}
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[k], v) for k, v in expected.items())
    with pytest.raises(LookupError, match="not known"):
        swin.convert_state_dict("Swin", state)
    # A classifier of these windows would compute something else than the authors'.
    with pytest.raises(CheckpointError, match="unexpected: "):
        load_weights(Swin(**SIZES, num_classes=9), tmp_path / "swin.pth")
    width = "embed_dims" if scheme == MMDET else "embed_dim"
    given = {width if k == "embed_dim" else k: v for k, v in SIZES.items()}
    spec = swin.config_from_official(entry, given)
    assert build(spec, MODELS).state_dict().keys() == Swin(**SIZES).state_dict().keys()


SMALL = {
    "dino": (
        dino,
        dino.NETWORK,
        dict(
            hidden_dim=32, nheads=2, enc_layers=1, dec_layers=2, dim_feedforward=16, num_queries=7, num_classes=5,
            query_dim=4, num_feature_levels=4, two_stage_type="standard", two_stage_bbox_embed_share=False,
            two_stage_class_embed_share=False, embed_init_tgt=True, dn_labelbook_size=5, aux_loss=True,
            decoder_sa_type="sa", return_interm_indices=[1, 2, 3],
        ),
    ),
    "focus_detr": (
        focus_detr,
        focus_detr.NETWORK,
        dict(
            embed_dim=32, heads=2, ffn=16, enc_layers=1, dec_layers=2, num_queries=7, num_classes=5, gn_groups=8,
            cascade_set=[1.0], topk_sa=5,
        ),
    ),
    "co_detr": (
        co_detr,
        co_detr.DEFORMABLE,
        dict(
            embed_dims=32, heads=2, ffn=16, enc_layers=1, dec_layers=2, num_query=7, num_classes=5, rpn_channels=8,
            fc_channels=8, gn_groups=8, rpn_scales=1,
        ),
    ),
}  # fmt: skip


def detector(name):
    system, entry, kwargs = SMALL[name.split()[0]]
    given = dict(**SIZES, out_indices=(1, 2, 3))
    if name == "co_detr":
        given |= dict(type="SwinTransformerV1", ape=False, patch_norm=True, use_checkpoint=False, pretrained="x.pth")
    if name == "co_detr mmdet":
        given |= dict(type="SwinTransformer", embed_dims=given.pop("embed_dim"), convert_weights=True)
    torch.manual_seed(0)
    return system, entry, build(system.config_from_official(entry, {**kwargs, "backbone": given}), MODELS).eval()


@pytest.mark.parametrize("name", PREFIXES)
def test_a_detector_loads_under_the_authors_names(name, theirs):
    system, entry, model = detector(name)
    assert model.backbone.out_channels == (24, 48, 96)
    scheme = MMDET if name.endswith("mmdet") else MICROSOFT
    state = system.revert_state_dict(entry, model.state_dict(), *([MMDET] if scheme == MMDET else []))
    prefix = PREFIXES[name]
    backbone = {prefix + k: v for k, v in names_of(scheme, theirs.state_dict()).items() if not k.startswith("norm0.")}
    buffers = {k for k in backbone if k.endswith("relative_position_index")}
    network = {k: v for k, v in state.items() if not k.startswith("backbone.")}
    assert {k for k in state if k.startswith("backbone.")} == backbone.keys() - buffers
    report = load_weights(model, {**network, **backbone})
    assert report.exact
    assert report.converted_by == entry
    image = torch.randn(1, 3, 61, 83, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out, expected = model(image), theirs(image).feature_maps[1:]
    assert all((f - e).norm() <= 1e-5 * e.norm() for f, e in zip(out["features"], expected, strict=True))
    assert out["pred_boxes"].shape == (1, 7, 4)
    assert out["pred_boxes"].isfinite().all()
    back = system.revert_state_dict(entry, model.state_dict(), *([MMDET] if scheme == MMDET else []))
    assert all(torch.equal(back[k], v) for k, v in backbone.items() if k not in buffers)
    with pytest.raises(KeyError, match="unexpected"):
        system.convert_state_dict(entry, {**network, **backbone, f"{prefix}strange.weight": torch.zeros(1)})


def test_focus_detrs_resnet_has_detectron2s_names():
    _, _, kwargs = SMALL["focus_detr"]
    spec = focus_detr.config_from_official(focus_detr.NETWORK, {**kwargs, "backbone": "resnet50"})
    spec["backbone"] |= dict(planes=(4, 4, 8, 8), layers=(1, 1, 2, 1), stem=4)
    model = build(spec, MODELS)
    state = focus_detr.revert_state_dict(focus_detr.NETWORK, model.state_dict())
    names = {k for k in state if k.startswith("backbone.")}
    assert {"backbone.stem.conv1.weight", "backbone.stem.conv1.norm.running_mean"} < names
    block = {k.removeprefix("backbone.res4.0.").rpartition(".")[0] for k in names if k.startswith("backbone.res4.0.")}
    parts = {"conv1", "conv2", "conv3", "shortcut"}
    assert block == parts | {f"{p}.norm" for p in parts}
    again = focus_detr.convert_state_dict(focus_detr.NETWORK, state)
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())


def test_dinos_own_arguments_give_the_published_model(conformance_dir):
    facts = json.loads((conformance_dir / "facts" / "dino.json").read_text(encoding="utf-8"))["variants"]
    for published, named in (("DINO-4scale-Swin-L", "dino_4scale_swin_l"), ("DINO-5scale-R50", "dino_5scale_r50")):
        fact = facts[published]
        with torch.device("meta"):
            model = build(dino.config_from_official(dino.NETWORK, fact["kwargs"]), MODELS)
            registered = zoo.create_model(named)
        assert sum(p.numel() for p in model.parameters()) == fact["params"]
        shapes = {k: v.shape for k, v in model.state_dict().items()}
        assert shapes == {k: v.shape for k, v in registered.state_dict().items()}
        # their state dict has an index in each block of a Swin
        blocks = sum(k.endswith("rel_pos_bias.table") for k in shapes)
        official = dino.revert_state_dict(dino.NETWORK, model.state_dict())
        assert len(official) + blocks == fact["state_keys"]
        assert sum(v.numel() for v in official.values()) + blocks * 144**2 == fact["state_values"]


CO_DETR = {
    "co_deformable_detr_swin_tiny": "co_deformable_detr_swin_tiny_1x_coco",
    "co_deformable_detr_swin_small": "co_deformable_detr_swin_small_1x_coco",
    "co_deformable_detr_swin_base": "co_deformable_detr_swin_base_1x_coco",
    "co_deformable_detr_swin_large": "co_deformable_detr_swin_large_1x_coco",
    "co_deformable_detr_swin_large_900q": "co_deformable_detr_swin_large_900q_3x_coco",
    "co_dino_5scale_swin_large": "co_dino_5scale_swin_large_1x_coco",
}


def test_sizes_are_the_published_ones(conformance_dir):
    facts = json.loads((conformance_dir / "facts" / "co_detr.json").read_text(encoding="utf-8"))["variants"]
    for own, published in CO_DETR.items():
        with torch.device("meta"):
            model = zoo.create_model(own)
        assert sum(p.numel() for p in model.parameters()) == facts[published]["params"], own
        assert sum(p.numel() for p in model.backbone.parameters()) == facts[published]["backbone_params"], own
    for size in ("tiny", "base", "large"):
        with torch.device("meta"):
            model = zoo.create_model(f"focus_detr_swin_{size}" + ("" if size == "tiny" else "_384"))
        backbone = sum(p.numel() for p in model.backbone.parameters())
        assert backbone == facts[f"co_deformable_detr_swin_{size}_1x_coco"]["backbone_params"]


@pytest.mark.parametrize(
    "given, scheme, says",
    [
        (dict(ape=True), MICROSOFT, "backbone.ape=True"),
        (dict(dilation=True), MICROSOFT, "backbone.dilation=True"),
        (dict(qk_scale=0.1), MICROSOFT, "backbone.qk_scale=0.1"),
        (dict(patch_norm=False), MMDET, "backbone.patch_norm=False"),
        (dict(strides=(4, 2, 2, 1)), MMDET, "backbone.strides"),
        (dict(use_abs_pos_embed=True), MMDET, "use_abs_pos_embed=True"),
        (dict(frozen_stages=2), MICROSOFT, "frozen_stages=2"),
        (dict(frozen_stages=1), MMDET, "frozen_stages=1"),
    ],
)
def test_what_is_not_supported_is_refused(given, scheme, says):
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        swin_config("entry", given, scheme)


def test_wrong_names_and_stages_are_refused():
    with pytest.raises(TypeError, match="embed_dim"):
        swin_config("entry", dict(embed_dims=96), MICROSOFT)
    with pytest.raises(ValueError, match="swin_L_384_22k"):
        dino.config_from_official(dino.NETWORK, {**SMALL["dino"][2], "backbone": "convnext_xlarge_22k"})
    tiny = {**SMALL["dino"][2], "backbone": "swin_T_224_1k"}
    with pytest.raises(ValueError, match="dilation"):
        dino.config_from_official(dino.NETWORK, {**tiny, "dilation": True})
    with pytest.raises(ValueError, match="return_interm_indices"):
        dino.config_from_official(dino.NETWORK, {**tiny, "return_interm_indices": [2, 3]})
    kwargs = SMALL["co_detr"][2]
    with pytest.raises(ValueError, match="out_indices"):
        co_detr.config_from_official(co_detr.DEFORMABLE, {**kwargs, "backbone": dict(type="SwinTransformerV1")})
    with pytest.raises(ValueError, match="EVA"):
        co_detr.config_from_official(co_detr.DEFORMABLE, {**kwargs, "backbone": dict(type="EVA")})
