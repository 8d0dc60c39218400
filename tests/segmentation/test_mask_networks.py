"""Networks that classify masks: sizes, backbones, gradients, named models; they learn four images by heart."""

import pytest
import torch

from zoo.complexity import count_parameters, on_meta
from zoo.data.shapes_segmentation import ShapesSegmentation
from zoo.registry import MODELS, build
from zoo.segmentation.mask2former import Mask2Former
from zoo.segmentation.mask_segmenter import MaskSegmenter
from zoo.segmentation.masked_attention_decoder import visible
from zoo.segmentation.maskformer import MaskFormer
from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.pixel_decoder import DeformablePixelDecoder, FPNPixelDecoder
from zoo.segmentation.variants._masks import nano_backbone

SMALL = {
    "mask2former": dict(
        type=Mask2Former,
        num_classes=3,
        num_queries=5,
        dim=64,
        mask_dim=16,
        num_points=100,
        pixel_decoder=dict(num_layers=1, d_ffn=32, num_heads=4),
        decoder=dict(num_layers=3, d_ffn=32, num_heads=4),
    ),
    "maskformer": dict(
        type=MaskFormer,
        num_classes=3,
        num_queries=5,
        dim=64,
        mask_dim=16,
        d_model=32,
        nhead=4,
        num_decoder_layers=2,
        dim_feedforward=32,
        dropout=0.0,
    ),
}
#: name -> parameters of transformers' model of the same configuration (the norm that its Swin does not call left out)
PARAMETERS = {
    "mask2former_swin_tiny": 47_435_264,
    "mask2former_swin_small": 68_753_168,
    "mask2former_swin_base": 106_917_822,
    "mask2former_swin_large": 215_535_610,
    "maskformer_swin_tiny": 41_757_009,
    "maskformer_swin_small": 63_074_913,
    "maskformer_swin_base": 101_829_391,
    "maskformer_swin_large": 211_575_627,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_named_models_have_transformers_parameters(name):
    assert count_parameters(on_meta(MODELS.entry(name).builder)) == PARAMETERS[name]


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 64)])
def test_any_image_size(network, size):
    torch.manual_seed(0)
    model = MaskSegmenter(nano_backbone(), SMALL[network]).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        both, alone = model(images), model(images[1:])
    assert both["class_logits"].shape == (2, 5, 4)
    assert both["mask_logits"].shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert "aux_outputs" not in both
    for key, value in alone.items():
        assert torch.allclose(value, both[key][1:], atol=1e-4)
        assert value.isfinite().all()


@pytest.mark.parametrize("network", SMALL)
def test_every_parameter_is_trained(network):
    torch.manual_seed(0)
    data = ShapesSegmentation("train", 2, 64, num_shapes=2, objects=(1, 2))
    model = SegmentationModel(dict(type=MaskSegmenter, backbone=nano_backbone(), network=SMALL[network]))
    batch = {k: [data[i][k] for i in range(2)] for k in ("inputs", "data_samples")}
    losses = model.train()(**model.data_preprocessor(batch, True), mode="loss")
    layers = {"mask2former": 4, "maskformer": 2}[network]  # Mask2Former's queries predict before the first layer too
    assert sorted(losses) == sorted(
        f"loss_{kind}{suffix}"
        for kind in ("ce", "mask", "dice")
        for suffix in ("", *(f"_{i}" for i in range(layers - 1)))
    )
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize(
    "backbone",
    [
        "davit_nano",
        "biformer_nano",
        dict(type="pyramid_nano", mixer="agent"),
        dict(type="vit_nano"),
        "timm:resnet10t",
        dict(type="torchvision:resnet18"),
    ],
    ids=str,
)
def test_another_backbone_is_one_line(backbone):
    torch.manual_seed(0)
    model = build(dict(type="mask2former_nano", backbone=backbone, num_classes=3), MODELS).eval()
    with torch.no_grad():
        found = model(torch.randn(1, 3, 64, 64))
    assert found["class_logits"].shape == (1, 20, 4)
    assert found["mask_logits"].isfinite().all()


def test_training_and_evaluation_predict_the_same():
    """Evaluation brings the embeddings to the size of a map, training the masks: the order of a sum is all."""
    torch.manual_seed(0)
    model = MaskSegmenter(nano_backbone(), SMALL["mask2former"]).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        model.network.train()
        found = model(images)
    assert torch.allclose(found["mask_logits"], expected["mask_logits"], atol=1e-4)
    assert torch.allclose(found["class_logits"], expected["class_logits"], atol=1e-4)


def test_queries_see_their_mask_or_everything():
    masks = torch.tensor([[[[1.0, -1.0], [0.0, -2.0]], [[-1.0, -1.0], [-3.0, -0.5]]]])
    assert visible(masks).tolist() == [[[True, False, True, False], [True, True, True, True]]]


def test_masked_pairs_do_not_count():
    from zoo.segmentation.masked_attention_decoder import MaskedAttention

    torch.manual_seed(0)
    attention = MaskedAttention(16, 2)
    query, key = torch.randn(1, 3, 16), torch.randn(1, 6, 16)
    seen = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.bool).expand(1, 3, 6)
    kept = key[:, [0, 2, 3]]
    assert torch.allclose(attention(query, key, key, seen), attention(query, kept, kept), atol=1e-6)
    reference = torch.nn.functional.multi_head_attention_forward(
        query.transpose(0, 1),
        key.transpose(0, 1),
        key.transpose(0, 1),
        16,
        2,
        torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
        torch.cat([attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]),
        None,
        None,
        False,
        0.0,
        attention.out_proj.weight,
        attention.out_proj.bias,
        attn_mask=~seen[0],
    )[0]
    assert torch.allclose(attention(query, key, key, seen), reference.transpose(0, 1), atol=1e-6)


def test_wrong_maps_and_arguments_are_named():
    decoder = DeformablePixelDecoder((8, 16, 32, 64), dim=32, num_heads=4)
    maps = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 32, 48), (16, 8, 4, 2))]
    with pytest.raises(ValueError, match=r"\[8, 16, 32, 48\] channels .* \[8, 16, 32, 64\]"):
        decoder(maps)
    with pytest.raises(ValueError, match="built for"):
        FPNPixelDecoder((8, 16), dim=32)(maps)
    with pytest.raises(ValueError, match="needs 4 maps"):
        DeformablePixelDecoder((8, 16, 32), dim=32)
    with pytest.raises(ValueError, match="dim=40"):
        FPNPixelDecoder((8, 16), dim=40)
    with pytest.raises(ValueError, match="num_classes=4"):
        MaskSegmenter(nano_backbone(), build({**SMALL["maskformer"], "channels": (32, 64, 128, 256)}, MODELS), 4)


@pytest.mark.parametrize("name", ["mask2former_nano", pytest.param("maskformer_nano", marks=pytest.mark.slow)])
def test_learns_four_images_by_heart(name):
    torch.manual_seed(0)
    data = ShapesSegmentation("train", 4, 64, objects=(1, 2))
    batch = {k: [data[i][k] for i in range(4)] for k in ("inputs", "data_samples")}
    model = SegmentationModel(name)
    steps = 120 if name == "mask2former_nano" else 150
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 10) * (0.1 if i > 0.8 * steps else 1)
    )
    model.train()
    for _ in range(steps):
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = model.eval()(**model.data_preprocessor(batch), mode="predict")
    for sample in found:
        assert (sample.pred_sem_seg == sample.gt_sem_seg).float().mean() > 0.97
        gt, pred = sample.gt_instances, sample.pred_instances
        for mask, label in zip(gt.masks, gt.labels):
            same = pred.masks[(pred.labels == label) & (pred.scores > 0.5)]
            overlaps = (same & mask).flatten(1).sum(1) / (same | mask).flatten(1).sum(1)
            assert overlaps.max() > 0.8
        assert sorted(s["label"] for s in sample.pred_panoptic.segments) == sorted(
            s["label"] for s in sample.gt_panoptic.segments
        )
