"""DependencyViT: messages, dynamic pooling and the tree, against formulas; no authors' code exists to compare with."""

import pytest
import torch

from zoo.backbones.dependency_vit import DependencyViT
from zoo.registry import MODELS

SMALL = dict(img_size=32, patch_size=8, embed_dim=12, depth=3, num_heads=3, num_classes=5)


def make(**kwargs) -> DependencyViT:
    """Weights far from their start, so that messages and attention differ between tokens; float64."""
    generator = torch.Generator().manual_seed(0)
    model = DependencyViT(**{**SMALL, **kwargs}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expected(model: DependencyViT, x: torch.Tensor, keep: dict[int, int]):
    """Tokens, messages, places and masks of one image, block by block, dropping to ``keep[number]`` tokens."""
    d = 4
    t = model.pos_embed(model.patch_embed(x).flatten(2).mT, (4, 4))[0]
    places, message = list(range(len(t))), torch.ones(len(t), dtype=torch.float64)
    states = []
    for number, block in enumerate(model.blocks, 1):
        a, n = block.attn, block.norm1(t)
        message = message * a.message_controller(n)[:, 0].sigmoid()
        p = (a.head_selector(n) / 0.1).softmax(1)
        q, k, v = a.qkv(n).chunk(3, 1)
        mask = torch.zeros(len(t), len(t), dtype=torch.float64)
        out = torch.zeros_like(t)
        for h in range(3):
            s = slice(h * d, (h + 1) * d)
            weights = (q[:, s] @ k[:, s].T / d**0.5).softmax(1).T * (p[:, h] * message)  # [parent, child]
            mask = mask + weights
            out[:, s] = weights @ v[:, s]
        t = t + a.proj(out)
        t = t + block.mlp(block.norm2(t))
        states.append((t, message, places, mask))
        if number in keep:
            order = sorted(range(len(t)), key=lambda i: -float(message[i].detach()))[: keep[number]]
            order = sorted(order)
            t, message, places = t[order], message[order], [places[i] for i in order]
    return t, message, states


@pytest.mark.parametrize("keep", [{}, {1: 12, 2: 8}, {3: 12}])
def test_equals_the_formulas(keep):
    model = make(prune_after=tuple(keep), prune_ratio=0.25)
    x = image(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
        masks = model.run(x, masks=True)[3]
        for b in range(2):
            t, message, states = expected(model, x[b : b + 1], keep)
            weights = message / message.sum()
            want = model.head.fc((model.head.norm(t) * weights[:, None]).sum(0))
            torch.testing.assert_close(logits[b], want, rtol=1e-9, atol=1e-9)
            total = torch.zeros(16, 16, dtype=torch.float64)
            for (places, mask), (_, _, want_places, want_mask) in zip(masks, states, strict=True):
                assert places[b].tolist() == want_places
                torch.testing.assert_close(mask[b], want_mask)
                for i, parent in enumerate(want_places):
                    for j, child in enumerate(want_places):
                        total[parent, child] += want_mask[i, j] / len(states)
            torch.testing.assert_close(model.dependencies(x)[b], total)


def test_dropped_tokens_are_filled_from_their_parents():
    keep = {1: 12, 2: 8}
    model, x = make(prune_after=(1, 2), prune_ratio=0.25), image(1, 3, 32, 32)
    _, _, states = expected(model, x, keep)
    maps, _ = model.forward_trunk(x)
    for number in (1, 2, 3):
        values = dict(zip(states[number - 1][2], states[number - 1][0]))  # of the places that are left
        for before in range(number - 1, 0, -1):  # what the pruning after this block dropped
            _, _, places, mask = states[before - 1]
            kept = [i for i, place in enumerate(places) if place in values]
            for child, place in enumerate(places):
                if place not in values:
                    weights = mask[kept, child] / mask[kept, child].sum()
                    # parents are those that this pruning kept, whose values are known by now
                    values[place] = sum(w * values[places[i]] for w, i in zip(weights, kept))
        want = torch.stack([values[i] for i in range(16)])
        torch.testing.assert_close(maps[number - 1][0].flatten(1).T, want, rtol=1e-9, atol=1e-9)


def test_classifying_fills_no_maps_and_gives_the_same():
    model, x = make(prune_after=(1, 2)), image(2, 3, 40, 24)
    assert model(x).shape == (2, 5)
    torch.testing.assert_close(model.forward_head(model.forward_trunk(x)[1]), model(x))


@pytest.mark.parametrize("prune_after", [(), (1, 3)])
def test_tree(prune_after):
    model, x = make(prune_after=prune_after), image(2, 3, 32, 48)
    trees, masks = model.dependency_tree(x), model.dependencies(x)
    assert trees.shape == (2, 24)
    for tree, mask in zip(trees.tolist(), masks):
        off_diagonal = mask - torch.diag(mask.diagonal())
        root = int(off_diagonal.sum(1).argmax())
        assert tree[root] == -1
        for node in range(24):
            path = [node]
            while path[-1] != root:
                path.append(tree[path[-1]])
                assert len(path) <= 24
        # It is at least as likely as the tree in which all hang at the root.
        likely = sum(float(mask[p, c].log()) for c, p in enumerate(tree) if p >= 0)
        assert likely >= sum(float(mask[root, c].log()) for c in range(24) if c != root)
    assert torch.equal(model.dependency_tree(x[1:]), trees[1:])


@pytest.mark.parametrize("num_classes", [5, 0])
def test_lite_exports_compiles_and_trains(num_classes):
    torch._dynamo.reset()
    model = make(prune_after=(1, 2), num_classes=num_classes, out_indices=(0, 2)).float()
    x = image(2, 3, 32, 40).float()
    with torch.no_grad():
        want = model(x)
        program = torch.export.export(model, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), want)
        alone = model(x[1:])
    torch.testing.assert_close(alone, want[1:] if num_classes else tuple(m[1:] for m in want), rtol=1e-4, atol=1e-5)
    model.train()
    out = model(x)
    sum(m.square().sum() for m in ((out,) if num_classes else out)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_keeps_what_the_ratio_leaves():
    model = DependencyViT(**SMALL, prune_after=(1, 2), prune_ratio=0.16)
    assert [model.kept(196, i) for i in (1, 2)] == [165, 133]
    assert model.kept(1, 2) == 1
    assert DependencyViT(**{**SMALL, "depth": 2}, prune_after=(1,)).eval()(torch.randn(1, 3, 1, 1)).isfinite().all()


@pytest.mark.parametrize("size, params", [("tiny", 192), ("small", 384)])
def test_parameters_are_those_of_the_layers(size, params):
    C = params
    with torch.device("meta"):
        model = MODELS.get(f"dependencyvit_{size}")()
        lite = MODELS.get(f"dependencyvit_lite_{size}")()
    attention = 3 * C * C + (C * C + C) + 12 * C + (C * C // 2 + C // 2) + (C // 2 + 1)
    block = attention + 2 * 4 * C * C + 5 * C + 4 * C
    want = (3 * 256 * C + C) + 196 * C + 12 * block + 2 * C + 1000 * (C + 1)
    for m in (model, lite):
        assert sum(p.numel() for p in m.parameters()) == want
    assert lite.prune_after == (2, 5, 8, 11)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(prune_after=(2, 1)), "prune_after"),
        (dict(prune_after=(4,)), "prune_after"),
        (dict(prune_after=(1, 2), prune_ratio=0.5), "prune_ratio=0.5"),
        (dict(prune_ratio=-0.1), "prune_ratio=-0.1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DependencyViT(**{**SMALL, **arguments})
