"""Sparsifiner's predictor and masked attention against their equations in float64."""

import math

import pytest
import torch

from zoo.layers.records import recording
from zoo.mixers.sparsifiner import SparsifinerAttention


def make(**own):
    torch.manual_seed(0)
    settings = dict(input_size=(3, 4), reduce_n_factor=2, coefficient_topk=3, **own)
    mixer = SparsifinerAttention(8, 2, **settings).double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return mixer


@pytest.mark.parametrize("class_token", [False, True])
def test_a_query_at_a_time(class_token):
    mixer = make(class_token=class_token, keep_rate=0.4)
    first, N = int(class_token), 12 + class_token
    tokens = torch.randn(1, N, 8, dtype=torch.float64)
    with recording(mixer, "mask", "mask_sparsity", "basis_sparsity") as records:
        out, _ = mixer.forward_tokens(tokens, (3, 4))
    q, k, v = mixer.qkv(tokens)[0].reshape(N, 3, 2, 4).permute(1, 2, 0, 3)
    basis = mixer.proj_back_n.abs() * (mixer.proj_back_n.abs() > 0.02)  # [N, K]
    heads = torch.zeros(N, 2, 4, dtype=torch.float64)
    for h in range(2):
        keys = mixer.proj_c_k(k[h]).T @ mixer.proj_n  # [c, K]
        for n in range(N):
            kept = list(range(N))
            if n >= first:
                share = (mixer.proj_c_q(q[h, n]) @ keys / math.sqrt(2)).softmax(0)  # by the number of heads
                share = share * (share >= share.topk(3).values[-1])
                kept = (basis @ share).topk(math.ceil(0.4 * N)).indices.tolist()
            assert sorted(kept) == records["mask"][0][0, h, n].nonzero().flatten().tolist()
            heads[n, h] = (k[h, kept] @ q[h, n] / 2).softmax(0) @ v[h, kept]
    torch.testing.assert_close(out[0], mixer.proj(heads.flatten(1)))
    torch.testing.assert_close(records["basis_sparsity"][0], (basis == 0).float().mean())
    torch.testing.assert_close(records["mask_sparsity"][0], 1 - records["mask"][0].float().mean())


def test_pruned_tokens_give_and_get_nothing():
    mixer = make(class_token=True, keep_rate=0.5, prune_rows=True)
    tokens = torch.randn(2, 13, 8, dtype=torch.float64)
    out, mask = mixer.forward_tokens(tokens, (3, 4), keep_tokens=5)
    assert mask.sum(1).tolist() == [5, 5]
    out, further = mixer.forward_tokens(tokens, (3, 4), mask, kept=5, keep_tokens=3)
    assert further.sum(1).tolist() == [3, 3]
    assert not (further & ~mask).any()
    torch.testing.assert_close(out[:, 1:][~mask], mixer.proj.bias.expand(14, -1))  # rows without keys
    changed = tokens.clone()
    changed[:, 1:][~mask] += 1  # what is pruned is not read
    torch.testing.assert_close(mixer.forward_tokens(changed, (3, 4), mask, kept=5)[0][:, 0], out[:, 0])
    with pytest.raises(ValueError, match="class_token=True"):
        make().forward_tokens(tokens[:, 1:], (3, 4), keep_tokens=5)


def test_straight_through_changes_gradients_and_no_result():
    mixer, x = make(), torch.randn(2, 3, 4, 8, dtype=torch.float64)
    plain = mixer(x)
    torch.testing.assert_close(mixer.train()(x), plain)
    mixer(x).square().sum().backward()
    assert mixer.proj_n.grad.abs().max() > 0
    other = make(straight_through=False).train()
    other(x).square().sum().backward()
    assert other.proj_n.grad is None


@pytest.mark.parametrize(
    "arguments", [dict(keep_rate=0), dict(score_threshold=0), dict(reduce_c_factor=9), dict(coefficient_topk=0)]
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SparsifinerAttention(8, 2, **arguments)
