"""Mixers whose weights are no plain softmax, against the papers' equations in float64, a pair of tokens at a time."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.backbones.hosts import Pyramid, ViT
from zoo.mixers import gaussian_adaptive, neural
from zoo.mixers.cog import CogAttention
from zoo.mixers.gaussian_adaptive import GaussianAdaptiveAttention
from zoo.mixers.mhe import HeadEmbeddingAttention
from zoo.mixers.multi_token import MultiTokenAttention
from zoo.mixers.neural import NeuralAttention
from zoo.mixers.optimised import OptimisedAttention, OptimisedEfficientAttention, SuperAttention
from zoo.mixers.rela import RectifiedLinearAttention
from zoo.mixers.relational import RelationalAttention
from zoo.mixers.reversed_attention import ReversedAttention
from zoo.registry import MIXERS, build
from zoo_kernels.dispatch import use_backend

C, HEADS, D = 12, 3, 4
H, W = 3, 4
N = H * W
NAMES = [
    "cog",
    "gaussian_adaptive",
    "mhe",
    "multi_token",
    "neural",
    "optimised",
    "optimised_efficient",
    "rela",
    "relational",
    "reversed",
    "super",
]


def randomised(module: nn.Module) -> nn.Module:
    """Weights well away from their start, so that attention is not uniform; float64, evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(x: torch.Tensor, count: int) -> list[list[torch.Tensor]]:
    """``[N, count * HEADS * D]`` as ``result[part][head]``, ``[N, D]`` each."""
    return [[x[:, (p * HEADS + h) * D : (p * HEADS + h + 1) * D] for h in range(HEADS)] for p in range(count)]


def pairs(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Dot products of all pairs over sqrt(d), one at a time."""
    rows = [
        [sum(a * b for a, b in zip(q[i], k[j])) / math.sqrt(q.shape[1]) for j in range(len(k))] for i in range(len(q))
    ]
    return torch.stack([torch.stack(row) for row in rows])


def weighted(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,jd->id", weights, v)


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_cog_is_a_softmax_of_absolute_scores_with_their_signs():
    m, x = randomised(CogAttention(C, HEADS)), image(1, H, W, C)
    q, k, v = parts(m.qkv(x.reshape(N, C)), 3)
    heads, maps = [], []
    for h in range(HEADS):
        p = pairs(q[h], k[h])
        powers = torch.exp(p.abs() - p.abs().max(1, keepdim=True).values)
        maps.append(torch.sign(p) * powers / powers.sum(1, keepdim=True))
        heads.append(weighted(maps[-1], v[h]))
    same(m(x).reshape(N, C), m.proj(torch.cat(heads, 1)))
    same(m.attention_map(x)[0], torch.stack(maps))
    assert m.attention_map(x).min() < 0
    same(m.attention_map(x).abs().sum(-1), torch.ones(1, HEADS, N, dtype=torch.float64))


@pytest.mark.parametrize("gate", [False, True])
def test_rela_rectifies_and_normalises_the_result(gate):
    m, x = randomised(RectifiedLinearAttention(C, HEADS, gate=gate)), image(1, H, W, C)
    q, k, v = parts(m.qkv(x.reshape(N, C)), 3)
    maps = [torch.clamp(pairs(q[h], k[h]), min=0) for h in range(HEADS)]
    z = torch.cat([weighted(a, v[h]) for h, a in enumerate(maps)], 1)
    normed = z / torch.sqrt((z**2).sum(1, keepdim=True) / C + 1e-6) * m.norm.norm.weight
    if gate:
        normed = normed / (1 + torch.exp(-m.norm.gate * z))
    same(m(x).reshape(N, C), m.proj(normed))
    same(m.attention_map(x)[0], torch.stack(maps))
    assert (m.attention_map(x) == 0).double().mean() > 0.2


def test_rela_attends_to_nothing_without_a_positive_score():
    m = RectifiedLinearAttention(C, HEADS, qkv_bias=False)
    with torch.no_grad():
        m.qkv.weight[C : 2 * C] = -m.qkv.weight[:C]  # the only key is the opposite of the query
    same(m(torch.randn(1, 1, 1, C)), m.proj.bias.expand(1, 1, 1, C))


def test_optimised_attention_has_slices_of_the_input_as_values():
    m, x = randomised(OptimisedAttention(C, HEADS)), image(1, H, W, C)
    tokens = x.reshape(N, C)
    q, k = parts(m.qk(tokens), 2)
    (v,) = parts(tokens, 1)
    heads = [weighted(pairs(q[h], k[h]).softmax(1), v[h]) for h in range(HEADS)]
    same(m(x).reshape(N, C), m.proj(torch.cat(heads, 1)))


def test_optimised_equals_full_attention_whose_value_projection_is_merged_into_the_output():
    # The paper's reason to leave it out: softmax(..) (x W_V) W_O is softmax(..) x (W_V W_O), head by head.
    m, x = randomised(OptimisedAttention(C, HEADS)), image(1, H, W, C)
    tokens = x.reshape(N, C)
    inverse = [torch.linalg.inv(image(D, D, seed=9 + h)) for h in range(HEADS)]
    q, k = parts(m.qk(tokens), 2)
    (v,) = parts(tokens, 1)
    heads = [weighted(pairs(q[h], k[h]).softmax(1), v[h] @ inverse[h].inverse()) for h in range(HEADS)]
    merged = torch.block_diag(*inverse) @ m.proj.weight.T
    same(m(x).reshape(N, C), torch.cat(heads, 1) @ merged + m.proj.bias)


@pytest.mark.parametrize("single_head", [True, False])
def test_optimised_efficient_attention_has_the_input_as_keys_and_values(single_head):
    m, x = randomised(OptimisedEfficientAttention(C, HEADS, single_head)), image(1, H, W, C)
    tokens = x.reshape(N, C)
    q = m.q(tokens)
    slices = [slice(0, C)] if single_head else [slice(h * D, (h + 1) * D) for h in range(HEADS)]
    heads = [weighted(pairs(q[:, s], tokens[:, s]).softmax(1), tokens[:, s]) for s in slices]
    same(m(x).reshape(N, C), m.proj(torch.cat(heads, 1)))
    assert m.attention_map(x).shape[1] == len(slices)


def axis_pool(length: int, bins: int) -> torch.Tensor:
    """[bins, length]: bin i is the mean from floor(i L / b) to ceil((i + 1) L / b)."""
    weights = torch.zeros(bins, length, dtype=torch.float64)
    for i in range(bins):
        first, end = i * length // bins, -(-(i + 1) * length // bins)
        weights[i, first:end] = 1 / (end - first)
    return weights


def axis_linear(length: int, target: int) -> torch.Tensor:
    """[target, length]: linear interpolation, centres at half integers, clamped at the ends."""
    weights = torch.zeros(target, length, dtype=torch.float64)
    for i in range(target):
        place = min(max((i + 0.5) * length / target - 0.5, 0), length - 1)
        low = min(int(place), max(0, length - 2))
        weights[i, low] += 1 - (place - low)
        weights[i, min(low + 1, length - 1)] += place - low
    return weights


@pytest.mark.parametrize("made_for", [(H, W), (2, 3), (5, 4), (1, 1)])
def test_super_attention_mixes_the_values_by_a_matrix_of_positions(made_for):
    m, x = randomised(SuperAttention(C, HEADS, input_size=made_for)), image(1, H, W, C)
    tokens = x.reshape(N, C)
    align = m.alignment
    if made_for != (H, W):
        down = torch.kron(axis_pool(H, made_for[0]), axis_pool(W, made_for[1]))
        up = torch.kron(axis_linear(made_for[0], H), axis_linear(made_for[1], W))
        align = up @ align @ down
    weights = pairs(m.q(tokens), tokens).softmax(1)
    same(m(x).reshape(N, C), m.proj(weighted(weights, align @ tokens)))
    same(m.attention_map(x)[0, 0], weights @ align)


def test_super_attention_starts_as_efficient_attention():
    m, x = SuperAttention(C, HEADS, input_size=(H, W)).double(), image(1, H, W, C)
    efficient = OptimisedEfficientAttention(C, HEADS).double()
    state = m.state_dict()
    del state["alignment"]
    efficient.load_state_dict(state)
    same(m(x), efficient(x))


@pytest.mark.parametrize("mode", ["add", "multiply"])
def test_mhe_heads_share_a_projection_and_differ_by_an_embedding(mode):
    m, x = randomised(HeadEmbeddingAttention(C, HEADS, mode=mode)), image(1, H, W, C)
    q, k, v = (x.reshape(N, C) @ m.qkv.weight[p * D : (p + 1) * D].T for p in range(3))
    heads = []
    for h in range(HEADS):
        e = m.embedding[:, h, 0]
        qh, kh, vh = (
            (q + e[0], k + e[1], v + e[2]) if mode == "add" else (q * (1 + e[0]), k * (1 + e[1]), v * (1 + e[2]))
        )
        heads.append(weighted(pairs(qh, kh).softmax(1), vh))
    same(m(x).reshape(N, C), m.proj(torch.cat(heads, 1)))
    assert sum(p.numel() for n, p in m.named_parameters() if "proj" not in n) == 3 * C * D + 3 * HEADS * D


@pytest.mark.parametrize("hidden_dims", [(5,), (5, 3)])
@pytest.mark.parametrize("block_bytes", [1, 32 << 20])
def test_neural_attention_scores_each_pair_by_a_network(hidden_dims, block_bytes, monkeypatch):
    monkeypatch.setattr(neural, "BLOCK_BYTES", block_bytes)
    m, x = randomised(NeuralAttention(C, HEADS, projection_dim=6, hidden_dims=hidden_dims)), image(1, H, W, C)
    q, k, v = parts(m.qkv(x.reshape(N, C)), 3)
    first = torch.cat([m.hidden_q.weight, m.hidden_k.weight], 1)  # W_h of the concatenated query and key
    heads, maps = [], []
    for h in range(HEADS):
        down_q, down_k = q[h] @ m.q_down.weight.T, k[h] @ m.k_down.weight.T
        scores = torch.zeros(N, N, dtype=torch.float64)
        for i in range(N):
            for j in range(N):
                hidden = torch.clamp(first @ torch.cat([down_q[i], down_k[j]]) + m.hidden_q.bias, min=0)
                for layer in m.hidden:
                    hidden = torch.clamp(layer.weight @ hidden + layer.bias, min=0)
                scores[i, j] = m.score.weight[0] @ hidden
        maps.append(scores.softmax(1))
        heads.append(weighted(maps[-1], v[h]))
    same(m(x).reshape(N, C), m.proj(torch.cat(heads, 1)))
    same(m.attention_map(x)[0], torch.stack(maps))


@pytest.mark.parametrize(
    "convolve, mix_heads", [("before", "after"), ("after", "before"), ("before", "before"), ("after", "after")]
)
@pytest.mark.parametrize("head_kernel, depth", [(None, 0), (1, 3)])
def test_multi_token_attention_convolves_queries_keys_and_heads(convolve, mix_heads, head_kernel, depth):
    rows, columns = 3, 5
    m = MultiTokenAttention(C, HEADS, rows, columns, head_kernel, convolve, mix_heads, depth)
    m, x = randomised(m), image(1, H, W, C)
    q, k, v = parts(m.qkv(x.reshape(N, C)), 3)

    def convolved(scores):
        out = torch.zeros_like(scores)
        for h in range(HEADS):
            for i in range(N):
                for j in range(N):
                    for a in range(rows):
                        for b in range(columns):
                            y, z = i + a - rows // 2, j + b - columns // 2
                            if 0 <= y < N and 0 <= z < N:
                                out[h, i, j] += m.kernel[h, 0, a, b] * scores[h, y, z]
        return out

    def mixed(scores):
        size = head_kernel or HEADS
        blocks = torch.block_diag(*(m.head_kernel[g] for g in range(HEADS // size)))
        return torch.einsum("hg,gij->hij", blocks, scores)

    with torch.no_grad():
        maps = torch.stack([pairs(q[h], k[h]) for h in range(HEADS)])
        maps = convolved(maps) if convolve == "before" else maps
        maps = mixed(maps) if mix_heads == "before" else maps
        maps = maps.softmax(2)
        maps = convolved(maps) if convolve == "after" else maps
        maps = mixed(maps) if mix_heads == "after" else maps
        heads = []
        for h in range(HEADS):
            z = weighted(maps[h], v[h])
            z = z / torch.sqrt((z**2).mean(1, keepdim=True) + 1e-5) * m.norm.weight
            heads.append((0.2 + 0.6 * math.exp(-0.3 * depth)) * z)
        same(m(x).reshape(N, C), m.proj(torch.cat(heads, 1)))
        same(m.attention_map(x)[0], maps)


def test_multi_token_attention_starts_as_softmax_attention():
    m, x = MultiTokenAttention(C, HEADS).double(), image(1, H, W, C)
    q, k, _ = parts(m.qkv(x.reshape(N, C)), 3)
    same(m.attention_map(x)[0], torch.stack([pairs(q[h], k[h]).softmax(1) for h in range(HEADS)]).detach())


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("block", [5 * C, 1 << 17])
def test_gaussian_adaptive_attention_weighs_features_by_learned_gaussians(normalise, block, monkeypatch):
    monkeypatch.setattr(gaussian_adaptive, "BLOCK", block)
    m = randomised(GaussianAdaptiveAttention(C, HEADS, num_gaussians=2, normalise=normalise))
    x = image(1, H, W, C)
    tokens = x.reshape(N, C)
    out = torch.zeros(N, C, dtype=torch.float64)
    for c in range(C):
        mean = sum(tokens[:, c]) / N
        variance = sum(t**2 for t in tokens[:, c]) / N - mean**2
        weights = torch.ones(N, dtype=torch.float64)
        for g in range(2):
            y = (tokens[:, c] - (mean + m.offset[g, c // D, 0])) / torch.sqrt(variance + 1e-5)
            weights = weights * torch.exp(-(y**2) / (2 * m.width[g, c // D, 0] ** 2))
        out[:, c] = tokens[:, c] * (weights / weights.sum() if normalise else weights)
    same(m(x).reshape(N, C), m.proj(out))
    with pytest.raises(TypeError, match="no attention map"):
        m.attention_map(x)


@pytest.mark.parametrize("symbols", ["symbolic", "positional", "relative"])
@pytest.mark.parametrize("relational, relations, symmetric", [(1, 2, False), (2, None, True), (3, 1, False)])
def test_relational_heads_send_relations_and_symbols(symbols, relational, relations, symmetric):
    m = RelationalAttention(
        C, HEADS, relational, relations, symbols, num_symbols=5, max_distance=2, symmetric=symmetric, input_size=(H, W)
    )
    m, x = randomised(m), image(1, H, W, C)
    tokens = x.reshape(N, C)
    R, sensory = relations or relational, HEADS - relational
    heads = []
    if sensory:
        q, k, v = m.qkv(tokens).reshape(N, 3, sensory, D).unbind(1)
        heads = [weighted(pairs(q[:, h], k[:, h]).softmax(1), v[:, h]) for h in range(sensory)]
    q, k = m.qk(tokens).reshape(N, 2, relational, D).unbind(1)
    rq = m.relation_q(tokens).reshape(N, R, D)
    rk = rq if symmetric else m.relation_k(tokens).reshape(N, R, D)
    r = torch.stack([pairs(rq[:, l], rk[:, l]) for l in range(R)], 2)  # [N, N, R]
    s = torch.zeros(N, N, C, dtype=torch.float64)  # symbol that j shows to i
    if symbols == "symbolic":
        query = m.library.q(tokens)
        found = []
        for h in range(HEADS):
            weights = pairs(query[:, h * D : (h + 1) * D], m.library.templates[h]).softmax(1)
            found.append(weights @ m.library.symbols[h])
        s = s + torch.cat(found, 1)
    elif symbols == "positional":
        s = s + m.table[0].reshape(C, N).T
    else:
        for i in range(N):
            for j in range(N):
                dy = max(-2, min(2, j // W - i // W))
                dx = max(-2, min(2, j % W - i % W))
                s[i, j] = m.distances[0, dy + 2] + m.distances[1, dx + 2]
    for h in range(relational):
        a = pairs(q[:, h], k[:, h]).softmax(1)
        w_s = m.symbol_out.weight[h * D : (h + 1) * D]
        sent = torch.einsum("ijr,rd->ijd", r, m.relation_out[h]) + torch.einsum("ijc,dc->ijd", s, w_s)
        heads.append(torch.einsum("ij,ijd->id", a, sent))
    same(m(x).reshape(N, C), m.proj(torch.cat(heads, 1)))
    assert m.attention_map(x).shape == (1, HEADS, N, N)


def test_positional_symbols_follow_the_size_of_the_map():
    m, x = randomised(RelationalAttention(C, HEADS, symbols="positional", input_size=(2, 3))), image(1, H, W, C)
    other = randomised(RelationalAttention(C, HEADS, symbols="positional", input_size=(H, W)))
    other.load_state_dict({**m.state_dict(), "table": other.table})
    with torch.no_grad():
        other.table.copy_(torch.einsum("yh,xw,bchw->bcyx", axis_linear(2, H), axis_linear(3, W), m.table))
    same(m(x), other(x))


def test_reversed_attention_shares_each_child_out_among_its_parents():
    m, x = randomised(ReversedAttention(C, HEADS)), image(1, H, W, C)
    tokens = x.reshape(N, C)
    q, k, v = parts(m.qkv(tokens), 3)
    message = 1 / (1 + torch.exp(-m.message_controller(tokens)))  # [N, 1]
    shares = torch.exp(tokens @ m.head_selector.weight.T / 0.1)
    shares = shares / shares.sum(1, keepdim=True)  # [N, heads]
    heads, maps = [], []
    for h in range(HEADS):
        forward = pairs(q[h], k[h]).softmax(1)  # child by parent
        out = torch.zeros(N, D, dtype=torch.float64)
        for child in range(N):
            for parent in range(N):
                out[parent] += forward[child, parent] * shares[child, h] * message[child, 0] * v[h][child]
        heads.append(out)
        maps.append((forward * shares[:, h : h + 1] * message).T)
    same(m(x).reshape(N, C), m.proj(torch.cat(heads, 1)))
    same(m.attention_map(x)[0], torch.stack(maps).detach())
    # Over parents and heads a child sends what its controller says.
    same(m.dependencies(tokens[None])[0].sum(0), message[:, 0].detach())


FLOPS = [
    dict(type="cog"),
    dict(type="rela"),
    dict(type="mhe"),
    dict(type="neural"),
    dict(type="neural", hidden_dims=(8, 4)),
    dict(type="multi_token"),
    dict(type="optimised"),
    dict(type="optimised_efficient"),
    dict(type="super", input_size=(4, 6)),
    dict(type="relational"),
    dict(type="relational", symbols="positional"),
    dict(type="relational", symbols="relative", num_relational=4, num_relations=2),
    dict(type="reversed"),
]


@pytest.mark.parametrize("spec", FLOPS, ids=str)
def test_flops_are_those_that_run(spec):
    m = build(spec, MIXERS, dim=16, num_heads=4).eval()
    with use_backend("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
        m(torch.randn(1, 4, 6, 16))
    assert m.flops(4, 6) * 2 == counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_goes_into_both_hosts_and_stays_itself(name):
    torch.manual_seed(0)
    pyramid = Pyramid(
        num_classes=5, input_size=32, depths=(1, 1, 1, 1), dims=(16, 16, 32, 32), num_heads=(1, 2, 2, 4), mixer=name
    ).eval()
    vit = ViT(num_classes=5, input_size=32, patch_size=8, dim=16, depth=2, num_heads=2, mixer=name).eval()
    x = torch.randn(2, 3, 37, 29)
    with torch.no_grad():
        for model in (pyramid, vit):
            out = model(x)
            assert out.isfinite().all()
            torch.testing.assert_close(model(x[1:]), out[1:], rtol=1e-4, atol=1e-5)
            assert torch.equal(model(x), out)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    m = build(name, MIXERS, dim=4, num_heads=2)
    assert torch.autograd.gradcheck(randomised(m), (image(1, 2, 2, 4).requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (HeadEmbeddingAttention, dict(mode="mul"), "mode='mul'"),
        (NeuralAttention, dict(projection_dim=0), "projection_dim=0"),
        (NeuralAttention, dict(hidden_dims=()), "hidden_dims"),
        (MultiTokenAttention, dict(query_kernel=4), "query_kernel=4"),
        (MultiTokenAttention, dict(key_kernel=0), "key_kernel=0"),
        (MultiTokenAttention, dict(head_kernel=2), "head_kernel=2"),
        (MultiTokenAttention, dict(convolve="both"), "convolve='both'"),
        (MultiTokenAttention, dict(depth=-1), "depth=-1"),
        (GaussianAdaptiveAttention, dict(num_gaussians=0), "num_gaussians=0"),
        (GaussianAdaptiveAttention, dict(initial_width=0.0), "initial_width"),
        (RelationalAttention, dict(num_relational=4), "num_relational=4"),
        (RelationalAttention, dict(num_relations=0), "num_relations=0"),
        (RelationalAttention, dict(symbols="none"), "symbols='none'"),
        (ReversedAttention, dict(temperature=0.0), "temperature"),
        (SuperAttention, dict(input_size=(0, 3)), "input_size"),
    ],
)
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"dim": C, "num_heads": HEADS, **arguments})
