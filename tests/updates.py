"""One agent and five minibatches for each script, and what plain PyTorch makes of them.

Each minibatch comes in two parts, for two ranks; as a script it is one of them:

    torchrun --nproc-per-node 2 tests/updates.py ppo_action_mask weights.pt compiled
"""

import importlib
import sys

import torch

from experiment.fast import Adam, columns_first, compiled
from experiment.ranks import mean_over_ranks

SCRIPTS = ("ppo_action_mask", "dqn_action_mask", "ppo_attention_mask", "ppo_gridwise", "ppo_recurrent_mask")
SIZE, LR = 16, 1e-3


def alone(gradients):
    """The mean over one rank."""
    return gradients


def shuffled_mask(size, total, generator):
    mask = torch.rand(size, total, generator=generator) < 0.6
    mask[:, [0, 2, -1]] = True  # action 0 of a single field and of both of (2, 3), and the last one
    return mask


def ppo_part(generator):
    obs, mask = torch.randn(SIZE, 3, generator=generator), shuffled_mask(SIZE, 5, generator)
    return obs, torch.zeros(SIZE, 2, dtype=torch.long), mask, *torch.randn(4, SIZE, generator=generator)


def dqn_part(generator):
    obs, next_obs = torch.randn(2, SIZE, 3, generator=generator)
    actions, ended = torch.randint(4, (SIZE,), generator=generator), torch.rand(SIZE, generator=generator) < 0.2
    rewards = torch.randn(SIZE, generator=generator)
    return obs, actions, rewards, ended, next_obs, shuffled_mask(SIZE, 4, generator)


def attention_part(generator):
    """Sets of any size, the empty one included."""
    present = torch.rand(SIZE, 5, generator=generator) < torch.rand((), generator=generator)
    obs = torch.cat([present[..., None].float(), torch.randn(SIZE, 5, 6, generator=generator)], dim=-1)
    numbers = torch.randn(4, SIZE, generator=generator)
    return obs, torch.zeros(SIZE, dtype=torch.long), shuffled_mask(SIZE, 4, generator), *numbers


def grid_part(generator):
    """Teams of any size, none included, as tables of agents with a spare row; maps that are not square."""
    agents = torch.rand(SIZE, 6, 5, generator=generator) < torch.rand((), generator=generator)
    count = int(agents.sum())
    rows = torch.full(agents.shape, -1).masked_scatter(agents, torch.arange(count))
    tables = [torch.zeros(count + 1, 2, dtype=torch.long), shuffled_mask(count + 1, 5, generator)]
    tables.append(torch.randn(count + 1, generator=generator) - 2)
    for table in tables:
        torch._dynamo.maybe_mark_dynamic(table, 0)
    return *tables, torch.randn(SIZE, 3, 6, 5, generator=generator), rows, *torch.randn(3, SIZE, generator=generator)


def recurrent_part(generator):
    """Sequences of four steps, in which episodes start anywhere, each with the state before it."""
    obs, state = torch.randn(4, SIZE // 4, 3, generator=generator), torch.randn(SIZE // 4, 8, generator=generator)
    starts = torch.rand(4, SIZE // 4, generator=generator) < 0.3
    mask = shuffled_mask(SIZE, 5, generator).view(4, SIZE // 4, 5)
    numbers = torch.randn(4, 4, SIZE // 4, generator=generator)
    return (obs, starts, state), torch.zeros(4, SIZE // 4, 2, dtype=torch.long), mask, *numbers


PARTS = dict(zip(SCRIPTS, (ppo_part, dqn_part, attention_part, grid_part, recurrent_part), strict=True))
NETWORKS = {  # DQN: the target network as well
    "ppo_action_mask": lambda script, args: [script.Agent(3, (2, 3), 8)],
    "dqn_action_mask": lambda script, args: [script.QNetwork(3, 4, 8), script.QNetwork(3, 4, 8)],
    "ppo_attention_mask": lambda script, args: [script.Agent((5, 7), (4,), args)],
    "ppo_gridwise": lambda script, args: [script.Agent((3, 6, 5), (2, 3), 4)],
    "ppo_recurrent_mask": lambda script, args: [script.Agent(3, (2, 3), 8)],
}
FLAGS = {"ppo_attention_mask": {"dim": 8, "heads": 2, "num_blocks": 2}}


class Case:
    """The networks of a script, always the same, and their losses and updates."""

    def __init__(self, name, layout=columns_first):
        torch.manual_seed(0)
        self.script = importlib.import_module(name)
        self.args = self.script.Args(max_grad_norm=0.03, **FLAGS.get(name, {}))  # gradients are larger
        self.networks = NETWORKS[name](self.script, self.args)
        self.agent = self.networks[0]
        layout(self.agent)
        generator = torch.Generator().manual_seed(1)
        self.minibatches = [[PARTS[name](generator) for _ in range(2)] for _ in range(5)]
        self.loss = self.script.td_loss if name == "dqn_action_mask" else self.script.ppo_loss

    def adam(self):
        optimizer = Adam(self.agent, eps=1e-5)
        optimizer.lr.fill_(LR)
        return optimizer

    def weights(self):
        return [p.detach().clone(memory_format=torch.contiguous_format) for p in self.agent.parameters()]

    def reference(self, parts):
        """Weights after five updates with `.backward()` and `torch.optim.Adam`, the mean over these parts."""
        optimizer = torch.optim.Adam(self.agent.parameters(), lr=LR, eps=1e-5)
        for minibatch in self.minibatches:
            optimizer.zero_grad()
            for part in parts:
                (self.loss(*self.networks, minibatch[part], self.args)[0] / len(parts)).backward()
            norm = torch.nn.utils.clip_grad_norm_(self.agent.parameters(), self.args.max_grad_norm)
            assert norm > self.args.max_grad_norm
            optimizer.step()
        return self.weights()


if __name__ == "__main__":
    case = Case(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    optimizer, update = case.adam(), case.script.update
    update = compiled(update, fullgraph=False) if sys.argv[3] == "compiled" else update
    for minibatch in case.minibatches:
        update(*case.networks, optimizer, minibatch[rank], case.args, mean_over_ranks)
    if rank == 0:
        torch.save(case.weights(), sys.argv[2])
    torch.distributed.destroy_process_group()
