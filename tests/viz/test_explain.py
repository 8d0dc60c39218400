"""``zoo explain`` and the picture that it draws."""

import cv2
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

import zoo
from zoo.cli import main
from zoo.mixers.sampling import Boxes, Heats, Points, Routes
from zoo.viz.explain import METHODS, explain
from zoo.viz.figures import new_figure
from zoo.viz.sampling import draw_sampling


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)


def inputs_of(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def network(mixer="softmax", host="vit_nano"):
    torch.manual_seed(0)
    return zoo.create_model(host, mixer=mixer, num_classes=5).eval()


def titles(found):
    return [axes.get_title() for axes in found.figure.axes]


def test_every_method_has_its_panel(picture):
    found = explain(network(), inputs_of(picture), picture, methods=[m for m in METHODS if m != "sampling"], target=3)
    shown = titles(found)
    assert shown[0].startswith("3 ")
    for word in ("attention of blocks.5.attn", "rollout over 6 mixers", "flow over 6", "relevance", "distance", "loss"):
        assert sum(word in title for title in shown) == 1, word
    assert found.left_out == []
    (dots,) = [axes for axes in found.figure.axes if axes.get_title().startswith("loss")]
    assert len(dots.lines) >= 6  # one column of heads a block


@pytest.mark.parametrize(("mixer", "label"), [("window", "windows"), ("bra", "routed regions"), ("agent", "agents")])
def test_where_mixers_look_is_drawn(mixer, label, picture):
    found = explain(network(mixer, "pyramid_nano"), inputs_of(picture), picture, query=(0.3, 0.6))
    assert sum(title.startswith(label) for title in titles(found)) == 1


def test_what_a_model_does_not_allow_is_said_or_raised(picture):
    model = network("channel")
    found = explain(model, inputs_of(picture), picture)
    assert len(found.left_out) == len(METHODS) - 1  # all but heads, which is not tried unasked
    with pytest.raises(TypeError, match="no mixer has an attention map"):
        explain(model, inputs_of(picture), picture, methods=["rollout"])
    with pytest.raises(ValueError, match="accepted are attention"):
        explain(model, inputs_of(picture), picture, methods=["magic"])
    with pytest.raises(LookupError, match="0 to 4"):
        explain(model, inputs_of(picture), picture, target=5)


def test_drawings_are_where_they_say(picture):
    axes = new_figure(3, 3).add_subplot()
    halves = torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.0, 0.5, 1.0, 1.0]])
    drawings = [
        Boxes("windows", halves),
        Routes("routes", halves[0], halves[1:], torch.tensor([1.0])),
        Points("points", torch.tensor([[0.25, 0.75]]), torch.tensor([1.0])),
    ]
    draw_sampling(axes, picture, drawings)
    frames = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert [(f.get_x(), f.get_y(), f.get_width(), f.get_height()) for f in frames[:2]] == [
        (-0.5, -0.5, 16.0, 32.0),
        (15.5, -0.5, 16.0, 32.0),
    ]
    assert len(frames) == 4
    assert axes.collections[0].get_offsets().tolist() == [[23.5, 7.5]]
    heat = torch.zeros(2, 4, 4)
    heat[0, :2], heat[1, 2:] = 1, 1
    axes = new_figure(3, 3).add_subplot()
    draw_sampling(axes, picture, [Heats("agents", heat, torch.tensor([1.0, 0.0]))])
    changed = np.abs(np.asarray(axes.images[0].get_array()).astype(int) - picture).sum((1, 2))
    assert changed[:10].min() > 0
    assert changed[:8].mean() > 2 * changed[-8:].mean()


def test_command_line(tmp_path, capsys):
    rng = np.random.default_rng(0)
    assert cv2.imwrite(str(tmp_path / "photo.png"), rng.integers(0, 255, (48, 60, 3)).astype(np.uint8))
    out = tmp_path / "why.png"
    command = ["explain", "vit_nano", str(tmp_path / "photo.png"), "--untrained", "--out", str(out), "--device", "cpu"]
    assert main([*command, "--mixer", "agent", "--methods", "attention,sampling", "--query", "0.5,0.25"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert cv2.imread(str(out)).shape[1] > 600
    assert main([*command, "--query", "2,0"]) == 1
    assert "between 0 and 1" in capsys.readouterr().err
    assert main([*command[:3], "--mixer", "agent"]) == 1
    assert "--untrained" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["deformable_detr_nano", "detr_nano"])
def test_a_detector_shows_where_its_queries_look(name, picture, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "i.png"), picture)
    command = ["explain", name, str(tmp_path / "i.png"), "--untrained"]
    assert main([*command, "--out", str(tmp_path / "o.png")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "o.png")
    assert cv2.imread(str(tmp_path / "o.png")).std() > 10
    assert main([*command, "--methods", "rollout"]) != 0
    assert "--methods" in capsys.readouterr().err
