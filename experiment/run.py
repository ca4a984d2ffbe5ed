"""`Run`: all that stands around an algorithm, from the flags of the command line to the scores at the end."""

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from envs.make import make_vec, parse_env_kwargs
from envs.uniform import UniformVectorEnv
from experiment.board import open_run, write_scores
from experiment.checkpoint import load_checkpoint, save_checkpoint, swap_arrays
from experiment.evaluation import Play, evaluate
from experiment.fast import columns_first
from experiment.flags import Flags, check_flags
from experiment.pictures import Look, write_pictures
from experiment.ranks import gather, join_ranks, leave_ranks, mean_over_ranks
from experiment.signals import StopOnSignal

# The part of an observation's shape that a trained agent is bound to: it reads sets and maps of any size.
BOUND = {"flat": slice(None), "entities": slice(1, None), "grid": slice(1)}


class Run:
    """One training, or one evaluation of a checkpoint. Its methods are called in the order in which they stand here.

    Args:
        args: flags of the script. Those that count are in `self.args`: a checkpoint brings its own.
        file: the script's `__file__`.

    Raises:
        ValueError: a flag out of its range, flags that do not fit together, or a checkpoint that cannot be used.
    """

    def __init__(self, args: Flags, file: str):
        self.script, self.checkpoint = Path(file).stem, None
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if path := args.eval_only or args.resume:
            flag = "eval-only" if args.eval_only else "resume"
            self.checkpoint, args = load_checkpoint(path, args, flag, self.script)
        self.path, self.args = path, args
        args.exp_name = args.exp_name or self.script
        self.steps = check_flags(args, self.world_size)  # of all environments in an iteration
        self.num_iterations, self.iteration = args.total_timesteps // self.steps, 0
        self.free_play = args.mask_mode in ("penalty", "none")  # the mask does not restrict what is played

        use_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
        torch.set_num_threads(args.num_threads)
        torch.use_deterministic_algorithms(args.torch_deterministic and use_cuda, warn_only=True)  # CPUs are anyway
        torch.manual_seed(args.seed)
        self.generator = torch.Generator(self.device).manual_seed(args.seed + self.rank)
        self.rng = np.random.default_rng(args.seed + self.rank)
        join_ranks(use_cuda)

    def make_envs(self, num_envs: int, **layout: Any) -> UniformVectorEnv:
        """This rank's environments; `layout` as for `make_vec`, here and in evaluation and pictures."""
        self.make_vec = partial(
            make_vec,
            self.args.env_id,
            env_kwargs=parse_env_kwargs(self.args.env_kwargs),
            async_envs=self.args.async_envs,
            **layout,
        )
        self.require_mask = self.args.mask_mode != "none"
        if self.args.capture_video:
            self.make_vec(1, require_mask=self.require_mask, render_mode="rgb_array").close()
        self.envs = self.make_vec(num_envs, require_mask=self.require_mask)
        return self.envs

    def place(self, module: nn.Module) -> nn.Module:
        """The module on this run's device, with rank 0's weights, in their final memory layout."""
        module.to(self.device)
        if self.world_size > 1:
            for p in module.parameters():
                dist.broadcast(p.data, src=0)
        columns_first(module)
        return module

    def keep(self, **objects: Any) -> None:
        """What a checkpoint holds beside the environments; a checkpoint that was given is restored into it.

        Objects with a `state_dict` are the same on all ranks, those with a `get_state` each rank's own. The agent is
        called `model`.
        """
        self.model = objects["model"]
        self.shared = {name: thing for name, thing in objects.items() if hasattr(thing, "state_dict")}
        self.own = {name: thing for name, thing in objects.items() if hasattr(thing, "get_state")}
        self.shapes = {"obs_shape": list(self.envs.single_observation_space.shape), "nvec": self.envs.nvec.tolist()}
        if self.checkpoint:
            bound = BOUND[self.envs.layout] if self.args.eval_only else slice(None)
            saved, found = ((list(x["obs_shape"])[bound], x["nvec"]) for x in (self.checkpoint, self.shapes))
            if saved != found:
                raise ValueError(
                    f"{self.path}: trained on {self.checkpoint['obs_shape']} observations and "
                    f"{self.checkpoint['nvec']} choices; {self.args.env_id} has {self.shapes['obs_shape']} and "
                    f"{self.shapes['nvec']}: another version of it."
                )
            for name, thing in self.shared.items():
                thing.load_state_dict(self.checkpoint[name])

    def compile(self, function: Callable) -> Callable:
        """The function, compiled if `--compile` asks for it."""
        if not self.args.compile:
            return function
        torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad becomes a part of the graph
        # On CPUs inductor then computes tanh as 2 / (1 + exp(-2x)) - 1, within 2e-7: 15 % off an update.
        options = {"cpp_wrapper": True, "cpp.use_decompose_tanh": True}
        return torch.compile(function, fullgraph=self.world_size == 1, options=options)  # ranks meet between two graphs

    def begin(self) -> tuple[np.ndarray, np.ndarray]:
        """The first observations and masks: of a new run, for which a folder is made, or where a checkpoint left off.

        Raises:
            ValueError: the checkpoint was written by another number of ranks.
        """
        seed = self.args.seed + self.rank * self.envs.num_envs
        self.envs.reset(seed=seed)
        if self.args.eval_only:
            return self.envs.last_obs, self.envs.last_mask
        if self.checkpoint:
            if len(self.checkpoint["ranks"]) != self.world_size:
                raise ValueError(
                    f"--resume {self.path}: written by {len(self.checkpoint['ranks'])} ranks, not {self.world_size}; "
                    f"expected torchrun --nproc-per-node {len(self.checkpoint['ranks'])}."
                )
            self.iteration, mine = self.checkpoint["iteration"], self.checkpoint["ranks"][self.rank]
            self.generator.set_state(mine["generator"])
            self.rng.bit_generator.state = mine["rng"]
            torch.set_rng_state(mine["torch"])
            for name, thing in self.own.items():
                thing.set_state(mine[name])
            if mine["envs"] is None:
                print(f"{self.args.env_id} cannot be saved, so its environments restart; the agent continues.")
                self.envs.reset(seed=seed + self.iteration * self.args.num_envs)
            else:
                self.envs.set_state(swap_arrays(mine["envs"]))
        if self.rank == 0:
            folder = Path(self.path).parent if self.checkpoint else None
            self.run_dir, self.writer = open_run(self.args, folder, self.iteration * self.steps)
        return self.envs.last_obs, self.envs.last_mask

    def iterations(self) -> Iterator[int]:
        """Numbers of the iterations that are left, none with `--eval-only`; between them, signals and checkpoints."""
        self.stopping = False  # agreed by all ranks, so that all stop after the same iteration
        if self.args.eval_only:
            return
        stop, self.last_return = StopOnSignal(), float("nan")
        self.first_iteration, self.start_time = self.iteration, time.time()
        done, total = self.iteration * self.steps, self.num_iterations * self.steps
        self.bar = tqdm(total=total, initial=done, unit="step", unit_scale=True, disable=self.rank != 0)
        while self.iteration < self.num_iterations and not self.stopping:
            yield self.iteration
            self.iteration += 1
            self.bar.update(self.steps)
            self.stopping = bool(self.mean(torch.tensor(float(stop.stopped_by is not None))) > 0)
            if self.args.checkpoint_every and self.iteration % self.args.checkpoint_every == 0:
                self._save()
        self.bar.close()
        stop.restore()
        if self.stopping and self.rank == 0:
            name = stop.stopped_by.name if stop.stopped_by else "a signal to another rank"
            print(f"Stopped by {name}. Continue with --resume {self.run_dir / 'checkpoint.pt'}")

    @property
    def global_step(self) -> int:
        """Environment steps over all environments and ranks at the end of this iteration."""
        return (self.iteration + 1) * self.steps

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on this run's device; on a CPU it is the same memory."""
        return torch.from_numpy(array).to(self.device)

    def mean(self, x: Any) -> Any:
        """The mean over all ranks of a tensor, or of each tensor of a tuple, the same on each."""
        if self.world_size == 1:
            return x
        return mean_over_ranks(x) if isinstance(x, tuple) else mean_over_ranks((x,))[0]

    def check_finite(self, metrics: Tensor) -> None:
        """Stop a training that has diverged, before its weights are saved over the last good ones.

        Raises:
            ValueError: NaN or inf in the metrics of the last update or in the weights; names the last good checkpoint.
        """
        if torch.stack([x.detach().sum() for x in (metrics, *self.model.parameters())]).isfinite().all():
            return
        kept = self.run_dir / "checkpoint.pt" if self.rank == 0 else None
        known = "known to rank 0" if kept is None else kept if kept.exists() else "none was written"
        raise ValueError(
            f"The loss or the weights are NaN or inf after {self.global_step} steps. Lower --learning-rate, or scale "
            f"rewards and observations. Last good checkpoint: {known}."
        )

    @property
    def log_due(self) -> bool:
        """Whether this iteration is logged: about 250 of them are, the last one always."""
        done = self.iteration + 1
        return done % max(1, self.num_iterations // 250) == 0 or done == self.num_iterations

    def log(self, scalars: dict[str, Any]) -> None:
        """Write scalars by tag; return and length of the episodes that ended, and the speed, are added."""
        returns, lengths = self.envs.returns, self.envs.lengths
        if self.rank == 0:
            if returns:
                self.last_return = float(np.mean(returns))
                episodes = {"episodic_return": self.last_return, "episodic_length": np.mean(lengths)}
                scalars = scalars | {f"charts/{name}": value for name, value in episodes.items()}
            iterations = self.iteration + 1 - self.first_iteration
            sps = int(iterations * self.steps / (time.time() - self.start_time))
            for tag, value in (scalars | {"charts/SPS": sps}).items():
                self.writer.add_scalar(tag, float(value), self.global_step)
            self.bar.set_postfix_str(f"return {self.last_return:.2f}, {sps:,} steps/s", refresh=False)
        returns.clear(), lengths.clear()  # on every rank, or they would grow for ever

    def finish(self, play: Play, look: Look | None = None) -> dict[str, float]:
        """Save, evaluate as trained and with the mask removed, write scores and pictures; returns the scores.

        Args:
            play: acts for observations and masks.
            look: what the agent attends to, for a picture.
        """
        if self.args.eval_only:
            scores = {name: self._scores(play, masked) for name, masked in self._arms().items()}
            print(json.dumps(scores, indent=2))
            return scores["as_trained"]
        if self.args.save_model or self.stopping:
            self._save()
        scores = {}
        if self.rank == 0:
            if not self.stopping:
                scores = self._evaluate(play, look)
            self.writer.close()
        self.envs.close()
        leave_ranks()
        return scores

    def _arms(self) -> dict[str, bool]:
        return {"as_trained": not self.free_play, "no_mask": False}

    def _scores(self, play: Play, masked: bool) -> dict[str, float]:
        envs = self.make_vec(min(self.args.eval_episodes, self.args.num_envs), require_mask=masked)
        return evaluate(play, envs, self.args.eval_episodes, masked)

    def _evaluate(self, play: Play, look: Look | None) -> dict[str, float]:
        scores, step = {}, self.num_iterations * self.steps
        if self.args.eval_episodes:
            as_trained, removed = (self._scores(play, masked) for masked in self._arms().values())
            scores = as_trained | {f"{key}_no_mask": value for key, value in removed.items()}
            write_scores(self.writer, self.args, scores, step)
            print("Evaluation: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))
        if self.args.eval_episodes or self.args.capture_video:
            gif = self.run_dir / "agent.gif" if self.args.capture_video else None
            make_one = partial(self.make_vec, 1, require_mask=self.require_mask)
            write_pictures(self.writer, make_one, play, not self.free_play, look, gif, step)
        return scores

    def _save(self) -> None:
        mine = {
            "generator": self.generator.get_state(),
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "envs": swap_arrays(self.envs.get_state()),
            # equal on all ranks, whose weights are the same
            "weights_sum": sum(p.detach().double().sum().cpu() for p in self.model.parameters()),
        }
        ranks = gather(mine | {name: thing.get_state() for name, thing in self.own.items()})
        if self.rank == 0:
            state = {name: thing.state_dict() for name, thing in self.shared.items()}
            script = {"script": self.script, "args": dict(vars(self.args)), "iteration": self.iteration}
            save_checkpoint(self.run_dir / "checkpoint.pt", script | self.shapes | state | {"ranks": ranks})
