"""Attention maps of models, rollout and overlay."""

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo.mixers.base import Mixer
from zoo.mixers.softmax import SoftmaxAttention
from zoo.viz.attention import (
    AttentionRecord,
    attention_heat,
    attention_rollout,
    collect_attention,
    mixer_names,
    overlay,
    save_attention,
)


class Blur(Mixer):
    """A mixer without attention."""

    def forward(self, x, prefix=None):
        return x * 0.5


class Tower(nn.Module):
    """Attention at 4 x 6, twice, then at 2 x 3, each with a residual connection."""

    def __init__(self):
        super().__init__()
        self.first = SoftmaxAttention(8, 2)
        self.second = SoftmaxAttention(8, 2)
        self.blur = Blur(8, 2)
        self.last = SoftmaxAttention(8, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):  # [1, 8, 4, 6]
        x = x.permute(0, 2, 3, 1)
        x = x + self.first(self.drop(x))
        x = x + self.blur(x + self.second(x))
        x = x[:, ::2, ::2]
        return x + self.last(x)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return Tower()


@pytest.fixture
def inputs():
    return torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(1))


def test_maps_are_those_of_the_inputs_that_the_mixers_got(tower, inputs):
    assert mixer_names(tower) == ["first", "second", "last"]
    records = collect_attention(tower, inputs, ["last", "first"], average_heads=False)
    assert [(r.name, r.grid, tuple(r.map.shape)) for r in records] == [
        ("first", (4, 6), (2, 24, 24)),
        ("last", (2, 3), (4, 6, 6)),
    ]
    with torch.no_grad():
        tower.eval()
        x = inputs.permute(0, 2, 3, 1)
        assert torch.equal(records[0].map, tower.first.attention_map(x)[0])
        x = x + tower.first(x)
        x = (x + 0.5 * (x + tower.second(x)))[:, ::2, ::2]
        torch.testing.assert_close(records[1].map, tower.last.attention_map(x)[0])


def test_the_model_is_left_as_it_was(tower, inputs):
    tower.train()
    tower.blur.eval()
    state = torch.random.get_rng_state()
    collect_attention(tower, inputs, "*")
    assert tower.training
    assert tower.drop.training
    assert not tower.blur.training
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in tower.modules())
    assert torch.equal(torch.random.get_rng_state(), state)

    def fail(x):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        collect_attention(tower, inputs, forward=fail)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in tower.modules())
    assert tower.training


def test_default_is_the_last_mixer_with_a_map_and_the_mean_of_its_heads(tower, inputs):
    (record,) = collect_attention(tower, inputs)
    (heads,) = collect_attention(tower, inputs, "last", average_heads=False)
    assert record.name == "last"
    torch.testing.assert_close(record.map[0], heads.map.mean(0))


def test_a_mixer_whose_settings_give_no_map_is_passed_over_or_refused(tower, inputs):
    class Pooled(SoftmaxAttention):
        def attention_map(self, x):
            raise TypeError("keys are pooled")

    tower.last = Pooled(8, 2)
    assert collect_attention(tower, inputs)[0].name == "second"
    with pytest.raises(TypeError, match="keys are pooled"):
        collect_attention(tower, inputs, "last")


def test_mixers_that_are_given_token_sequences(tower, inputs):
    class Sequence(SoftmaxAttention):
        def forward(self, x, prefix=None):
            return self.forward_tokens(x.flatten(1, 2), x.shape[1:3]).unflatten(1, x.shape[1:3])

        def forward_tokens(self, tokens, size, prefix=0):
            return self.proj(tokens)

    mixer = Sequence(8, 2)
    holder = nn.ModuleDict({"mixer": mixer})
    tokens = torch.randn(1, 2 + 24, 8)
    run = lambda x: mixer.forward_tokens(x, (4, 6), 2)  # noqa: E731
    (record,) = collect_attention(holder, tokens, "mixer", forward=run)
    torch.testing.assert_close(record.map[0], mixer.attention_map(tokens[:, 2:].unflatten(1, (4, 6)))[0].mean(0))
    assert "forward_tokens" not in vars(mixer)
    assert len(collect_attention(holder, torch.randn(1, 4, 6, 8), "mixer", forward=lambda x: mixer(x))) == 1


def test_bad_requests(tower, inputs):
    with pytest.raises(LookupError, match="did not run on the image: last"):
        collect_attention(tower, inputs, ["first", "last"], forward=lambda x: tower.first(x.permute(0, 2, 3, 1)))
    with pytest.raises(LookupError, match="'lastt'; did you mean last"):
        collect_attention(tower, inputs, "lastt")
    with pytest.raises(TypeError, match="Linear has no mixer"):
        collect_attention(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="one image"):
        collect_attention(tower, inputs.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("name", ["davit_tiny", "biformer_tiny", "agent_swin_tiny", "agent_deit_tiny"])
def test_maps_of_the_flagships(name):
    if not zoo.list_models(name):
        pytest.skip(f"{name} is not in the registry")
    torch.manual_seed(0)
    model = zoo.create_model(name, num_classes=5)
    records = collect_attention(model, torch.randn(1, 3, 224, 224), mixer_names(model)[-3:])
    assert records
    for record in records:
        tokens = record.grid[0] * record.grid[1]
        assert record.map.shape == (1, tokens, tokens)
        torch.testing.assert_close(record.map.sum(-1), torch.ones(1, tokens), atol=1e-4, rtol=0)
        heat = attention_heat(record)
        assert heat.shape == record.grid
        assert heat.mean() == pytest.approx(1, abs=1e-4)


class TestHeat:
    def test_mean_and_query(self):
        attention = torch.zeros(2, 6, 6)
        attention[:, :, 4] = 1  # all look at row 1, column 1 of the 2 x 3 grid
        attention[0, 5] = torch.tensor([1.0, 0, 0, 0, 0, 0])  # one head of the last position at the first
        record = AttentionRecord("a", (2, 3), attention)
        assert attention_heat(record, (0.1, 0.1)).tolist() == [[0, 0, 0], [0, 6, 0]]
        assert attention_heat(record, (1.0, 1.0)).tolist() == [[3, 0, 0], [0, 3, 0]]
        np.testing.assert_allclose(attention_heat(record), [[0.5, 0, 0], [0, 5.5, 0]])

    @pytest.mark.parametrize("query", [(1.2, 0), (0, -0.1)])
    def test_bad_query(self, query):
        with pytest.raises(ValueError, match="query="):
            attention_heat(AttentionRecord("a", (1, 1), torch.ones(1, 1, 1)), query)


class TestRollout:
    def test_is_the_product_of_half_attention_half_identity(self):
        rng = torch.Generator().manual_seed(0)
        maps = [torch.rand(3, 4, 4, generator=rng).softmax(-1) for _ in range(3)]
        records = [AttentionRecord(str(i), (2, 2), m) for i, m in enumerate(maps)]
        flow = np.eye(4)
        for m in maps:
            flow = (0.5 * m.double().mean(0).numpy() + 0.5 * np.eye(4)) @ flow
        np.testing.assert_allclose(attention_rollout(records).ravel(), 4 * flow.mean(0), rtol=1e-5)
        np.testing.assert_allclose(attention_rollout(records, (0.9, 0.1)).ravel(), 4 * flow[2], rtol=1e-5)

    def test_coarse_positions_stand_for_the_fine_ones_that_they_cover(self):
        fine = AttentionRecord("fine", (4, 4), torch.eye(16)[None])
        coarse = AttentionRecord("coarse", (2, 2), torch.eye(4)[None])
        expected = np.zeros((4, 4))
        expected[2:, :2] = 16 / 4
        np.testing.assert_allclose(attention_rollout([fine, coarse], (0.8, 0.2)), expected)
        np.testing.assert_allclose(attention_rollout([fine, coarse]), np.ones((4, 4)))

    def test_through_a_model(self, tower, inputs):
        heat = attention_rollout(collect_attention(tower, inputs, "*"))
        assert heat.shape == (4, 6)
        assert heat.mean() == pytest.approx(1, abs=1e-5)

    def test_nothing(self):
        with pytest.raises(ValueError, match="no attention records"):
            attention_rollout([])


class TestOverlay:
    def test_hot_places_change_most_and_nothing_else_does(self):
        image = np.full((40, 60, 3), 100, np.uint8)
        heat = np.zeros((4, 6), np.float32)
        heat[1, 4] = 1
        before = image.copy()
        result = overlay(image, heat)
        assert np.array_equal(image, before)
        change = np.abs(result.astype(int) - 100).sum(-1)
        y, x = np.unravel_index(change.argmax(), change.shape)
        assert (y // 10, x // 10) == (1, 4)
        red, _, blue = result[15, 45].astype(int)
        assert red > blue + 30  # the hot end of the colour map is yellow
        assert change[35, 5] < change[15, 45] / 2

    def test_constant_heat_marks_nothing(self):
        image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        assert np.array_equal(overlay(image, np.full((3, 3), 0.2)), image)

    @pytest.mark.parametrize(
        ("image", "heat", "message"),
        [
            (np.zeros((4, 4, 3)), np.zeros((2, 2)), "image is float64"),
            (np.zeros((4, 4), np.uint8), np.zeros((2, 2)), "image is uint8"),
            (np.zeros((4, 4, 3), np.uint8), np.full((2, 2), np.nan), "finite"),
            (np.zeros((4, 4, 3), np.uint8), np.zeros(4), "heat has shape"),
        ],
    )
    def test_bad_arguments(self, image, heat, message):
        with pytest.raises(ValueError, match=message):
            overlay(image, heat)

    def test_picture_of_a_photograph(self, tmp_path, picture):
        from skimage.data import astronaut

        photograph = astronaut()[::4, ::4]
        heat = np.linspace(0, 1, 49).reshape(7, 7)
        path = save_attention(
            photograph, {"heat": heat, "flat": heat * 0}, tmp_path / "a.png", query=(0.5, 0.5), title="t"
        )
        pixels = picture(path)
        assert pixels.shape[1] > 2.2 * pixels.shape[0]  # three panels and a title
        marks = np.abs(pixels.astype(int) - (0x00, 0xE5, 0xFF)).max(-1) < 40
        assert marks.sum() > 30
