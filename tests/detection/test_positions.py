import math

import pytest
import torch

from zoo.detection.positions import LearnedPositions, SinePositions, box_sines, build_positions


@pytest.mark.parametrize("half_pixel", [False, True])
def test_sines_of_a_map_follow_the_formula(half_pixel):
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[:, :, 4:] = True  # four columns are image
    out = SinePositions(6, temperature=(20.0, 50.0), half_pixel=half_pixel)(mask)
    assert out.shape == (1, 12, 3, 5)
    shift = 0.5 if half_pixel else 0.0
    for y, x in ((0, 0), (2, 3), (1, 2)):
        for axis, place, count, temperature in ((0, y, 3, 20.0), (6, x, 4, 50.0)):
            phase = (place + 1 - shift) / (count + 1e-6) * 2 * math.pi
            for i in range(6):
                angle = phase / temperature ** (2 * (i // 2) / 6)
                expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
                assert out[0, axis + i, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_sines_of_boxes_begin_with_y():
    box = torch.tensor([[0.2, 0.7, 0.1, 0.4]])
    out = box_sines(box, 4)
    expected = []
    for value in (0.7, 0.2, 0.1, 0.4):
        for i in range(4):
            angle = value * 2 * math.pi / 10000 ** (2 * (i // 2) / 4)
            expected.append(math.sin(angle) if i % 2 == 0 else math.cos(angle))
    torch.testing.assert_close(out, torch.tensor([expected]))
    torch.testing.assert_close(box_sines(box[:, :2], 4), out[:, :8])
    with pytest.raises(ValueError, match="boxes"):
        box_sines(torch.rand(2, 3))


def test_learned_positions_are_columns_then_rows():
    learned = LearnedPositions(3)
    out = learned(torch.zeros(2, 4, 6, dtype=torch.bool))
    torch.testing.assert_close(out[1, :3, 2, 5], learned.col_embed.weight[5])
    torch.testing.assert_close(out[0, 3:, 2, 5], learned.row_embed.weight[2])
    with pytest.raises(ValueError, match="at most 50"):
        learned(torch.zeros(1, 51, 2, dtype=torch.bool))


@pytest.mark.parametrize(("kind", "dim"), [("cosine", 8), ("sine", 7)])
def test_refuses_unknown_positions(kind, dim):
    with pytest.raises(ValueError, match="positions|dim"):
        build_positions(kind, dim)
