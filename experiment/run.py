"""`Run`: all that stands around an algorithm, from the flags of the command line to the scores at the end."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from envs.episodes import Play, check_frame, closing
from envs.make import make_vec, parse_env_kwargs
from envs.players import introduce
from envs.statistics import Statistics
from envs.uniform import UniformVectorEnv
from experiment.board import Board
from experiment.checkpoint import SOURCES, begin_rank, load_checkpoint, rank_state, restore_shared, save_checkpoint
from experiment.evaluation import score
from experiment.fast import columns_first, compiled
from experiment.flags import check_flags
from experiment.notes import attempt, say
from experiment.pictures import Look, write_pictures
from experiment.ranks import gather, mean_over_ranks, rank_seed
from experiment.signals import StopOnSignal, rescuing


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
        self.unsaved, self.saved = False, None  # whether the last checkpoint could not be written; its iteration
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if given := [name for name in SOURCES if getattr(args, name) is not None]:
            self.checkpoint, args, self.path = load_checkpoint(given, args, self.script)
        self.args, self.kept = args, args.resume
        self.iteration = self.global_step = 0
        args.exp_name = self.script if args.exp_name is None else args.exp_name
        self.steps = check_flags(args, self.world_size)  # of all environments in an iteration
        self.num_iterations = 0 if args.eval_only else args.total_timesteps // self.steps
        self.free_play = args.mask_mode in ("penalty", "none")  # the mask does not restrict what is played

        use_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
        torch.set_num_threads(args.num_threads)
        torch.use_deterministic_algorithms(args.torch_deterministic and use_cuda, warn_only=True)  # CPUs are anyway
        torch.manual_seed(args.seed)
        self.seed = rank_seed(args.seed, self.rank)
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        self.rng = np.random.default_rng(self.seed)
        if self.world_size > 1:
            patience = timedelta(days=7)  # for rank 0, which evaluates alone; who dies ends all of them anyway
            dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=patience)

    def make_envs(self, num_envs: int, **layout: Any) -> UniformVectorEnv:
        """This rank's environments; `layout` as for `make_vec`, here and in evaluation and pictures."""
        self.statistics = Statistics(self.args.norm_obs, self.args.norm_reward, self.args.gamma)
        layout |= {"env_kwargs": parse_env_kwargs(self.args.env_kwargs), "async_envs": self.args.async_envs}
        self.make_vec = partial(make_vec, self.args.env_id, statistics=self.statistics, learns=False, **layout)
        self.make_one = partial(self.make_vec, 1, require_mask=not self.free_play)
        if self.args.capture_video:
            check_frame(partial(self.make_one, render_mode="rgb_array"))
        count = 1 if self.args.eval_only else num_envs  # one is enough to tell shapes, where none of them is stepped
        self.envs = self.make_vec(count, require_mask=self.args.mask_mode != "none", learns=not self.args.eval_only)
        self.envs.step = rescuing(self, self.envs.step)
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
        self.shared["statistics"] = self.statistics
        self.own = {name: thing for name, thing in objects.items() if name not in self.shared} | {"envs": self.envs}
        self.shapes = {"obs_shape": list(self.envs.single_observation_space.shape), "nvec": self.envs.nvec.tolist()}
        if self.checkpoint:
            restore_shared(self)

    def compile(self, function: Callable) -> Callable:
        """The function, compiled if `--compile` asks for it; ranks meet between two graphs."""
        return compiled(function, fullgraph=self.world_size == 1) if self.args.compile else function

    def begin(self) -> tuple[np.ndarray, np.ndarray]:
        """The first observations and masks: of a new run, for which a folder is made, or where a checkpoint left off.

        Raises:
            ValueError: the checkpoint was written by another number of ranks.
        """
        self.envs.reset(seed=self.seed)
        if not self.args.eval_only:
            begin_rank(self)
        if self.rank == 0 and not self.args.eval_only:
            self.board = Board(self.args, self.global_step)
        return self.envs.last_obs, self.envs.last_mask

    def iterations(self) -> Iterator[int]:
        """Numbers of the iterations that are left, none with `--eval-only`; after each, signals and checkpoints."""
        self.stopped_by = None  # agreed by all ranks, so that all stop after the same iteration
        log_every, last = max(1, self.num_iterations // 250), self.num_iterations * self.steps
        self.bar = tqdm(total=last, initial=self.global_step, unit="step", unit_scale=True, disable=not self.board)
        with StopOnSignal() as stop, self.bar:
            while self.iteration < self.num_iterations and not self.stopped_by:
                # Both of the end of this iteration: environment steps over all ranks, and whether they are logged.
                self.global_step = (self.iteration + 1) * self.steps
                self.log_due = (self.iteration + 1) % log_every == 0 or self.iteration + 1 == self.num_iterations
                yield self.iteration
                self.iteration += 1
                introduce(self.envs.unwrapped, self.model, self.iteration, self.num_iterations)
                if self.world_size > 1:
                    self.statistics.average(self.mean)
                self.bar.update(self.steps)
                if self.args.checkpoint_every and self.iteration % self.args.checkpoint_every == 0:
                    self.save()
                self._heed(stop)
            wanted = self.num_iterations and (self.args.save_model or self.stopped_by)
            if wanted and self.mean(torch.tensor(float(self.unsaved or self.saved != self.iteration))) > 0:
                self.save()
                self._heed(stop)

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
            cure = "Lower --learning-rate, or scale rewards and observations."
            kept = self.kept or "none that this rank knows of"
            raise ValueError(f"NaN or inf after {self.global_step} steps. {cure} Last good checkpoint: {kept}.")

    def log(self, scalars: dict[str, Any]) -> None:
        """Write scalars by tag; return and length of the episodes that ended, and the speed, are added."""
        if self.board:
            self.board.log(scalars, self.envs.ended, self.global_step, self.bar)
        self.envs.ended.clear()  # on every rank, or they would grow for ever

    def finish(self, play: Play, look: Look | None = None, how: str = "greedy", **others: Play) -> dict[str, float]:
        """Evaluate as trained and with the mask removed, write scores and pictures; returns the scores.

        Args:
            play: acts for observations and masks.
            look: what the agent attends to, for a picture.
            how: it chooses among actions, to be said.
            others: further ways to act without a mask, evaluated under their names.

        Raises:
            SystemExit: 128 + the number of the signal that stopped the run, or 1 if its checkpoint was not written.
        """
        scores = {}
        try:
            if self.stopped_by:
                then = f"Continue with --resume {self.kept}" if self.kept else "Nothing was kept."
                say(f"Stopped by {self.stopped_by.name}. {then}")
            elif self.rank == 0:
                scores = score(self, play, how, others) if self.args.eval_episodes else {}
                if self.board and (self.args.eval_episodes or self.args.capture_video):
                    write_pictures(self, play, look)
            with closing(self.envs):
                if self.world_size > 1:
                    dist.barrier()
                    dist.destroy_process_group()
        except KeyboardInterrupt:
            self.stopped_by = signal.SIGINT
            say("Stopped by SIGINT after the training: scores that are not printed above are lost.")
        finally:
            if self.board:
                with attempt("TensorBoard's file is not complete"):
                    self.board.writer.close()
        if self.stopped_by or self.unsaved:
            raise SystemExit(128 + self.stopped_by if self.stopped_by else 1)
        return scores

    def _heed(self, stop: StopOnSignal) -> None:
        if self.mean(torch.tensor(float(stop.stopped_by is not None))) > 0:
            self.stopped_by = stop.stopped_by or signal.SIGTERM  # that of another rank

    def save(self) -> None:
        """Write a checkpoint of the last iteration; ValueError as `check_finite`."""
        self.check_finite(*self.model.parameters())
        ranks, self.saved = gather(rank_state(self)), self.iteration
        if self.board:
            state = {name: thing.state_dict() for name, thing in self.shared.items()} | {"ranks": ranks}
            script = {"script": self.script, "args": asdict(self.args), "iteration": self.iteration}
            self.unsaved = True
            with attempt(f"{self.board.checkpoint} is not written, and what stood there is left"):
                save_checkpoint(self.board.checkpoint, script | self.shapes | state)
                self.unsaved, self.kept = False, self.board.checkpoint
