"""The Continuous Thought Machine: its equations tick by tick, options, importer."""

import math

import pytest
import torch

from zoo.backbones.ctm import CTM
from zoo.backbones.ctm_machine import SynapseUNet, Synchronisation
from zoo.registry import MODELS, build
from zoo.weights.importers import ctm as importer

TINY = dict(
    features="none",
    in_chans=5,
    num_classes=4,
    iterations=4,
    d_model=12,
    d_input=8,
    heads=2,
    n_synch_out=5,
    n_synch_action=4,
    synapse_depth=1,
    memory_length=3,
    memory_hidden_dims=2,
)
OFFICIAL = dict(
    iterations=3,
    d_model=12,
    d_input=8,
    heads=2,
    n_synch_out=5,
    n_synch_action=4,
    synapse_depth=1,
    memory_length=3,
    deep_nlms=True,
    memory_hidden_dims=2,
    do_layernorm_nlm=False,
    backbone_type="resnet18-1",
    positional_embedding_type="none",
    out_dims=4,
)


def randomised(**changes) -> CTM:
    torch.manual_seed(0)
    model = CTM(**{**TINY, **changes}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def definition(model: CTM, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and final synchronisation of one image by the paper's sums over all past ticks, pair by pair."""
    t = model.thinker
    tokens = t.kv_proj(x[0].flatten(1).T)
    memory = [t.start_trace[:, i] for i in range(t.start_trace.shape[1])]
    states = [t.start_activated_state]
    predictions, d = [], t.attn_q.in_features // t.heads

    def synchronisation(s, history):
        left, right = (s.left, s.right) if s.rows is None else (s.left[s.rows], s.right[s.columns])
        values = []
        for pair in range(s.size):
            r = math.exp(-min(max(float(s.decay[pair]), 0), 15))
            ages = [r ** (len(history) - 1 - i) for i in range(len(history))]
            total = sum(a * z[left[pair]] * z[right[pair]] for a, z in zip(ages, history))
            values.append(total / math.sqrt(sum(ages)))
        return torch.stack(values)

    for _ in range(t.iterations):
        q = t.attn_q(t.q_proj(synchronisation(t.synch_action, states)))
        k, v = t.attn_kv(tokens).chunk(2, dim=-1)
        read = torch.cat(
            [
                ((k[:, i : i + d] @ q[i : i + d]) / math.sqrt(d)).softmax(0) @ v[:, i : i + d]
                for i in range(0, t.heads * d, d)
            ]
        )
        memory = [*memory[1:], t.synapses(torch.cat([t.attn_out(read), states[-1]]))]
        post = []
        for neuron in range(len(memory[0])):
            z = torch.stack([m[neuron] for m in memory])
            for layer in t.neuron_models:
                z = (z @ layer.weight[neuron] + layer.bias[neuron, 0]) / layer.temperature
                half = len(z) // 2
                z = z[:half] * torch.sigmoid(z[half:])
            post.append(z[0])
        states.append(torch.stack(post))
        out = synchronisation(t.synch_out, states)
        predictions.append(t.output_projector(out))
    return torch.stack(predictions, dim=-1), out


@pytest.mark.parametrize("selection", ["first-last", "random", "random-pairing"])
@pytest.mark.parametrize("deep", [True, False])
def test_equals_the_definition(selection, deep):
    model = randomised(neuron_select_type=selection, deep_nlms=deep)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        thoughts = model.think(x)
        for i in range(2):
            predictions, synch = definition(model, x[i : i + 1])
            torch.testing.assert_close(thoughts.predictions[i], predictions, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(thoughts.synch_out[i], synch, rtol=1e-9, atol=1e-10)
    p = thoughts.predictions.softmax(1)
    entropy = -(p * p.log()).sum(1) / math.log(4)
    torch.testing.assert_close(thoughts.certainties, torch.stack([entropy, 1 - entropy], 1))


def test_the_most_certain_or_the_last_tick_is_given():
    model = randomised()
    x = torch.randn(6, 5, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        thoughts = model.think(x)
        best = thoughts.certainties[:, 1].argmax(1).tolist()
        assert torch.equal(model(x), torch.stack([thoughts.predictions[i, :, t] for i, t in enumerate(best)]))
        model.tick = "last"
        assert torch.equal(model(x), thoughts.predictions[..., -1])


def test_what_is_tracked():
    model = randomised()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        thoughts = model.think(x, track=True)
        assert model.think(x).trace is None
    sizes = {n: tuple(v.shape) for n, v in thoughts.trace.items()}
    assert sizes == {
        "synch_out": (2, 5, 4),
        "synch_action": (2, 4, 4),
        "pre_activations": (2, 12, 4),
        "post_activations": (2, 12, 4),
        "attention": (2, 2, 4, 3, 4),
    }
    assert torch.equal(thoughts.trace["synch_out"][..., -1], thoughts.synch_out)
    torch.testing.assert_close(thoughts.trace["attention"].sum((3, 4)), torch.ones(2, 2, 4, dtype=torch.float64))


def test_a_decay_outside_its_range_can_come_back():
    s = Synchronisation(torch.arange(3), torch.arange(3), dense=False)
    with torch.no_grad():
        s.decay.copy_(torch.tensor([-1.0, 0.5, 20.0]))
    torch.testing.assert_close(s.rate(), torch.exp(-torch.tensor([0.0, 0.5, 15.0])))
    s.rate().sum().backward()
    torch.testing.assert_close(s.decay.grad, -torch.exp(-torch.tensor([0.0, 0.5, 15.0])))


def test_widths_of_the_synapses():
    unet = SynapseUNet(60, 48, 3)
    assert [m[1].out_features for m in unet.down_projections] == [32, 16]
    assert [m[1].out_features for m in unet.up_projections] == [48, 32]
    assert unet(torch.randn(2, 60)).shape == (2, 48)


def test_dropout_acts_in_training_only():
    model = randomised(dropout=0.4)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("position", ["learnable-fourier", "multi-learnable-fourier", "custom-rotational"])
def test_positions_at_any_size(position):
    torch.manual_seed(0)
    arguments = {**TINY, "features": "resnet18-1", "width": 8, "in_chans": 3, "position": position}
    model = CTM(**arguments).eval()
    with torch.no_grad():
        for size in ((1, 1), (9, 20)):
            x = torch.randn(1, 3, *size)
            assert model(x).isfinite().all()
            assert (
                model.thinker.position(model.forward_features(x)[0]).shape[2:] == model.forward_features(x)[0].shape[2:]
            )


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(synapse_depth=3, neuron_select_type="random", do_layernorm_nlm=True),
        dict(positional_embedding_type="multi-learnable-fourier", deep_nlms=False),
        dict(positional_embedding_type="custom-rotational", backbone_type="resnet50-1"),
    ],
)
def test_importer_is_strict_both_ways(changes):
    spec = importer.config_from_official(importer.NETWORK, {**OFFICIAL, **changes})
    own = build(spec, MODELS).state_dict()
    official = importer.revert_state_dict(importer.NETWORK, own)
    back = importer.convert_state_dict(importer.NETWORK, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(importer.NETWORK, {**official, "trace_processor.0.1.w1": torch.zeros(1)})


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(iteration=3), TypeError, "iterations"),
        (dict(backbone_type="parity_backbone"), ValueError, "parity_backbone"),
        (dict(positional_embedding_type="custom-rotational-1d"), ValueError, "rotational-1d"),
        (dict(heads=0), ValueError, "heads"),
    ],
)
def test_importer_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(importer.NETWORK, {**OFFICIAL, **changes})


def test_importer_needs_what_the_authors_need():
    with pytest.raises(TypeError, match="memory_length"):
        importer.config_from_official(importer.NETWORK, {k: v for k, v in OFFICIAL.items() if k != "memory_length"})
    with pytest.raises(LookupError, match="Other"):
        importer.config_from_official("Other", {})


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(tick="first"), "tick"),
        (dict(neuron_select_type="all"), "neuron_select_type"),
        (dict(position="sine"), "position"),
        (dict(position="learnable-fourier"), "position"),
        (dict(features="resnet20-1"), "resnet20-1"),
        (dict(heads=3), "heads=3"),
        (dict(iterations=0), "iterations=0"),
        (dict(neuron_select_type="first-last", n_synch_out=9), "d_model=12"),
        (dict(n_random_pairing_self=4), "n_random_pairing_self=4"),
        (dict(num_classes=1), "num_classes=1"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        CTM(**{**TINY, **changes})


def test_features_alone_do_not_think():
    with pytest.raises(TypeError, match="num_classes=0"):
        CTM(**{**TINY, "num_classes": 0}).think(torch.zeros(1, 5, 2, 2))
