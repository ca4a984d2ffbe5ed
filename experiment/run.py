"""`Run`: all that stands around an algorithm, from the flags of the command line to the scores at the end."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

from envs.make import make_vec, parse_env_kwargs
from envs.uniform import UniformVectorEnv
from experiment.board import Board
from experiment.checkpoint import check_shapes, load_checkpoint, rank_state, restore_rank, save_checkpoint
from experiment.evaluation import Play, evaluate
from experiment.fast import columns_first, compiled
from experiment.flags import check_flags
from experiment.pictures import Look, write_pictures
from experiment.ranks import gather, mean_over_ranks
from experiment.signals import StopOnSignal


class Run:
    """One training, or one evaluation of a checkpoint. Its methods are called in the order in which they stand here.

    Args:
        args: flags of the script. Those that count are in `self.args`: a checkpoint brings its own.
        file: the script's `__file__`.

    Raises:
        ValueError: a flag out of its range, flags that do not fit together, or a checkpoint that cannot be used.
    """

    def __init__(self, args: Any, file: str):
        self.script, self.checkpoint, self.board = Path(file).stem, None, None
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if path := args.eval_only or args.resume:
            self.checkpoint, args = load_checkpoint(path, args, self.script)
        self.args, self.path, self.iteration, self.global_step = args, path, 0, 0
        args.exp_name = args.exp_name or self.script
        self.steps = check_flags(args, self.world_size)  # of all environments in an iteration
        self.num_iterations = args.total_timesteps // self.steps
        self.free_play = args.mask_mode in ("penalty", "none")  # the mask does not restrict what is played

        use_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
        torch.set_num_threads(args.num_threads)
        torch.use_deterministic_algorithms(args.torch_deterministic and use_cuda, warn_only=True)  # CPUs are anyway
        torch.manual_seed(args.seed)
        self.generator = torch.Generator(self.device).manual_seed(args.seed + self.rank)
        self.rng = np.random.default_rng(args.seed + self.rank)
        if self.world_size > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo")

    def make_envs(self, num_envs: int, **layout: Any) -> UniformVectorEnv:
        """This rank's environments; `layout` as for `make_vec`, here and in evaluation and pictures."""
        layout |= {"env_kwargs": parse_env_kwargs(self.args.env_kwargs), "async_envs": self.args.async_envs}
        self.make_vec = partial(make_vec, self.args.env_id, **layout)
        self.make_one = partial(self.make_vec, 1, require_mask=not self.free_play)
        if self.args.capture_video:
            self.make_one(render_mode="rgb_array").close()
        # One is enough to tell shapes, where none of them is stepped.
        self.envs = self.make_vec(1 if self.args.eval_only else num_envs, require_mask=self.args.mask_mode != "none")
        self.renders = "rgb_array" in self.envs.metadata.get("render_modes", ())
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
        self.own = {name: thing for name, thing in objects.items() if name not in self.shared} | {"envs": self.envs}
        self.shapes = {"obs_shape": list(self.envs.single_observation_space.shape), "nvec": self.envs.nvec.tolist()}
        if self.checkpoint:
            check_shapes(self)
            for name, thing in self.shared.items():
                thing.load_state_dict(self.checkpoint[name])

    def compile(self, function: Callable) -> Callable:
        """The function, compiled if `--compile` asks for it; ranks meet between two graphs."""
        return compiled(function, fullgraph=self.world_size == 1) if self.args.compile else function

    def begin(self) -> tuple[np.ndarray, np.ndarray]:
        """The first observations and masks: of a new run, for which a folder is made, or where a checkpoint left off.

        Raises:
            ValueError: the checkpoint was written by another number of ranks.
        """
        seed = self.args.seed + self.rank * self.envs.num_envs
        self.envs.reset(seed=seed)
        if not self.args.eval_only:
            if self.checkpoint:
                restore_rank(self, seed)
            if self.rank == 0:
                folder, first, last = Path(self.path).parent if self.path else None, self.iteration, self.num_iterations
                self.board = Board(self.args, folder, first * self.steps, last * self.steps)
        return self.envs.last_obs, self.envs.last_mask

    def iterations(self) -> Iterator[int]:
        """Numbers of the iterations that are left, none with `--eval-only`; between them, signals and checkpoints."""
        self.stopping = False  # agreed by all ranks, so that all stop after the same iteration
        if self.args.eval_only:
            return
        stop, log_every = StopOnSignal(), max(1, self.num_iterations // 250)
        while self.iteration < self.num_iterations and not self.stopping:
            # Both of the end of this iteration: environment steps over all ranks, and whether they are logged.
            self.global_step = (self.iteration + 1) * self.steps
            self.log_due = (self.iteration + 1) % log_every == 0 or self.iteration + 1 == self.num_iterations
            yield self.iteration
            self.iteration += 1
            if self.board:
                self.board.bar.update(self.steps)
            self.stopping = bool(self.mean(torch.tensor(float(stop.stopped_by is not None))) > 0)
            if self.args.checkpoint_every and self.iteration % self.args.checkpoint_every == 0:
                self._save()
        stop.restore()
        if self.board:
            self.board.bar.close()
            if self.stopping:
                name = stop.stopped_by.name if stop.stopped_by else "a signal to another rank"
                print(f"Stopped by {name}. Continue with --resume {self.board.folder / 'checkpoint.pt'}")

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on this run's device; on a CPU it is the same memory."""
        return torch.from_numpy(array).to(self.device)

    def mean(self, x: Any) -> Any:
        """The mean over all ranks of a tensor, or of each tensor of a tuple, the same on each."""
        if self.world_size == 1:
            return x
        return mean_over_ranks(x) if isinstance(x, tuple) else mean_over_ranks((x,))[0]

    def check_finite(self, *tensors: Tensor) -> None:
        """Stop a training that has diverged, before its weights are saved over the last good ones.

        Raises:
            ValueError: NaN or inf in the metrics of the last update, or in weights; names the last good checkpoint.
        """
        if not torch.stack([x.detach().sum() for x in tensors]).isfinite().all():
            kept = self.board.folder / "checkpoint.pt" if self.board else None
            known = "known to rank 0" if kept is None else kept if kept.exists() else "none was written"
            raise ValueError(
                f"The loss or the weights are NaN or inf after {self.global_step} steps. Lower --learning-rate, or "
                f"scale rewards and observations. Last good checkpoint: {known}."
            )

    def log(self, scalars: dict[str, Any]) -> None:
        """Write scalars by tag; return and length of the episodes that ended, and the speed, are added."""
        if self.board:
            self.board.log(scalars, self.envs.returns, self.envs.lengths, self.global_step)
        self.envs.returns.clear(), self.envs.lengths.clear()  # on every rank, or they would grow for ever

    def finish(self, play: Play, look: Look | None = None) -> dict[str, float]:
        """Save, evaluate as trained and with the mask removed, write scores and pictures; returns the scores.

        Args:
            play: acts for observations and masks.
            look: what the agent attends to, for a picture.
        """
        scores, step = {}, self.iteration * self.steps
        if not self.args.eval_only and (self.args.save_model or self.stopping):
            self._save()
        if self.args.eval_episodes and self.rank == 0 and not self.stopping:
            as_trained, removed = (self._evaluate(play, masked) for masked in (not self.free_play, False))
            scores = as_trained | {f"{key}_no_mask": value for key, value in removed.items()}
            if self.args.eval_only:
                print(json.dumps({"as_trained": as_trained, "no_mask": removed}, indent=2))
            else:
                self.board.show_scores(scores, step)
        if self.board:
            if not self.stopping and (self.args.eval_episodes or self.args.capture_video):
                gif = self.board.folder / "agent.gif" if self.args.capture_video else None
                one = self.make_one(render_mode="rgb_array" if gif or self.renders else None)
                write_pictures(self.board.writer, one, play, look, gif, step)
            self.board.writer.close()
        self.envs.close()
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()
        return scores

    def _evaluate(self, play: Play, masked: bool) -> dict[str, float]:
        episodes = self.args.eval_episodes
        return evaluate(play, self.make_vec(min(episodes, self.args.num_envs), require_mask=masked), episodes)

    def _save(self) -> None:
        self.check_finite(*self.model.parameters())
        ranks = gather(rank_state(self))
        if self.board:
            state = {name: thing.state_dict() for name, thing in self.shared.items()} | {"ranks": ranks}
            script = {"script": self.script, "args": dict(vars(self.args)), "iteration": self.iteration}
            save_checkpoint(self.board.folder / "checkpoint.pt", script | self.shapes | state)
