"""Job routing: send each arriving job to one of many machines, of which only some are up."""

from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.constraints import Mask, VectorMaskFunction
from envs.worlds.drawing import ACCENT, GOLD, GRID, ILLEGAL, INK, LEGAL, MUTED, canvas, cross, pixels, text

KINDS = ("text", "image", "audio", "video")
KIND_COLORS = (ACCENT, LEGAL, "#d97742", "#8a5fa8")
MAX_MACHINES, MAX_TILES = 1024, 64
# A slow machine hurts in proportion to work and urgency, a dear one always: small or patient jobs want a cheap machine.
DELAY_WEIGHT, PRICE_WEIGHT = 0.1, 6.0


@lru_cache
def machines(num_machines: int) -> type[IntEnum]:
    """The enumeration of the field "machine": M0, M1, ... with the values 0, 1, ...

    >>> list(machines(2))
    [<Machine.M0: 0>, <Machine.M1: 1>]
    """
    return IntEnum("Machine", [f"M{m}" for m in range(num_machines)], start=0)


def only_machines_that_are_up(state: dict[str, np.ndarray]) -> dict[str, Mask]:
    """The mask function: one flag per machine, (M,) or (N, M)."""
    return {"machine": Mask(state["up"])}


class JobRouting(BatchedEnv):
    """Route jobs to the machines that are up.

    ## Description
    In each step one job arrives: text, image, audio or video, of some size and urgency. It goes to one of M machines.
    Each machine has a price per job and, for each kind of job, a speed; fast machines tend to be dear. A large urgent
    job is worth an expensive machine, a small or patient one is not. Prices and speeds are fixed by `fleet_seed`, equal
    in all environments and never shown: the agent learns them. After every step one of the machines that are up fails
    and one of those that are down returns, so that always exactly `num_up` are up.

    ## Action Space
    `Discrete(num_machines)`, actions (N,) integers: the machine that gets the job, a value of `machines(num_machines)`.

    ## Observation Space
    A `Dict` of

    | key | shape, dtype | content |
    |-|-|-|
    | `job` | (7,) float32 in [0, 1] | kind (4, one-hot), size, urgency, share of the shift that is left |
    | `up` | (M,) int8 | 1 where the machine is up |

    Only the mask needs `up`; `make_job_routing_vec` hides it from the learner, unless it has `show_up`.

    ## Rewards
    The quality of service, in (0, 1]: `1 / (1 + 0.1 * urgency * size / speed[kind, machine] + 6 * price[machine])`.
    A machine that is down gives 0. Random legal play earns about half of what best play does.

    ## Starting State
    A random job, and `num_up` random machines that are up.

    ## Episode End
    The shift is over after `num_jobs` steps: a termination, since the next shift does not depend on it, and the
    observation tells the time left. `final_info["optimal_return"]` is what the best machine that was up would have
    earned, summed over the steps of this episode; a job that waits counts again. There is no truncation.

    ## Action Mask
    `action_mask` (N, M) int8, 1 where legal: machines that are down are illegal. A job that is sent to one waits, so
    that the step is lost; the clock and the failures go on. The mask is declared by `only_machines_that_are_up`.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        num_machines: M, 2 to 1024.
        num_up: how many machines are up at any time, 1 to M; default M // 2.
        num_jobs: steps in an episode.
        fleet_seed: seed of the machines' speeds and prices.
        render_mode: "rgb_array", "ansi" or None.
        show_up: of `make_job_routing_vec` and the registered id: the learner sees `up` too, so that without the mask it
            can learn what is legal.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/JobRouting-v0", num_machines=6, num_up=2)
        >>> obs, info = env.reset(seed=1)
        >>> obs["job"].shape, info["action_mask"]
        ((7,), array([0, 1, 0, 0, 1, 0], dtype=int8))
        >>> obs, reward, terminated, truncated, info = env.step(1)
        >>> 0 < reward <= 1
        True
        >>> env.step(info["action_mask"].argmin())[1]  # down, hence refused
        0.0
    """

    state_arrays = ("kind", "size", "urgency", "up", "optimum", "total", "last_machine", "last_reward")

    def __init__(
        self,
        num_envs: int,
        num_machines: int = 16,
        num_up: int | None = None,
        num_jobs: int = 64,
        fleet_seed: int = 0,
        render_mode: str | None = None,
    ):
        if not 2 <= num_machines <= MAX_MACHINES:
            raise ValueError(f"num_machines must be 2 to {MAX_MACHINES}, got {num_machines}.")
        self.num_up = num_machines // 2 if num_up is None else num_up
        if not 1 <= self.num_up <= num_machines:
            raise ValueError(f"num_up must be 1 to num_machines={num_machines}, got {num_up}.")
        if fleet_seed < 0:
            raise ValueError(f"fleet_seed must be at least 0, got {fleet_seed}.")
        if num_jobs < 1:
            raise ValueError(f"num_jobs must be at least 1, got {num_jobs}.")
        self.num_machines, self.num_jobs = num_machines, num_jobs
        observation_space = spaces.Dict(
            {"job": spaces.Box(0, 1, (len(KINDS) + 3,), np.float32), "up": spaces.MultiBinary(num_machines)}
        )
        # One step more than a shift has: the base never truncates.
        super().__init__(num_envs, observation_space, spaces.Discrete(num_machines), num_jobs + 1, render_mode)

        fleet = np.random.default_rng(fleet_seed)
        power, skill = fleet.random(num_machines), fleet.random((len(KINDS), num_machines))
        self.speed = np.exp(2 * (power - 1) + 5 * (skill - 1))  # (4, M)
        self.price = np.exp(4 * (power - 1))  # (M,)
        self.slowness, self.dearness = DELAY_WEIGHT / self.speed, 1 + PRICE_WEIGHT * self.price

        self.kind = np.zeros(num_envs, np.int64)
        self.size, self.urgency = np.zeros(num_envs), np.zeros(num_envs)
        self.up = np.zeros((num_envs, num_machines), bool)
        self.optimum, self.total = np.zeros(num_envs), np.zeros(num_envs)
        self.last_machine, self.last_reward = np.full(num_envs, -1), np.zeros(num_envs)

    def best_actions(self) -> np.ndarray:
        """The machine (N,) int64 that earns the most for the present job."""
        return self._offers().argmax(axis=1)

    def _offers(self) -> np.ndarray:
        """What each machine would earn now (N, M) float64: 0 where it is down."""
        delay = (self.urgency * self.size)[:, None] * self.slowness[self.kind]
        return self.up / (delay + self.dearness)

    def _new_jobs(self, rows: np.ndarray, draws: np.ndarray) -> None:
        self.kind[rows] = len(KINDS) * draws[:, 0]
        self.size[rows], self.urgency[rows] = 1 - draws[:, 1], 1 - draws[:, 2]

    def _reset_rows(self, rows: np.ndarray) -> None:
        self._new_jobs(rows, self._uniform(rows, 3))
        self.up[rows] = self._uniform(rows, self.num_machines).argsort(axis=1).argsort(axis=1) < self.num_up
        self.optimum[rows] = self.total[rows] = self.last_reward[rows] = 0
        self.last_machine[rows] = -1

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, machine = self._rows, np.asarray(actions)
        offers = self._offers()
        rewards = offers[rows, machine]
        accepted = rewards > 0  # as every machine that is up earns something
        self.total += rewards
        self.optimum += offers.max(axis=1)
        self.last_machine[:], self.last_reward[:] = machine, rewards
        draws = self._uniform(rows, 3 + self.num_machines)
        self._new_jobs(rows[accepted], draws[accepted, :3])
        if self.num_up < self.num_machines:
            luck = draws[:, 3:] - self.up  # below 0 where the machine is up
            self.up[rows, luck.argmin(axis=1)], self.up[rows, luck.argmax(axis=1)] = False, True
        return rewards, self.elapsed + 1 >= self.num_jobs

    def _observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        job = np.zeros((len(rows), len(KINDS) + 3), np.float32)
        job[np.arange(len(rows)), self.kind[rows]] = 1
        job[:, -3], job[:, -2], job[:, -1] = self.size[rows], self.urgency[rows], 1 - self.elapsed[rows] / self.num_jobs
        return {"job": job, "up": self.up[rows].view(np.int8)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"optimal_return": self.optimum[rows]}

    def _headline(self, row: int) -> str:
        share = f" = {self.total[row] / self.optimum[row]:.0%} of the best" if self.optimum[row] else ""
        return f"step {self.elapsed[row]}/{self.num_jobs}   return {self.total[row]:.2f}{share}"

    def _news(self, row: int) -> str:
        machine, reward = self.last_machine[row], self.last_reward[row]
        if machine < 0:
            return "a new shift begins"
        return f"last job: M{machine} earned {reward:.2f}" if reward else f"M{machine} was down: the job waits"

    def _render_ansi(self, row: int) -> str:
        kind, up, shown = self.kind[row], self.up[row], min(self.num_machines, MAX_TILES)
        offers = self._offers()[row]
        best = offers.argmax()

        def tile(m: int) -> str:
            sign = (">" if m == self.last_machine[row] else " ") + ("*" if m == best else " ")
            state = f"{offers[m]:.2f}" if up[m] else " xx "
            return f"{sign}{f'M{m}':<4} {state} {coins(self.price[m]) * '$':<4}"

        tiles = [tile(m) for m in range(shown)]
        return "\n".join(
            [
                self._headline(row),
                f"job: {KINDS[kind]}, size {self.size[row]:.2f}, urgency {self.urgency[row]:.2f}   ({self._news(row)})",
                *(" | ".join(tiles[i : i + 4]) for i in range(0, shown, 4)),
                *([f"+{self.num_machines - shown} more"] if shown < self.num_machines else []),
                f"* best choice (M{best}: {offers[best]:.2f})   > last choice   xx down   $ price",
            ]
        )

    def _render_rgb(self, row: int) -> np.ndarray:
        kind, color = self.kind[row], KIND_COLORS[self.kind[row]]
        offers = self._offers()[row]
        best, shown = offers.argmax(), min(self.num_machines, MAX_TILES)
        image, draw = canvas(800, 500)
        text(draw, (24, 28), "Job routing", 20, anchor="lm")
        text(draw, (776, 28), self._headline(row), 14, anchor="rm")

        # The job: a card in the colour of its kind.
        draw.rounded_rectangle([24, 56, 204, 446], 12, fill="white", outline=GRID, width=2)
        draw.rounded_rectangle([24, 56, 204, 126], 12, fill=color, corners=(True, True, False, False))
        text(draw, (114, 80), "job", 13, "white")
        text(draw, (114, 102), KINDS[kind], 22, "white")
        half = 12 + 42 * np.sqrt(self.size[row])  # the area of the parcel is the size of the job
        draw.rounded_rectangle([114 - half, 202 - half, 114 + half, 202 + half], 6, fill=color)
        for y, name, value in ((300, "size", self.size[row]), (350, "urgency", self.urgency[row])):
            text(draw, (44, y), name, 14, anchor="lm")
            text(draw, (184, y), f"{value:.2f}", 14, anchor="rm")
            gauge(draw, (44, y + 13, 184, y + 23), value, color)
        text(draw, (44, 400), "time left", 14, anchor="lm")
        gauge(draw, (44, 413, 184, 423), 1 - self.elapsed[row] / self.num_jobs, MUTED)

        # The machines: a square grid of tiles that share the space at the right.
        columns = int(np.ceil(np.sqrt(shown)))
        pitch_x, pitch_y = min(552 / columns, 184), min(394 / np.ceil(shown / columns), 132)
        font = 15 if columns < 6 else 10
        for m in range(shown):
            x, y = 224 + m % columns * pitch_x, 56 + m // columns * pitch_y
            right, bottom, middle = x + pitch_x - 8, y + pitch_y - 8, y + (pitch_y - 8) / 2
            is_up, is_best, is_last = self.up[row, m], m == best, m == self.last_machine[row]
            outline, width = (GOLD, 4) if is_best else (INK, 2) if is_last else (GRID, 1)
            fill = "#fdf3dc" if is_best else "white" if is_up else GRID
            draw.rounded_rectangle([x, y, right, bottom], 7, fill=fill, outline=outline, width=width)
            text(draw, (x + 8, y + font), f"M{m}", font, INK if is_up else MUTED, "lm")
            if not is_up:
                cross(draw, ((x + right) / 2, middle + font / 2), pitch_y / 7)
                continue
            text(draw, (right - 8, y + font), f"{offers[m]:.2f}", font, LEGAL, "rm")
            radius = font / 3
            for coin in range(coins(self.price[m])):
                left = x + 9 + coin * radius * 2.6
                draw.ellipse([left, middle - radius, left + 2 * radius, middle + radius], fill=GOLD, outline="#b8862d")
            swiftness = 1 + np.log(self.speed[kind, m]) / 7  # speeds span e**-7 to 1
            gauge(draw, (x + 8, bottom - font, right - 8, bottom - font / 2), swiftness, color)

        refused = self.last_machine[row] >= 0 and not self.last_reward[row]
        more = f"   (+{self.num_machines - shown} more)" if shown < self.num_machines else ""
        text(draw, (24, 474), self._news(row), 14, ILLEGAL if refused else INK, "lm")
        text(draw, (236, 474), f"best now: M{best}, {offers[best]:.2f}{more}", 14, anchor="lm")
        text(draw, (776, 474), "bar: speed   coins: price   gold: best   dark: last", 12, MUTED, "rm")
        return pixels(image)


def coins(price: float) -> int:
    """The price as 1 to 4 coins, for the pictures."""
    return min(4, 1 + int(4 * (1 + np.log(price) / 4)))


def gauge(draw: Any, box: tuple[float, float, float, float], share: float, color: str) -> None:
    """A horizontal bar that is filled up to `share` in [0, 1]."""
    left, top, right, bottom = box
    draw.rounded_rectangle(box, 3, fill=GRID)
    draw.rounded_rectangle([left, top, left + max(share * (right - left), 4), bottom], 3, fill=color)


def make_job_routing_vec(
    num_envs: int,
    num_machines: int = 16,
    num_up: int | None = None,
    num_jobs: int = 64,
    fleet_seed: int = 0,
    render_mode: str | None = None,
    show_up: bool = False,
) -> VectorMaskFunction:
    """`JobRouting` with its action mask, and with the machines' availability kept from the learner, or shown.

    >>> env = make_job_routing_vec(num_envs=3, num_machines=4)
    >>> obs, infos = env.reset(seed=0)
    >>> obs["job"].shape, infos["action_mask"].shape
    ((3, 7), (3, 4))
    """
    env = JobRouting(num_envs, num_machines, num_up, num_jobs, fleet_seed, render_mode)
    hide = () if show_up else ("up",)
    return VectorMaskFunction(env, {"machine": machines(num_machines)}, only_machines_that_are_up, hide)
