"""What mixers say of where they look: it must be where they look."""

import pytest
import torch

from zoo.mixers.base import build_mixer
from zoo.mixers.sampling import Boxes, Heats, Routes, place, tiles
from zoo.registry import MIXERS


def tokens(height, width, dim=16):
    return torch.randn(1, height, width, dim, generator=torch.Generator().manual_seed(0))


def inside(box, row, column, height, width):
    y, x = (row + 0.5) / height, (column + 0.5) / width
    return float(box[0]) < y < float(box[2]) and float(box[1]) < x < float(box[3])


@pytest.mark.parametrize(("size", "shift"), [((8, 12), 0), ((8, 12), 2), ((9, 7), 1)])
def test_windows_are_what_attends_to_itself(size, shift):
    mixer, x = build_mixer(dict(type="window", window_size=4, shift_size=shift), 16, 2, size).eval(), tokens(*size)
    height, width = size
    (drawing,) = mixer.sampling(x)
    assert isinstance(drawing, Boxes)
    seen = mixer.attention_map(x)[0].mean(0) > 0  # [N, N]
    owner = []
    for position in range(height * width):
        row, column = divmod(position, width)
        holds = [i for i, box in enumerate(drawing.boxes) if inside(box, row, column, height, width)]
        assert len(holds) == 1
        owner += holds
    owner = torch.tensor(owner)
    assert torch.equal(seen, owner[:, None] == owner[None])


@pytest.mark.parametrize("name", ["bra", "bra_nchw"])
@pytest.mark.parametrize("size", [(9, 9), (7, 11)])
def test_routed_regions_are_those_that_are_attended(name, size):
    mixer, x = build_mixer(dict(type=name, n_win=3, topk=2), 16, 2, size).eval(), tokens(*size)
    height, width = size
    query = (0.6, 0.1)
    (drawing,) = mixer.sampling(x, query)
    assert isinstance(drawing, Routes)
    assert drawing.weights.sum() == pytest.approx(1.0)
    row, column = place(query, height, width)
    assert inside(drawing.source, row, column, height, width)
    seen = mixer.attention_map(x)[0, :, row * width + column].mean(0) > 0
    drawn = [
        any(inside(box, *divmod(p, width), height, width) for box in drawing.targets) for p in range(height * width)
    ]
    assert seen.tolist() == drawn


def test_agents_are_the_two_halves_of_the_map():
    mixer, x = build_mixer(dict(type="agent", num_agents=4), 16, 1, (5, 6)).eval(), tokens(5, 6)
    (drawing,) = mixer.sampling(x, (0.9, 0.9))
    assert isinstance(drawing, Heats)
    assert drawing.maps.shape == (4, 5, 6)
    row = (drawing.weights[:, None, None] * drawing.maps).sum(0)  # one head: the halves multiply
    torch.testing.assert_close(row.flatten(), mixer.attention_map(x)[0, 0, 4 * 6 + 5])


@pytest.mark.parametrize("name", MIXERS.names())
def test_every_mixer_answers(name):
    mixer = build_mixer(name, 32, 2, (7, 5)).eval()
    for drawing in mixer.sampling(tokens(7, 5, 32), (0.2, 0.8)):
        assert drawing.label
    with pytest.raises(ValueError, match="shape"):
        mixer.sampling(torch.zeros(1, 7, 5, 31))


def test_places_and_tiles():
    assert place((0.0, 1.0), 4, 6) == (0, 5)
    assert place((0.5, 0.5), 4, 6) == (2, 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        place((0.5, 1.5), 4, 6)
    expected = torch.tensor([[0, 0, 2 / 3, 1], [2 / 3, 0, 1, 1]])
    torch.testing.assert_close(tiles([0, 2, 4], [0, 4], 3, 4), expected)
