"""What is drawn of the queries' attention is what the attention computed."""

import pytest
import torch
from torch.nn import functional as F

from zoo.detection.attention import recording, sampling_points
from zoo.detection.inference import DetectionPredictor, untrained_predictor
from zoo.detection.model import DetectionModel
from zoo.detection.ms_deform import MSDeformAttn

SHAPES = [(7, 9), (4, 5)]


@pytest.mark.parametrize("coordinates", [2, 4])
def test_reading_at_the_points_gives_the_attention(coordinates):
    """Bilinear values at the points, summed by the weights, are the module's output before its projection."""
    torch.manual_seed(0)
    attention = MSDeformAttn(16, 2, 4, 3).double()
    for p in attention.parameters():
        torch.nn.init.normal_(p, std=0.3)
    query = torch.randn(2, 5, 16, dtype=torch.float64)
    value = torch.randn(2, sum(h * w for h, w in SHAPES), 16, dtype=torch.float64)
    reference = torch.rand(2, 5, 2, coordinates, dtype=torch.float64) * 0.6 + 0.2
    expected = attention(query, reference, value, SHAPES)
    points, weights = sampling_points(attention, query, reference, SHAPES)
    points, weights = points.view(2, 5, 4, 2, 3, 2), weights.view(2, 5, 4, 2, 3)
    assert torch.allclose(weights.sum((3, 4)), torch.ones(2, 5, 4, dtype=torch.float64))
    levels = attention.value_proj(value).view(2, -1, 4, 4).split([h * w for h, w in SHAPES], 1)
    found = torch.zeros(2, 5, 4, 4, dtype=torch.float64)
    for level, ((h, w), values) in enumerate(zip(SHAPES, levels)):
        for head in range(4):
            map_BCHW = values[:, :, head].transpose(1, 2).reshape(2, 4, h, w)
            grid = points[:, :, head, level] * 2 - 1  # [B, Q, P, 2]
            read = F.grid_sample(map_BCHW, grid, align_corners=False)  # [B, C, Q, P]
            found[:, :, head] += (read * weights[:, :, head, level][:, None]).sum(-1).transpose(1, 2)
    assert torch.allclose(attention.output_proj(found.flatten(2)), expected, atol=1e-10)


@pytest.mark.parametrize("name", ["detr_nano", "conditional_detr_nano", "dab_detr_nano"])
def test_dense_attention_is_a_distribution_without_the_padding(name):
    torch.manual_seed(0)
    model = DetectionModel(name, 4).eval()
    images = torch.randn(2, 3, 64, 96)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 48:] = True
    with torch.no_grad(), recording(model.detector.network) as recorded:
        out = model(images, mask=mask)
    assert len(recorded.layers) == 3
    padding = out["masks"][-1].flatten(1)
    for layer in recorded.layers:
        assert torch.allclose(layer.weights.sum(-1), torch.ones(2, 30), atol=1e-5)
        assert (layer.weights[1][:, padding[1]] == 0).all()
    with torch.no_grad():
        again = model(images, mask=mask)
    assert torch.equal(out["pred_boxes"], again["pred_boxes"])  # recording changes nothing


@pytest.mark.parametrize("name", ["dino_nano", "detr_nano"])
def test_a_picture_is_drawn(name):
    predictor = untrained_predictor(name, num_classes=3)
    assert isinstance(predictor, DetectionPredictor)
    image = torch.randint(0, 256, (60, 90, 3), dtype=torch.uint8).numpy()
    figure = predictor.draw_attention(image, most=4)
    assert len(figure.axes) == 4
    with pytest.raises(ValueError, match="has 3 layers"):
        predictor.draw_attention(image, layer=7)


def test_a_network_without_a_decoder_is_told():
    with pytest.raises(ValueError, match="Linear has no decoder"), recording(torch.nn.Linear(1, 1)):
        pass


def test_results_of_a_predictor():
    predictor = untrained_predictor("detr_nano", num_classes=3, classes=["a", "b", "c"])
    image = torch.randint(0, 256, (60, 90, 3), dtype=torch.uint8).numpy()
    (result,) = predictor([image], score_threshold=0.0, max_detections=7)
    assert len(result) <= 7
    assert result.scores == sorted(result.scores, reverse=True)
    assert set(result.names) <= {"a", "b", "c"}
    entries = result.to_coco(5)
    assert [e["image_id"] for e in entries] == [5] * len(result)
    for entry, (x0, y0, x1, y1) in zip(entries, result.boxes.tolist()):
        assert entry["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-3)
        assert 0 <= x0 < x1 <= 90
        assert 0 <= y0 < y1 <= 60
    picture = result.draw()
    assert picture.size == (90 * 5, 60 * 5)  # a small image is enlarged
    (none,) = predictor([image], score_threshold=1.0)
    assert len(none) == 0
    assert none.to_dict()["objects"] == []
    with pytest.raises(ValueError, match="score_threshold=2"):
        predictor([image], score_threshold=2)
    with pytest.raises(TypeError, match="did you mean score_threshold"):
        predictor([image], score_treshold=0.5)
