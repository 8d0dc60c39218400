"""Rollout, flow, distance, importance of heads and relevance, each against a plain computation."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import zoo
from zoo.analysis.distance import attention_distance
from zoo.analysis.flow import attention_flow
from zoo.analysis.importance import head_importance, output_projection, pruned
from zoo.analysis.relevance import relevance, values_of, weighted_attention
from zoo.analysis.rollout import rollout
from zoo.mixers.base import Mixer, build_mixer
from zoo.registry import MIXERS


@dataclass
class Record:
    grid: tuple[int, int]
    map: Tensor


def random_records(grids, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Record(g, torch.rand(heads, g[0] * g[1], g[0] * g[1], generator=generator, dtype=torch.float64).softmax(-1))
        for g in grids
    ]


def test_rollout_multiplies_layers():
    first, second, third = random_records([(2, 3)] * 3)
    eye = torch.eye(6, dtype=torch.float64)
    layers = [(r.map.sum(0) / 2 + eye) / 2 for r in (first, second, third)]
    torch.testing.assert_close(rollout([first, second, third]), layers[2] @ layers[1] @ layers[0])
    torch.testing.assert_close(rollout([first, second, third]).sum(1), torch.ones(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="no attention records"):
        rollout([])


def test_rollout_over_a_change_of_resolution():
    fine, coarse = random_records([(2, 4), (1, 2)])
    pool = torch.zeros(2, 8, dtype=torch.float64)
    for row, column in itertools.product(range(2), range(4)):
        pool[column // 2, 4 * row + column] = 1 / 4
    a, b = ((r.map.mean(0) + torch.eye(r.map.shape[1])) / 2 for r in (fine, coarse))
    torch.testing.assert_close(rollout([fine, coarse]), b @ pool @ a)


def smallest_cut(layers, source, sink):
    """Maximum flow by the theorem of Ford and Fulkerson: the least capacity of all cuts, every one tried."""
    depth, count = len(layers), len(layers[0])
    free = [(level, i) for level in range(depth + 1) for i in range(count)]
    free.remove((depth, source))
    free.remove((0, sink))
    best = float("inf")
    for sides in itertools.product((False, True), repeat=len(free)):
        side = dict(zip(free, sides)) | {(depth, source): True, (0, sink): False}
        cut = sum(
            float(layers[level][i, j])
            for level in range(depth)
            for i in range(count)
            for j in range(count)
            if side[level + 1, i] and not side[level, j]
        )
        best = min(best, cut)
    return best


def test_flow_is_the_smallest_cut():
    records = random_records([(1, 3)] * 2, seed=3)
    layers = [(r.map.mean(0) + torch.eye(3)) / 2 for r in records]
    flow = attention_flow(records, [0, 2])
    for row, query in enumerate((0, 2)):
        for j in range(3):
            assert float(flow[row, j]) == pytest.approx(smallest_cut(layers, query, j), abs=1e-5)


def test_flow_of_one_layer_is_its_weights():
    (record,) = random_records([(2, 3)])
    flow = attention_flow([record], range(6))
    torch.testing.assert_close(flow, (record.map.mean(0) + torch.eye(6)) / 2, atol=1e-6, rtol=0)


def test_flow_refuses_what_has_none():
    fine, coarse = random_records([(2, 4), (1, 2)])
    with pytest.raises(ValueError, match="one resolution"):
        attention_flow([fine, coarse], [0])
    with pytest.raises(ValueError, match="positions 0 to 7"):
        attention_flow([fine], [8])
    with pytest.raises(ValueError, match="below 0"):
        attention_flow([Record((1, 2), torch.tensor([[[0.5, 0.5], [2.0, -2.0]]]))], [1])
    with pytest.raises(ValueError, match="too many"):
        attention_flow([Record((64, 64), torch.zeros(1, 4096, 4096))], [0])


def test_distance_by_hand():
    (record,) = random_records([(3, 4)], heads=3)
    expected = torch.zeros(3, dtype=torch.float64)
    for i, j in itertools.product(range(12), repeat=2):
        expected += record.map[:, i, j] * ((i // 4 - j // 4) ** 2 + (i % 4 - j % 4) ** 2) ** 0.5 / 12
    torch.testing.assert_close(attention_distance(record, stride=16), 16 * expected)
    only_itself = Record((3, 4), torch.eye(12)[None])
    assert attention_distance(only_itself).tolist() == [0]


@pytest.fixture
def vit():
    torch.manual_seed(0)
    model = zoo.create_model("vit_nano", num_classes=4, depth=2, dim=24, input_size=16).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn_like(p))
    return model


@pytest.fixture
def image():
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plain_vit(model, x, mask=None):
    """The same network written out, with the attention of each block in the graph; ``mask`` ``[blocks, heads]``."""
    x = model.patch_embed(x).permute(0, 2, 3, 1)
    x = (x + model.pos_embed.table).flatten(1, 2)  # [1, 16, 24]
    maps = []
    for number, block in enumerate(model.blocks):
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(1, 16, 3, 3, 8).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        maps.append(attention)
        heads = attention @ v
        if mask is not None:
            heads = heads * mask[number][None, :, None, None]
        x = x + block.attn.proj(heads.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x).mean(1)), maps


def test_the_plain_network_is_the_same(vit, image):
    torch.testing.assert_close(plain_vit(vit, image)[0], vit.eval()(image))


def test_relevance_is_that_of_the_equations(vit, image):
    logits, maps = plain_vit(vit, image)
    expected = torch.eye(16, dtype=torch.float64)
    for attention, gradient in zip(maps, torch.autograd.grad(logits[0, 2], maps)):
        expected = expected + (gradient * attention).clamp_min(0).mean(1)[0] @ expected
    vit.train()
    found, grid = relevance(vit, image, target=2)
    assert grid == (4, 4)
    assert vit.training
    torch.testing.assert_close(found, expected.mean(0).reshape(4, 4))
    assert all(p.grad is None for p in vit.parameters())
    best, _ = relevance(vit, image)
    torch.testing.assert_close(best, relevance(vit, image, target=int(logits.argmax()))[0])
    with pytest.raises(LookupError, match="0 to 3"):
        relevance(vit, image, target=4)
    with pytest.raises(LookupError, match="no mixer is named"):
        relevance(vit, image, names=["blocks.7.attn"])


def test_head_importance_is_the_loss_of_a_masked_network(vit, image):
    found = head_importance(vit.eval(), lambda: float(vit(image)[0, 1].detach()))
    assert list(found) == ["blocks.0.attn", "blocks.1.attn"]
    with torch.no_grad():
        base = plain_vit(vit, image)[0][0, 1]
        for block, head in itertools.product(range(2), range(3)):
            mask = torch.ones(2, 3, dtype=torch.float64)
            mask[block, head] = 0
            expected = plain_vit(vit, image, mask)[0][0, 1] - base
            assert float(found[f"blocks.{block}.attn"][head]) == pytest.approx(float(expected), abs=1e-12)


def test_pruning_is_undone(vit, image):
    mixer = vit.blocks[0].attn
    before = mixer.proj.weight.detach().clone()
    with pruned(mixer, [0, 2]):
        zero = mixer.proj.weight.detach().abs().amax(0) == 0
    assert zero.tolist() == [True] * 8 + [False] * 8 + [True] * 8
    with pytest.raises(RuntimeError, match="shape"), pruned(mixer, [0]):
        mixer.proj(torch.zeros(1, 5, dtype=torch.float64))
    assert torch.equal(mixer.proj.weight, before)
    with pytest.raises(ValueError, match="0 to 2"), pruned(mixer, [3]):
        pass
    with pytest.raises(LookupError, match="blocks.1.attn"):
        head_importance(vit, lambda: 0.0, ["attn"])


def has_values(name):
    return MIXERS.get(name).attention_values is not Mixer.attention_values


@pytest.mark.parametrize("name", [n for n in MIXERS.names() if has_values(n)])
def test_attention_times_values_is_the_output(name):
    """What a mixer says of its values is true: with what it adds beside them taken out, it gives its output."""
    torch.manual_seed(0)
    mixer = build_mixer(name, 32, 2, (7, 7)).double().eval()
    x = torch.randn(1, 7, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for module in mixer.modules():
        if isinstance(module, torch.nn.Conv2d):  # the branches beside attention are convolutions
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    with torch.no_grad():
        attention, values = mixer.attention_map(x), mixer.attention_values(x)
        joined = output_projection(mixer)((attention @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(joined.reshape(x.shape), mixer(x))


def test_values_that_do_not_give_the_output_are_refused():
    class Scaled(MIXERS.get("softmax")):
        def forward(self, x, prefix=None):
            return 2 * super().forward(x)

    mixer = Scaled(16, 2).eval()
    x = torch.randn(1, 3, 3, 16)
    with torch.no_grad():
        y = mixer(x)
    with pytest.raises(TypeError, match="not what its attention weighs"):
        weighted_attention(mixer, x, torch.ones_like(y), y)
    with pytest.raises(TypeError, match="does not say"):
        values_of(build_mixer("channel", 16, 1, (3, 3)), x, torch.zeros(1, 2, 9, 9), mixer.proj, y)


@pytest.mark.parametrize("name", MIXERS.names())
def test_relevance_of_any_mixer_is_there_or_refused(name):
    torch.manual_seed(0)
    model = zoo.create_model("vit_nano", mixer=name, num_classes=3, depth=1, dim=32, num_heads=2, input_size=16)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if not has_values(name):
        # Of a mixer that does not say, only values that give its output are taken.
        try:
            relevance(model, x)
        except TypeError:
            with pytest.raises(TypeError, match="no mixer of"):
                relevance(model, x)
            return
    found, grid = relevance(model, x)
    assert found.shape == grid == (4, 4)
    assert found.isfinite().all()
    assert found.min() >= 0
