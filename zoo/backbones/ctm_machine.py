"""The recurrent part of a Continuous Thought Machine: synapses, neuron-level models, synchronisation, attention.

Continuous Thought Machines (NeurIPS 2025, arXiv 2505.05522, section 3). Authors' code:
github.com/SakanaAI/continuous-thought-machines (Apache-2.0). Difference: the clamp of the decays leaves the
parameters as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.fourier_position import LearnableFourierPosition, MultiFourierPosition, RotationalPosition
from zoo.layers.token_linear import TokenLinear
from zoo_kernels.dense_attention import dense_attention

SELECTIONS = ("first-last", "random", "random-pairing")
POSITIONS: dict[str, Any] = {
    "none": None,
    "learnable-fourier": LearnableFourierPosition,
    "multi-learnable-fourier": MultiFourierPosition,
    "custom-rotational": RotationalPosition,
}


class Thoughts(NamedTuple):
    """What a machine thought of B images in T ticks."""

    predictions: Tensor  #: ``[B, num_classes, T]`` logits
    certainties: Tensor  #: ``[B, 2, T]``: normalised entropy of the prediction, and 1 minus it
    synch_out: Tensor  #: ``[B, S_out]`` synchronisation that the last prediction read
    #: where asked for, of each tick: ``synch_out [B, S_out, T]``, ``synch_action [B, S_action, T]``,
    #: ``pre_activations`` and ``post_activations [B, D, T]``, ``attention [B, heads, T, H, W]``
    trace: dict[str, Tensor] | None = None


class NeuronLinear(nn.Module):
    """A linear layer of its own for each of D neurons: ``[D, B, in_dim] -> [D, B, out_dim]``, over a temperature.

    Args:
        neurons: D.
        in_dim, out_dim: of each.
        norm: layer-normalise the input.
        dropout: of the input.
    """

    def __init__(self, neurons: int, in_dim: int, out_dim: int, norm: bool = False, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(in_dim) if norm else nn.Identity()
        bound = (in_dim + out_dim) ** -0.5
        self.weight = nn.Parameter(torch.empty(neurons, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(neurons, 1, out_dim))
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, self.norm(self.dropout(x)), self.weight) / self.temperature


class SynapseUNet(nn.Module):
    """Synapses as a U-Net over channels: ``[B, in_dim] -> [B, dim]``.

    Args:
        in_dim, dim: channels in and out.
        depth: widths from ``dim`` down to 16, evenly spaced.
        dropout: before each linear layer but the first.
    """

    def __init__(self, in_dim: int, dim: int, depth: int, dropout: float = 0.0):
        super().__init__()
        step = (16 - dim) / (depth - 1)
        widths = [*(int(i * step + dim) for i in range(depth - 1)), 16]

        def layer(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Dropout(dropout), TokenLinear(a, b), nn.LayerNorm(b), nn.SiLU())

        self.first_projection = nn.Sequential(TokenLinear(in_dim, dim), nn.LayerNorm(dim), nn.SiLU())
        self.down_projections = nn.ModuleList(layer(a, b) for a, b in zip(widths, widths[1:]))
        self.up_projections = nn.ModuleList(layer(b, a) for a, b in zip(widths, widths[1:]))
        self.skip_lns = nn.ModuleList(nn.LayerNorm(a) for a in widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_projection(x)
        skips = []
        for down in self.down_projections:
            skips.append(x)
            x = down(x)
        for up, norm, skip in reversed(list(zip(self.up_projections, self.skip_lns, skips))):
            x = norm(up(x) + skip)
        return x


class Synchronisation(nn.Module):
    """Running inner products of pairs of neurons' activations, each pair forgetting at a rate of its own (eq. 10).

    ``a <- r a + z_i z_j``, ``b <- r b + 1``, synchronisation ``a / sqrt(b)`` with ``r = exp(-clamp(decay, 0, 15))``.

    Args:
        left, right: neurons ``[n]``; pairs are left with right, or with ``dense`` the upper triangle of all with all.
        dense: see there.
    """

    left: Tensor
    right: Tensor
    rows: Tensor | None
    columns: Tensor | None

    def __init__(self, left: Tensor, right: Tensor, dense: bool):
        super().__init__()
        n = left.shape[0]
        self.size = n * (n + 1) // 2 if dense else n
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        pairs = torch.triu_indices(n, n) if dense else (None, None)
        self.register_buffer("rows", pairs[0], persistent=False)
        self.register_buffer("columns", pairs[1], persistent=False)
        self.decay = nn.Parameter(torch.zeros(self.size))
        self.no_decay = ("decay",)

    def rate(self) -> Tensor:
        """r ``[S]``. Outside 0 to 15 the gradient passes the clamp, so that a decay can come back."""
        decay = self.decay + (self.decay.clamp(0, 15) - self.decay).detach()
        return torch.exp(-decay)

    def products(self, state: Tensor) -> Tensor:
        """``[B, D] -> [B, S]`` in the precision of the parameters."""
        state = state.to(self.decay.dtype)
        left, right = state[:, self.left], state[:, self.right]
        if self.rows is None or self.columns is None:
            return left * right
        return left[:, self.rows] * right[:, self.columns]


class Thinker(nn.Module):
    """The machine itself: features of an image ``[B, in_dim, H, W]`` to :class:`Thoughts`.

    Args: those of :class:`zoo.backbones.ctm.CTM`; ``in_dim`` are the channels of the features.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        iterations: int,
        d_model: int,
        d_input: int,
        heads: int,
        n_synch_out: int,
        n_synch_action: int,
        synapse_depth: int,
        memory_length: int,
        deep_nlms: bool,
        memory_hidden_dims: int,
        do_layernorm_nlm: bool,
        position: str,
        neuron_select_type: str,
        n_random_pairing_self: int,
        prediction_shape: Sequence[int],
        dropout: float,
        dropout_nlm: float,
    ):
        super().__init__()
        self.iterations, self.heads, self.prediction_shape = iterations, heads, tuple(prediction_shape)
        self.position = POSITIONS[position](in_dim) if position != "none" else None
        self.kv_proj = nn.Sequential(TokenLinear(in_dim, d_input), nn.LayerNorm(d_input))
        self.attention_dropout = dropout

        def pairs(n: int, first: bool) -> Synchronisation:
            if neuron_select_type == "first-last":
                left = right = torch.arange(n) if first else torch.arange(d_model - n, d_model)
            else:
                own = n_random_pairing_self if neuron_select_type == "random-pairing" else 0
                left = torch.randint(d_model, (n,))
                right = torch.cat([left[:own], torch.randint(d_model, (n - own,))])
            return Synchronisation(left, right.clone(), dense=neuron_select_type != "random-pairing")

        self.synch_action, self.synch_out = pairs(n_synch_action, False), pairs(n_synch_out, True)
        self.q_proj = TokenLinear(self.synch_action.size, d_input)
        self.attn_q = TokenLinear(d_input, d_input)
        self.attn_kv = TokenLinear(d_input, 2 * d_input)
        self.attn_out = TokenLinear(d_input, d_input)
        width = d_input + d_model
        self.synapses: nn.Module = (
            nn.Sequential(nn.Dropout(dropout), TokenLinear(width, 2 * d_model), nn.GLU(), nn.LayerNorm(d_model))
            if synapse_depth == 1
            else SynapseUNet(width, d_model, synapse_depth, dropout)
        )
        sizes = [memory_length, 2 * memory_hidden_dims, 2] if deep_nlms else [memory_length, 2]
        inputs = [memory_length, memory_hidden_dims]
        self.neuron_models = nn.ModuleList(
            NeuronLinear(d_model, i, o, do_layernorm_nlm, dropout_nlm) for i, o in zip(inputs, sizes[1:])
        )
        bound = d_model**-0.5
        self.start_activated_state = nn.Parameter(torch.empty(d_model).uniform_(-bound, bound))
        bound = (d_model + memory_length) ** -0.5
        self.start_trace = nn.Parameter(torch.empty(d_model, memory_length).uniform_(-bound, bound))
        self.no_decay = ("start_activated_state", "start_trace")
        self.output_projector = TokenLinear(self.synch_out.size, num_classes)

    def _activate(self, trace: Tensor) -> Tensor:
        """Neuron-level models: memories ``[D, B, M]`` to post-activations ``[B, D]`` (eq. 3)."""
        for layer in self.neuron_models:
            trace = F.glu(layer(trace), dim=-1)
        return trace.squeeze(-1).T

    def certainty(self, prediction: Tensor) -> Tensor:
        """Normalised entropy of logits ``[B, num_classes]``, and 1 minus it: ``[B, 2]``."""
        logits = prediction.float() if prediction.dtype in (torch.float16, torch.bfloat16) else prediction
        log_p = logits.reshape(logits.shape[0], *self.prediction_shape).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1) / math.log(log_p.shape[-1])
        entropy = entropy.flatten(1).mean(1) if entropy.ndim > 1 else entropy  # several predictions an image
        return torch.stack([entropy, 1 - entropy], dim=-1)

    def forward(self, features: Tensor, track: bool = False) -> Thoughts:
        """Think for all ticks; with ``track`` the :attr:`Thoughts.trace` is kept."""
        B, _, H, W = features.shape
        if self.position is not None:
            features = features + self.position(features)
        tokens = self.kv_proj(features.flatten(2).transpose(1, 2))  # [B, H*W, d_input]
        k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.attn_kv(tokens).chunk(2, dim=-1)
        )  # [B, heads, H*W, d]: the same in every tick
        state = self.start_activated_state.expand(B, -1)  # [B, D]
        memory = self.start_trace[:, None].expand(-1, B, -1)  # [D, B, M]
        rate_action, rate_out = self.synch_action.rate(), self.synch_out.rate()
        alpha_action = beta_action = torch.zeros(())
        # what the outputs remember starts with the state before the first tick, what the actions remember with it
        alpha_out, beta_out = self.synch_out.products(state), torch.ones_like(rate_out)
        ticks: dict[str, list[Tensor]] = {"predictions": [], "certainties": []}
        for tick in range(self.iterations):
            product = self.synch_action.products(state)
            alpha_action = product if tick == 0 else rate_action * alpha_action + product
            beta_action = torch.ones_like(rate_action) if tick == 0 else rate_action * beta_action + 1
            action = alpha_action / beta_action.sqrt()
            q = self.attn_q(self.q_proj(action)).unflatten(1, (self.heads, 1, -1))  # [B, heads, 1, d]
            # there is one query: dropping a weight is dropping its value
            kept = F.dropout(v.new_ones(*v.shape[:3], 1), self.attention_dropout, self.training)
            read = self.attn_out(dense_attention(q, k, v * kept if self.training else v).flatten(1))
            pre = self.synapses(torch.cat([read, state], dim=-1))  # [B, D]
            memory = torch.cat([memory[:, :, 1:], pre.T.unsqueeze(-1).to(memory.dtype)], dim=-1)
            state = self._activate(memory)
            alpha_out = rate_out * alpha_out + self.synch_out.products(state)
            beta_out = rate_out * beta_out + 1
            out = alpha_out / beta_out.sqrt()
            prediction = self.output_projector(out)
            ticks["predictions"].append(prediction)
            ticks["certainties"].append(self.certainty(prediction))
            if track:
                weights = (q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5).softmax(-1).squeeze(2)  # [B, heads, H*W]
                kept_now = dict(synch_out=out, synch_action=action, pre_activations=pre, post_activations=state)
                for name, value in {**kept_now, "attention": weights.unflatten(2, (H, W))}.items():
                    ticks.setdefault(name, []).append(value)
        predictions, certainties = (torch.stack(ticks.pop(n), dim=-1) for n in ("predictions", "certainties"))
        trace = {n: torch.stack(t, dim=2) for n, t in ticks.items()} if track else None
        return Thoughts(predictions, certainties, out, trace)
