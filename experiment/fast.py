"""Numerics for speed alone: what they compute is torch's own, and tests hold it so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.optim.adam import adam

from envs.masks import choose
from experiment.notes import say

COMPARE_EVERY = 256  # calls of a function that has two forms


def columns_first(module: nn.Module) -> None:
    """Keep each Linear's weight in memory as (in, out): the gradient of a narrow layer is then three times faster."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.T.contiguous().T


def compiled(function: Callable, fullgraph: bool = True) -> Callable:
    """The function as machine code, for shapes as they come; `torch.autograd.grad` becomes a part of the graph."""
    torch._dynamo.config.trace_autograd_ops = True
    torch._dynamo.config.recompile_limit = 1024  # a sweep in one process compiles anew for each network
    torch._dynamo.config.accumulated_recompile_limit = 4096
    # On CPUs inductor then computes tanh as 2 / (1 + exp(-2x)) - 1, within 2e-7: 15 % off an update.
    options = {"cpp_wrapper": True, "cpp.use_decompose_tanh": True}
    return torch.compile(function, fullgraph=fullgraph, options=options)


class Adam:
    """`torch.optim.Adam` (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980) whose step is a function of gradients.

    All state is made here and lives for ever, so that `apply` can be compiled together with the loss, and a checkpoint
    restored at any time: it is copied into what a graph already holds, in whatever memory layout that is.

    Args:
        module: whose parameters it moves; their memory layout is final.
        eps: added to the denominator.
    """

    def __init__(self, module: nn.Module, eps: float):
        self.params, self.eps = list(module.parameters()), eps
        self.lr = torch.zeros((), device=self.params[0].device)  # a tensor: a number would be a constant of the graph
        self.state = {
            "exp_avgs": [torch.zeros_like(p, requires_grad=False) for p in self.params],
            "exp_avg_sqs": [torch.zeros_like(p, requires_grad=False) for p in self.params],
            "steps": [torch.zeros_like(self.lr) for _ in self.params],
        }

    @torch.no_grad()
    def apply(self, gradients: list[Tensor]) -> None:
        """One step of size `lr` along the gradients, which have any memory layout."""
        compiling = torch.compiler.is_compiling()  # a graph cannot hold the fused kernel, and fuses by itself
        if not compiling:  # the fused kernel goes by memory, whatever the strides say
            pairs = zip(gradients, self.params, strict=True)
            gradients = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for g, p in pairs]
        exp_avgs, exp_avg_sqs, steps = self.state.values()
        forms = {"foreach": False, "fused": not compiling, "capturable": compiling, "amsgrad": False, "maximize": False}
        sizes = {"lr": self.lr, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": self.eps}
        adam(self.params, gradients, exp_avgs, exp_avg_sqs, [], steps, **forms, **sizes)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Moments and steps."""
        return self.state

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restore what `state_dict` gave, in place."""
        for name, tensors in self.state.items():
            for mine, saved in zip(tensors, state[name], strict=True):
                mine.copy_(saved)


def in_numpy(network: nn.Module) -> Callable[[np.ndarray], np.ndarray] | None:
    """A sequence of Linear, Tanh and ReLU layers as a NumPy function (N, D) -> (N, A); None for anything else.

    For a few rows, calling torch costs four times as much as the arithmetic. The function reads the network's own
    memory, so it follows the training.
    """
    functions = {nn.Tanh: np.tanh, nn.ReLU: lambda x: np.maximum(x, 0)}
    if type(network) is not nn.Sequential or not all(type(layer) in (nn.Linear, *functions) for layer in network):
        return None
    parameters = [[p.detach().numpy().T for p in layer.parameters()] for layer in network]  # (in, out) and (out,)

    def forward(x: np.ndarray) -> np.ndarray:
        for layer, weights in zip(network, parameters, strict=True):
            x = sum(weights[1:], x @ weights[0]) if weights else functions[type(layer)](x)
        return x

    return forward


class OnHost:
    """A torch function of observations (N, D) for the host, computed in NumPy where that gives the same.

    NumPy computes it with one of the module's own networks, if one is a plain MLP (`in_numpy`) and agrees on the
    observations at hand and on random ones. Whatever else stands between observation and result, a scale, a trunk, a
    mask that the network reads, a normalization that changes with time, makes them differ; then torch computes it, from
    the next comparison on. They are compared at the first call and after every COMPARE_EVERY, where the result is not
    masked.

    Args:
        function: maps a float32 tensor (N, D), and a mask (N, A) bool if one is given, to the result (N, A), whose
            masked entries are the lowest number.
        module: which holds the networks.
    """

    def __init__(self, function: Callable[..., Tensor], module: nn.Module):
        self.function, self.module, self.calls = function, module, 0
        self.device = next(module.parameters()).device
        self.networks: list[Callable] | None = None  # those that agreed so far
        if self.device.type == "cpu":
            self.networks = [form for form in map(in_numpy, module.children()) if form]

    def __call__(self, obs: np.ndarray, *mask: np.ndarray) -> np.ndarray:
        if self.networks is not None and self.calls % COMPARE_EVERY == 0:
            self.networks = [network for network in self.networks if self._agrees(network, obs, *mask)] or None
            if not self.networks:
                say(f"{type(self.module).__name__} acts in torch, for none of its MLPs alone gives the same in NumPy.")
        self.calls += 1
        return self.networks[0](obs) if self.networks else self._in_torch(obs, *mask)

    def _in_torch(self, *inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.function(*(torch.from_numpy(x).to(self.device) for x in inputs)).cpu().numpy()

    def _agrees(self, network: Callable, obs: np.ndarray, *mask: np.ndarray) -> bool:
        noise = np.random.default_rng(0).standard_normal((8, obs.shape[1]), np.float32)
        obs = np.concatenate([obs[:8], noise, 100 * noise])  # a few: with many rows it would cost more than it saves
        expected = self._in_torch(obs, *(np.resize(x[:8], (len(obs), x.shape[1])) for x in mask))
        try:
            found = network(obs)
        except ValueError:  # it takes another number of columns
            return False
        shown = ~(expected < np.finfo(np.float32).min / 4)  # NaN too, which agrees with nothing
        near = 1e-5 * max(1.0, np.abs(expected[shown]).max(initial=0.0))
        return found.shape == expected.shape and np.abs(found - expected)[shown].max(initial=0.0) <= near


def sampler(agent: Any, nvec: np.ndarray, rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """A function that maps obs (N, D) float32 and masks (N, sum(nvec)) to actions int64, (N,) or (N, K).

    It draws from the distribution's logits on the host: with few environments, calls cost more than arithmetic. It
    takes `field_mask`, as `choose` does, and with `greedy` gives the most probable choices.

    Args:
        agent: maps obs and masks to a CategoricalMasked and values.
        nvec: (K,) choices in each field of an action.
        rng: of the draws.
    """
    within = np.arange(nvec.max()) < nvec[:, None]  # (K, A): the choices of each field, padded to the largest

    def policy_logits(obs: Tensor, mask: Tensor) -> Tensor:
        logits = agent(obs, mask)[0].logits
        return logits if len(nvec) == 1 else logits[:, torch.from_numpy(within).to(obs.device)]

    logits = OnHost(policy_logits, agent)

    def act(obs: np.ndarray, mask: np.ndarray, field_mask: Callable | None = None, greedy: bool = False) -> np.ndarray:
        # Where fields depend on each other, the mask of those after the first is known when they are chosen only.
        scores = logits(obs, np.ones(mask.shape, bool) if field_mask else mask.astype(bool))
        if not greedy:  # Gumbel noise, of which none is infinite, and before the mask: see CategoricalMasked.sample
            noise = -np.log(rng.standard_exponential(scores.shape, np.float32) + 1e-37)
            scores = scores.astype(np.float64) + noise  # in float32 it would be lost beside a logit of 1e7
        return choose(scores, mask, nvec, field_mask)

    return act
