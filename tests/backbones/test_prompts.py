"""Prompted vision transformers against their equations in float64; what is trained and saved."""

import pytest
import torch
from torch.nn import functional as F

from zoo.backbones.hosts import ViT
from zoo.backbones.prompts import TCPA, VPT
from zoo.layers.records import recording
from zoo.layers.tuning import tuned_state_dict
from zoo.registry import MODELS
from zoo.weights.load import load_weights

HOST = dict(input_size=16, patch_size=8, dim=12, depth=3, num_heads=2, num_classes=5)
POOLS = dict(pool_cls=4, pool_image=6, length_cls=2, length_image=1, topk_cls=1, topk_image=2)


def block_of(block, tokens, mask=None):
    """A plain transformer block over [B, N, C] in einsums."""
    y = block.norm1(tokens)
    q, k, v = block.attn.qkv(y).unflatten(-1, (3, 2, 6)).unbind(2)  # [B, N, heads, d]
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / 6**0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    tokens = tokens + block.attn.proj(torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v).flatten(2))
    return tokens + block.mlp(block.norm2(tokens))


def start(model, x):
    """[B, 1 + N, C] before the first block."""
    tokens = model.embedded(x).flatten(1, 2)
    return torch.cat([model.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1)


def made(cls, **own):
    torch.manual_seed(0)
    model = cls(**HOST, **own).double().eval()
    return model, torch.randn(2, 3, 16, 16, dtype=torch.float64)


@pytest.mark.parametrize("deep", [False, True])
def test_vpt(deep):
    model, x = made(VPT, deep=deep, num_prompts=4)
    tokens = start(model, x)
    prompts = model.prompts.tokens[0].expand(2, -1, -1)
    for i, block in enumerate(model.blocks):
        if deep:  # eq. 6-7: new prompts, and their results dropped
            prompts = model.prompts.tokens[i].expand(2, -1, -1)
        out = block_of(block, torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1))
        prompts, tokens = out[:, 1:5], torch.cat([out[:, :1], out[:, 5:]], dim=1)
    torch.testing.assert_close(model(x), model.head(model.norm(tokens[:, 0])))


@pytest.mark.parametrize("token_level", [True, False])
def test_tcpa(token_level):
    model, x = made(TCPA, token_level=token_level, **POOLS)
    tokens, distance = start(model, x), 0.0
    n = tokens.shape[1]
    for i, block in enumerate(model.blocks):
        cls, image = model.prompts.cls, model.prompts.image
        mask = torch.zeros(2, n, n + 8 + 6, dtype=torch.bool)
        mask[:, :, :n] = True
        if not token_level:
            mask[:, 0, n : n + 8] = True
            mask[:, 1:, n + 8 :] = True
        else:
            near = F.cosine_similarity(tokens[:, :1], cls.keys[i], dim=-1)  # [B, pool]
            far = F.cosine_similarity(tokens[:, 1:, None], image.keys[i], dim=-1)  # [B, N, pool]
            distance = distance + (1 - near.amax(-1)).mean() + (1 - far.topk(2, -1).values).mean()
            for b in range(2):
                best = int(near[b].argmax())
                mask[b, 0, n + 2 * best : n + 2 * best + 2] = True
                for j in range(n - 1):
                    mask[b, 1 + j, n + 8 + far[b, j].topk(2).indices] = True
        prompts = torch.cat([cls.tokens[i].reshape(8, 12), image.tokens[i].reshape(6, 12)]).expand(2, -1, -1)
        whole = torch.ones(2, n + 14, n + 14, dtype=torch.bool)
        whole[:, :n] = mask
        tokens = block_of(block, torch.cat([tokens, prompts], dim=1), whole[:, None])[:, :n]
    with recording(model, "matching") as records:
        out = model(x)
    torch.testing.assert_close(out, model.head(model.norm(tokens[:, 0])))
    torch.testing.assert_close(records["matching"][0], torch.as_tensor(distance, dtype=torch.float64))


@pytest.mark.parametrize(
    "cls, own, count",
    [
        (VPT, dict(deep=False, num_prompts=4), 4 * 12),
        (VPT, dict(deep=True, num_prompts=4), 3 * 4 * 12),
        (TCPA, POOLS, 3 * 12 * (4 * 2 + 6 + 4 + 6)),
        (TCPA, dict(POOLS, token_level=False), 3 * 12 * (4 * 2 + 6)),
    ],
)
def test_only_prompts_and_classifier_are_trained_and_saved(cls, own, count):
    torch.manual_seed(0)
    model = cls(**HOST, drop_path_rate=0.5, **own).train()
    tuned = tuned_state_dict(model)
    assert sum(v.numel() for v in tuned.values()) == count + 12 * 5 + 5
    assert {n.split(".")[0] for n in tuned} == {"prompts", "head"}
    assert model.training
    assert not model.blocks[0].training  # no stochastic depth in a frozen trunk
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    names = ("matching",) if "prompts.cls.keys" in tuned else ()
    with recording(model, *names) as records:
        loss = F.cross_entropy(model(torch.randn(2, 3, 16, 16)), torch.tensor([0, 1]))
    (loss + sum(records.get("matching", []))).backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(tuned)
    layers = model.group_matcher()
    assert all(layers[n] == model.num_layers() - 1 for n in tuned)
    whole = cls(**HOST, tune_trunk=True, **own)
    assert all(p.requires_grad for p in whole.parameters())


def test_trunk_of_a_plain_model_loads():
    torch.manual_seed(1)
    source = ViT(**HOST, class_token=True)
    model = VPT(**HOST)
    assert load_weights(model, source.state_dict()).exact
    assert torch.equal(model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)


def test_named_models_train_what_they_say():
    for name, count in (("vpt_shallow_base", 7680), ("vpt_deep_base", 92160), ("tcpa_base", 552960)):
        with torch.device("meta"):
            model = MODELS.get(name)()
        assert sum(p.numel() for n, p in model.named_parameters() if n.startswith("prompts")) == count


def test_features_any_size_and_bad_arguments():
    for cls, own in ((VPT, {}), (TCPA, POOLS)):
        features = cls(**{**HOST, "num_classes": 0}, out_indices=(0, 2), **own).eval()
        maps = features(torch.randn(1, 3, 20, 31))
        assert [tuple(m.shape) for m in maps] == [(1, 12, 3, 4)] * 2
    model = VPT(**HOST)
    model.reset_classifier(9)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 9)
    with pytest.raises(ValueError, match="num_prompts=0"):
        VPT(**HOST, num_prompts=0)
    with pytest.raises(ValueError, match="prefix"):
        VPT(**HOST, mixer="window")
    with pytest.raises(ValueError, match="softmax"):
        TCPA(**HOST, mixer="window")
    with pytest.raises(ValueError, match="topk=7"):
        TCPA(**HOST, **{**POOLS, "topk_image": 7})
