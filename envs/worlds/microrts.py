"""MicroRTS, the real-time strategy game of Gym-microRTS: an adapter that steps the Java game as a batched environment.

The game is an optional package, see `INSTALL`. It runs in a Java virtual machine (JVM) inside of this process, which
the first environment starts: there can be one in a process, and it stays until the process ends.
"""

import importlib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.players import POOL, Team
from envs.worlds.drawing import ACCENT, GOLD, GRID, ILLEGAL, INK, LEGAL, MUTED, PAPER, canvas, pixels, text

INSTALL = (
    "MicroRTS needs: pip install jpype1; pip install --no-deps --ignore-requires-python gym-microrts==0.6.0; and a "
    "Java 17 runtime (Debian, Ubuntu: apt install openjdk-17-jre-headless), which JAVA_HOME names if it is not found."
)
REWARDS = ("WinLoss", "ResourceGather", "ProduceWorker", "ProduceBuilding", "Attack", "ProduceCombatUnit")
CHOICES = np.array([6, 4, 4, 4, 4, 7, 49])  # (K,) a unit's action: type, four directions, what to produce, target
STARTS = np.cumsum(CHOICES) - CHOICES  # (K,) where each field begins in a unit's mask (78,)
USES = np.zeros((6, 7), bool)  # [action type, field]: what the type needs; the first type does nothing
USES[:, 0] = USES[[1, 2, 3, 4, 4, 5], [1, 2, 3, 4, 5, 6]] = True
MOVE_TO, PRODUCE_AT, PRODUCT = 1, 4, 5  # fields
Game = tuple[Any, tuple[int, ...], tuple[int, ...]]  # in Java, the environments that are its seats, our side if alone
LEVELS = (5, 5, 3, 8, 6, 2)  # values of each layer that the game gives, one plane for each value; the last is optional


def load_game() -> tuple[ModuleType, Path]:
    """Start the JVM, unless it runs already: gym-microrts' bots, and the folder of the game with its maps.

    gym-microrts' own `vec_env` is left out: it needs the old `gym`, it resets inside of `step`, so that final
    observations are lost, and its JVM takes the signals that end a run.

    Raises:
        ImportError: a package or Java is missing; the message says how to install them.
        RuntimeError: this process has a JVM without the game, or one that has been shut down.
    """
    try:
        import jpype
        import jpype.imports

        bots = importlib.import_module("gym_microrts.microrts_ai")
    except ImportError as error:
        raise ImportError(f"{error}. {INSTALL}") from error
    folder = Path(bots.__file__).parent / "microrts"
    try:
        if not jpype.isJVMStarted():
            for name in ("ai", "rts", "GNS", "mayariBot"):  # Java packages that the bots' module imports
                jpype.imports.registerDomain(name)
            jars = [folder / "microrts.jar", *sorted((folder / "lib" / "bots").glob("*.jar"))]
            jpype.startJVM(jpype.getDefaultJVMPath(), classpath=jars, convertStrings=False, interrupt=False)
        jpype.JClass("tests.JNIGridnetClient")
    except ValueError as error:
        raise ImportError(f"No Java runtime was found. {INSTALL}") from error
    except (OSError, TypeError) as error:
        raise RuntimeError(
            f"The Java virtual machine (JVM) of this process cannot run MicroRTS: {error}. Other code started it, or "
            f"shut it down, and a process can have but one: make the environment first, or in a process of its own."
        ) from error
    return bots, folder


class MicroRTS(BatchedEnv):
    """Command all units of an army at once, one action for each cell that holds a unit of one's own.

    ## Description
    Two players on a small map harvest resources, build bases, barracks, workers and soldiers, and try to destroy each
    other; the rules are those of MicroRTS (Ontanon 2013, https://github.com/Farama-Foundation/MicroRTS), which runs as
    it is, through gym-microrts (Huang et al. 2021, https://arxiv.org/abs/2105.13807). A unit that was told to do
    something is busy for some frames of the game and takes no orders meanwhile: a worker's move takes 10, its harvest
    20.

    ## Action Space
    `MultiDiscrete` of shape (H, W, 7) with (6, 4, 4, 4, 4, 7, 49) choices in each cell, actions (N, H, W, 7) integers:

    | field | meaning |
    |-|-|
    | 0 | 0 nothing, 1 move, 2 harvest, 3 return, 4 produce, 5 attack |
    | 1-4 | the way to move, to harvest, to return, to produce: 0 up, 1 right, 2 down, 3 left |
    | 5 | what to produce: 0 resource (never legal), 1 base, 2 barracks, 3 worker, 4 light, 5 heavy, 6 ranged |
    | 6 | the attacked cell in the 7 x 7 cells around the unit, row by row; 24 is the unit itself |

    ## Observation Space
    A `Box` (27, H, W) uint8 of planes that are 0 or 1; with `partial_obs` (29, H, W), and hidden units are left out:

    | planes | one of them is 1 in each cell |
    |-|-|
    | 0-4 | hit points: 0, 1, 2, 3, 4 or more |
    | 5-9 | resources in the deposit, base or worker: 0, 1, 2, 3, 4 or more |
    | 10-12 | owner: nobody, oneself, the opponent |
    | 13-20 | what is there: nothing, resource, base, barracks, worker, light, heavy, ranged |
    | 21-26 | what the unit is doing: the values of field 0 |
    | 27-28 | with `partial_obs`: the game's last layer, whether the cell is visible |

    Walls are not in the planes of gym-microrts 0.6.0.

    ## Rewards
    The sum of the game's six, weighted by `reward_weights`: +1 for a win and -1 for a loss; +1 for each harvest and
    each return; for each worker; each building; each attack; each soldier. All but the first count when they begin.
    They show the way to a first win, but come by the hundred in a long game, where a win comes once: who gathers and
    holds out would get more than who wins. So their weights `fade`, and in the end the return is won or lost games.

    ## Starting State
    That of the map. The seed changes nothing but past selves: the bots that use chance draw it in Java.

    ## Episode End
    Termination: one side has no unit left. Truncation: after `max_episode_steps`. `final_info` has `success`, 1 where
    the game was won, `drawn`, where time ran out or nobody was left, and `lost`. With several opponents it also has the
    points by who was met, `points_coacAI` and so on, 1 for a win and a half for a draw, NaN in other games.

    ## Past selves
    In a `share` of the games of self-play one seat, drawn, is played by one of the last 16 agents that this training
    was earlier (`meet`), once there is one. No unit of that seat is in `agent_mask`, so that its log-probability,
    entropy and gradient are 0, and no script has to know. Its rewards are those of the past self, and its episode does
    not count (`by_other`). `final_info` of the other seat has `points_pool`, 1 for a win and a half for a draw, NaN in
    other games.

    ## Action Mask
    `agent_mask` (N, H, W) int8 is 1 where a unit of one's own takes orders and has a choice; `action_mask`
    (N, 78, H, W) int8 is 1 where it may do this, and 0 in other cells. A field without a legal entry, such as the
    target of a unit that cannot attack, has its first one open; the type that would use it is illegal then. Orders that
    the mask forbids never reach the game and are as good as nothing. gym-microrts' masks look at units as they stand,
    and allow what the game refuses: cells that another unit is on its way to, resources that an order under way will
    cost. These are closed here. What is left are orders of one frame that exclude each other, moves into one cell or
    products that the resources do not all pay for: the game takes the first, in the order of cells.

    `uses` (6, 7) bool says which fields an order needs; the others do not count.

    The game cannot be saved: there is no `get_state`, and a resumed run begins with new games, and with no past self;
    its rewards fade from where they were.

    ## Arguments
    Args:
        num_envs: N, environments in the batch, stepped one after the other in Java.
        map_path: of the map, from the game's folder `microrts`, or absolute.
        opponents: names of bots in `gym_microrts.microrts_ai`, such as coacAI, workerRushAI, randomBiasedAI and
            passiveAI, dealt to the environments in turn.
        partial_obs: hide what no unit of one's own sees, from both sides.
        self_play: the environments 2i and 2i + 1 are the two seats of one game; the last of an odd number plays the
            first of `opponents`.
        share: of the games of self-play that are against past selves.
        frame_skip: frames after each step in which no orders are given; rewards are summed.
        skip_idle: play on to the next frame in which a unit of one's own takes orders (in self-play: of either side),
            so that steps, discount and entropy are those of decisions; rewards are summed.
        exact_masks: forbid what the game would refuse, see above; off, the masks are those of gym-microrts.
        reward_weights: of the six rewards.
        fade: steps of the batch, from the beginning of the training, over which all weights but the first fall to 0; 0:
            they stay. An evaluation begins anew, with all of them: look at `success`.
        max_episode_steps: frames until truncation; with `frame_skip` and without `skip_idle` steps.
        render_mode: "rgb_array" or None; drawn here, the game's own pictures need a screen.

    Raises:
        ImportError, RuntimeError: as `load_game`.
        ValueError: unknown map or bot, or an argument out of its range.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/MicroRTS-v0", opponents=("passiveAI",))  # doctest: +SKIP
        >>> obs, info = env.reset()  # doctest: +SKIP
        >>> obs.shape, info["action_mask"].shape, info["agent_mask"].sum()  # doctest: +SKIP
        ((27, 8, 8), (78, 8, 8), 2)
    """

    metadata = BatchedEnv.metadata | {"render_modes": ["rgb_array"], "render_fps": 20}
    # BatchedEnv's methods are hidden, so that `hasattr` says that the game cannot be saved.
    get_state = set_state = property()

    uses: np.ndarray | None = USES

    def __init__(
        self,
        num_envs: int,
        map_path: str = "maps/8x8/basesWorkers8x8.xml",
        opponents: str | tuple[str, ...] = ("coacAI",),
        partial_obs: bool = False,
        self_play: bool = False,
        share: float = 0.0,
        frame_skip: int = 0,
        skip_idle: bool = True,
        exact_masks: bool = True,
        reward_weights: tuple[float, ...] = (10.0, 0.3, 0.3, 0.06, 0.3, 0.6),
        fade: int = 10_000,
        max_episode_steps: int = 2000,
        render_mode: str | None = None,
    ):
        names = (opponents,) if isinstance(opponents, str) else tuple(opponents)
        if min(frame_skip, fade) < 0 or len(reward_weights) != len(REWARDS):
            expected = f"frame_skip and fade at least 0 and {len(REWARDS)} reward_weights, for {', '.join(REWARDS)}"
            raise ValueError(f"Expected {expected}; got {frame_skip}, {fade} and {reward_weights}.")
        if not 0 <= share <= 1 or (share and not self_play):
            raise ValueError(f"Expected share from 0 to 1, and self_play with it; got {share} and {self_play}.")
        bots, folder = load_game()
        known = sorted(name for name, value in vars(bots).items() if callable(value))
        if not names or set(names) - set(known):
            raise ValueError(f"opponents must be among {', '.join(known)}; got {opponents!r}.")
        path = folder / map_path
        if not path.is_file():
            raise ValueError(f"map_path {map_path!r} is no file; the maps of the game are in {folder / 'maps'}.")
        world = ElementTree.parse(path).getroot()
        self.height, self.width = int(world.get("height")), int(world.get("width"))
        self.walls = np.array(list(world.findtext("terrain").strip())).reshape(self.height, self.width) == "1"
        self.exact_masks, self.skip_idle, self.frame_skip = exact_masks, skip_idle, frame_skip
        self.reward_weights, self.fade = np.array(reward_weights, np.float64), fade

        levels = np.array(LEVELS if partial_obs else LEVELS[:-1])
        self._layer, self._most = np.repeat(np.arange(len(levels)), levels), (levels - 1)[:, None, None]
        self._value = np.concatenate([np.arange(n) for n in levels])[:, None, None]  # (C, 1, 1)
        shape = (self.height, self.width)
        observation_space = spaces.Box(0, 1, (levels.sum(), *shape), np.uint8)
        super().__init__(num_envs, observation_space, self._action_space(), max_episode_steps, render_mode)
        self.layers = np.zeros((num_envs, len(levels), *shape), np.int32)  # what the game shows
        self.masks = np.zeros((num_envs, shape[0] * shape[1], 1 + CHOICES.sum()), np.int8)  # takes orders; legal ones
        self.taken = np.zeros((num_envs, shape[0] * shape[1]), bool)  # cells, by orders under way
        self.funds = np.zeros(num_envs, np.int64)  # resources that no order under way will cost
        self.result = np.zeros(num_envs)  # of the last step: 1 won, -1 lost, 0 neither
        self.share, self.meets, self.pool = share, share > 0, []  # past selves
        self.past = np.full(num_envs, -1)  # which of them plays a seat, -1 for none

        from jpype import JArray, JClass, JInt

        self._no_orders, self._to_java = JArray(JArray(JInt))([]), JArray.of
        self._hide = JClass("rts.PartiallyObservableGameState") if partial_obs else None  # its own lags by one frame
        units = JClass("rts.units.UnitTypeTable")()
        self._costs = np.array([int(kind.cost) for kind in units.getUnitTypes()])  # (7,), in the order of field 5
        rewards = JArray(JClass("ai.rewardfunction.RewardFunctionInterface"))(
            [JClass(f"ai.rewardfunction.{name}RewardFunction")() for name in REWARDS]
        )
        paired = num_envs // 2 * 2 if self_play else 0
        pair, single = JClass("tests.JNIGridnetClientSelfPlay"), JClass("tests.JNIGridnetClient")
        self.games: list[Game] = []
        for i in range(0, paired, 2):
            self.games.append((pair(rewards, "", str(path), units, partial_obs), (i, i + 1), ()))
        self.bots = np.array([""] * paired + [names[i % len(names)] for i in range(num_envs - paired)])
        for i in range(paired, num_envs):
            bot = getattr(bots, self.bots[i])(units)
            self.games.append((single(rewards, "", str(path), bot, units, partial_obs), (i,), (0,)))

    def meet(self, agent: torch.nn.Module) -> None:
        """Take a copy of the agent into the pool of past selves."""
        self.pool = [*self.pool, Team(agent)][-POOL:]

    def _action_space(self) -> spaces.MultiDiscrete:
        return spaces.MultiDiscrete(np.tile(CHOICES, (self.height, self.width, 1)))

    def _orders(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Who is told what: environments (P,), cells (P,) and actions (P, 7)."""
        rows, cells = np.nonzero(self.masks[..., 0])
        return rows, cells, actions.reshape(self.num_envs, -1, len(CHOICES))[rows, cells]

    def _reset_rows(self, rows: np.ndarray) -> None:
        games = [one for one in self.games if one[1][0] in rows]
        for game, _, player in games:
            game.reset(*player)
        self._read_masks(games)
        self._look(games)
        self.past[rows] = -1
        if self.pool:
            pairs = np.array([seats for _, seats, _ in games if len(seats) == 2]).reshape(-1, 2)
            draws = self._uniform(pairs, 3)
            drawn = np.flatnonzero(draws[:, 0] < self.share)
            seats = pairs[drawn, (draws[drawn, 1] < 0.5) * 1]
            self.past[seats] = (draws[drawn, 2] * len(self.pool)).astype(int)

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, cells, orders = self._orders(self._with_past(np.asarray(actions)))
        legal = np.take_along_axis(self.masks[rows, cells, 1:], orders + STARTS, axis=1) > 0
        given = (orders[:, 0] > 0) & (legal | ~USES[orders[:, 0]]).all(axis=1)
        lists, counts = np.column_stack([cells, orders])[given], np.bincount(rows[given], minlength=self.num_envs)
        lists = np.split(lists.astype(np.int32), np.cumsum(counts)[:-1])
        rewards, over = np.zeros((self.num_envs, len(REWARDS))), np.zeros(self.num_envs, bool)
        playing, frames = self.games, np.zeros(self.num_envs, np.int64)
        while playing:
            for game, seats, player in playing:
                told = [self._to_java(lists[s]) if counts[s] and not frames[s] else self._no_orders for s in seats]
                answer = game.gameStep(*told, *player)
                for i, seat in enumerate(seats):
                    rewards[seat] += (answer or game.getResponse(i)).reward
                    frames[seat] += 1
                if game.gs.gameover():
                    over[[*seats]] = True
                    for i, seat in enumerate(seats):  # where nobody is left, the game itself calls it a loss
                        rewards[seat, 0] = {-1: 0, i: 1}.get(game.gs.winner(), -1)
            playing = [one for one in playing if not over[one[1][0]]]
            if not playing or frames[playing[0][1][0]] > self.frame_skip:
                self._read_masks(playing)
                late = self.elapsed + frames >= self.max_episode_steps
                acts = self.masks[..., 0].any(axis=1) | late
                playing = [one for one in playing if self.skip_idle and not acts[[*one[1]]].any()]
        self._look(self.games)
        if self.skip_idle:
            self.elapsed += frames - 1
        self.result = np.where(over, np.sign(rewards[:, 0]), 0)
        rewards[:, 1:] *= max(0.0, 1 - self.age / self.fade) if self.fade else 1.0
        self.age += 1
        return rewards @ self.reward_weights, over

    def _with_past(self, actions: np.ndarray) -> np.ndarray:
        """The actions with those of past selves in their seats."""
        acting = (self.past >= 0) & self.masks[..., 0].any(axis=1)
        for index in np.unique(self.past[acting]):
            rows = np.flatnonzero(acting & (self.past == index))
            masks, seed = self._units(rows), int(self.np_random.integers(2**62))
            orders = self.pool[index].sample(self._observe(rows), masks["agent_mask"], masks["action_mask"], seed)
            actions = actions.copy()
            actions[rows] = orders
        return actions

    def _look(self, games: list[Game]) -> None:
        for game, seats, _ in games:
            for i, seat in enumerate(seats):
                self.layers[seat] = self._shown(game, i).getMatrixObservation(i)
                self.layers[seat, 2] *= self.layers[seat, 3] != 1  # the game gives resources to the second player

    def _shown(self, game: Any, player: int) -> Any:
        return self._hide(game.gs, player) if self._hide else game.gs

    def _read_masks(self, games: list[Game]) -> None:
        read = []
        for game, seats, _ in games:
            for i, seat in enumerate(seats):
                if not game.gs.canExecuteAnyAction(i):
                    self.masks[seat] = 0
                    continue
                read.append(seat)
                self.masks[seat] = np.asarray(game.getMasks(i)).reshape(self.masks.shape[1:])
                if self.exact_masks:
                    state, self.taken[seat] = self._shown(game, i), False
                    usage = state.getResourceUsage()
                    cells = str(usage.getPositionsUsed())[1:-1]  # "3, 12": quicker than to read them one by one
                    self.taken[seat, [int(cell) for cell in cells.split(",") if cell]] = True
                    self.funds[seat] = state.getPlayer(i).getResources() - usage.getResourcesUsed(i)
        if self.exact_masks and read:
            self._close(np.array(read))

    def _close(self, seats: np.ndarray) -> None:
        """Close what orders under way have taken: cells that somebody moves to or builds on, resources to be paid.

        Units that are left without a choice take no orders.
        """
        row, cell = np.nonzero(self.masks[seats, :, 0])
        row = seats[row]
        legal = self.masks[row, cell, 1:]  # (P, 78)
        beside = cell[:, None] + (-self.width, 1, self.width, -1)  # (P, 4) up, right, down, left
        free = ~self.taken[row[:, None], beside % self.taken.shape[1]]
        for field in (MOVE_TO, PRODUCE_AT):
            legal[:, STARTS[field] : STARTS[field] + 4] &= free
        legal[:, STARTS[PRODUCT] : STARTS[PRODUCT] + CHOICES[PRODUCT]] &= self._costs <= self.funds[row, None]
        some = np.add.reduceat(legal, STARTS, axis=1) > 0  # (P, K)
        legal[:, 1] &= some[:, MOVE_TO]
        legal[:, 4] &= some[:, PRODUCE_AT] & some[:, PRODUCT]
        self.masks[row, cell, 0] = legal[:, 1 : CHOICES[0]].any(axis=1)
        self.masks[row, cell, 1:] = legal * self.masks[row, cell, :1]

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        layers = self.layers[rows].clip(0, self._most)
        return (layers[:, self._layer] == self._value).view(np.uint8)

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        info, others = self._units(rows), self.past[rows] >= 0
        for masks in info.values():
            masks[others] = 0
        return info

    def _units(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The masks of all units of these seats, whoever plays them."""
        row, cell = np.nonzero(self.masks[rows, :, 0])
        shape = (len(rows), -1, self.height, self.width)
        agents = np.zeros((len(rows), self.masks.shape[1]), np.int8)
        legal = np.zeros((len(rows), CHOICES.sum(), self.masks.shape[1]), np.int8)
        agents[row, cell] = 1
        legal[row, :, cell] = open_empty_fields(self.masks[rows[row], cell, 1:], CHOICES)
        return {"action_mask": legal.reshape(shape), "agent_mask": agents.reshape(shape)[:, 0]}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        result = self.result[rows]
        info = {"success": (result > 0) * 1.0, "drawn": (result == 0) * 1.0, "lost": (result < 0) * 1.0}
        names = set(self.bots) - {""}
        if len(names) > 1:
            points = (1 + result) / 2
            info |= {f"points_{name}": np.where(self.bots[rows] == name, points, np.nan) for name in names}
        if self.meets:
            other = np.minimum(rows ^ 1, self.num_envs - 1)  # the other seat; who is alone is its own
            info["points_pool"] = np.where(self.past[other] >= 0, (1 + result) / 2, np.nan)
            info["by_other"] = self.past[rows] >= 0
        return info

    def _render_rgb(self, row: int) -> np.ndarray:
        # Drawn at twice the size and halved at the end: smooth edges.
        tile, top = 2 * max(20, 480 // self.width), 72
        image, draw = canvas(tile * self.width, tile * self.height + top)
        points, resources, owners, kinds, doing = self.layers[row, :5]
        own, other = ((owners == side).sum() for side in (1, 2))
        text(draw, (image.width / 2, top / 2), f"step {self.elapsed[row]}, {own} units, opponent {other}", 32)
        for y, x in np.ndindex(kinds.shape):
            left, above, kind = x * tile, y * tile + top, kinds[y, x]
            box = np.array([left, above, left + tile, above + tile])
            draw.rectangle(box.tolist(), fill=MUTED if self.walls[y, x] else PAPER, outline=GRID, width=2)
            if kind > 0:
                gap = tile * (0.1, 0.06, 0.14, 0.3, 0.24, 0.14, 0.24)[kind - 1]
                fill = (GOLD, ACCENT, ILLEGAL)[owners[y, x]]
                shape = draw.rectangle if kind <= 3 else draw.ellipse
                edge = {"outline": GOLD if doing[y, x] else INK, "width": tile // 20}
                shape((box + (gap, gap, -gap, -gap)).tolist(), fill=fill, **edge)
                label = str(resources[y, x] or ("", "", "B", "", "L", "H", "R")[kind - 1])
                text(draw, (left + tile / 2, above + tile / 2), label, int(tile * 0.3), INK if kind == 1 else PAPER)
            if kind > 1:
                health = tile * 0.8 * points[y, x] / (10, 4, 1, 4, 4, 1)[kind - 2]
                bar = [left + tile * 0.1, above + tile * 0.9, left + tile * 0.1 + health, above + tile * 0.96]
                draw.rectangle(bar, fill=LEGAL, outline=PAPER)
        return pixels(image.reduce(2))


class MicroRTSHarvest(MicroRTS):
    """Harvest resources and return them, undisturbed: the task on which invalid action masking was published.

    ## Description
    As `MicroRTS`, against a bot that does nothing, and one unit gets an order in a step, which lasts ten frames of the
    game: one with the order, and nine without. Huang & Ontanon 2020, https://arxiv.org/abs/2006.14171.

    ## Action Space
    `MultiDiscrete([H * W, 6, 4, 4, 4, 4, 7, 49])`: the cell of the unit, row by row, and its action as in `MicroRTS`.

    ## Observation Space
    The planes (27, H, W) uint8 of `MicroRTS`.

    ## Rewards
    +1 for each harvest and +1 for each return, when it begins.

    ## Starting State
    A base and a worker for each side; see `size`.

    ## Episode End
    Truncation after `max_episode_steps`. Termination only if one side loses its last unit: attacks are possible.

    ## Action Mask
    `action_mask` (N, H * W + 78) int8. The cells are those of units that take orders. Every other field has what at
    least one of these units may do: the fields of a mask are independent, so it may allow what the chosen unit
    cannot do, and such an order does nothing. A field without a legal entry has its first one open, and so has the
    field of cells if all units are busy.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        size: of the map basesWorkers: 4, 8, 10, 12, 16 or 24; the paper has 4, 10, 16 and 24.
        units_only: mask the source and the target units only, as the paper does; types and ways are all open.
        exact_masks: as in `MicroRTS`; off, as in the paper.
        max_episode_steps: steps until truncation.
        render_mode: "rgb_array" or None.

    Raises:
        ImportError, RuntimeError, ValueError: as `MicroRTS`.
    """

    uses = None  # the type of the order is not the first field

    def __init__(
        self,
        num_envs: int,
        size: int = 10,
        units_only: bool = False,
        exact_masks: bool = False,
        max_episode_steps: int = 200,
        render_mode: str | None = None,
    ):
        self.units_only = units_only
        super().__init__(
            num_envs,
            f"maps/{size}x{size}/basesWorkers{size}x{size}.xml",
            ("passiveAI",),
            frame_skip=9,
            skip_idle=False,
            exact_masks=exact_masks,
            reward_weights=(0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
            fade=0,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )

    def _action_space(self) -> spaces.MultiDiscrete:
        return spaces.MultiDiscrete([self.height * self.width, *CHOICES])

    def _orders(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._rows, actions[:, 0], actions[:, 1:]

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        masks = self.masks[rows]
        legal = np.concatenate([masks[..., 0], masks[..., 1:].max(axis=1)], axis=1)
        if self.units_only:
            legal[:, masks.shape[1] : -CHOICES[-1]] = 1
        return {"action_mask": open_empty_fields(legal, self.single_action_space.nvec)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {}


def open_empty_fields(masks: np.ndarray, nvec: np.ndarray) -> np.ndarray:
    """Masks (..., sum(nvec)) int8 in which a field without a legal entry has its first one open.

    >>> open_empty_fields(np.array([0, 1, 0, 0, 0], np.int8), np.array([2, 3]))
    array([0, 1, 1, 0, 0], dtype=int8)
    """
    masks, starts = masks.copy(), np.cumsum(nvec) - nvec
    masks[..., starts] |= np.add.reduceat(masks, starts, axis=-1) == 0
    return masks
