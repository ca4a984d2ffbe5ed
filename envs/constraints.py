"""Action masks declared instead of filled: a mask function returns one constraint per named action field.

An action type is a dict of named fields, each a nominal enumeration (`enum.IntEnum`; values need not start at 0 nor be
contiguous). A mask function maps the observation to constraints, `In` or `Mask`, per field. A field that it leaves out
is free; a constraint that names nothing leaves no legal value, which is an error.

>>> class Gate(IntEnum):
...     NORTH = 10
...     SOUTH = 20
...     EAST = 40
>>> def open_gates(obs):
...     return {"gate": In(obs["open"])}
>>> legal_actions(open_gates({"open": [20, 40, -1]}), {"gate": Gate})
array([[0, 1, 1]], dtype=int8)

Where the legal values of a field depend on those chosen before, the function takes a second argument, the values chosen
so far by field, is asked field by field, and returns a constraint of the next one; `counts` says where that field does
not matter for what was chosen:

>>> Order, Way = IntEnum("Order", ["WAIT", "MOVE"]), IntEnum("Way", ["UP", "DOWN", "LEFT"])
>>> def open_ways(obs, chosen):
...     return {"way": In(obs["ways"], counts=chosen["order"] == Order.MOVE)} if chosen else {}
>>> obs = {"ways": np.array([[1, 3], [2, 3]])}  # of two environments
>>> next_mask(open_ways, obs, {"order": Order, "way": Way}, np.array([[1], [0]]))  # the first moves, the second waits
array([[1, 0, 1],
       [1, 0, 0]], dtype=int8)
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from inspect import signature
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike

Fields = Mapping[str, type[IntEnum]]
Constraints = Mapping[str, "In | Mask"]


@dataclass(frozen=True)
class In:
    """Only these values of the enumeration are legal.

    Args:
        values: any collection of K whole numbers (list, tuple, set, range, array, enumeration members; floats, as
            observations often are), the same for all environments; or one for each of N environments, an array (N, K)
            or N collections of any length. A value that the enumeration does not have is ignored, so that -1 can pad.
        counts: a flag, or (N,) flags: False where the field does not count for what was chosen before it. It then has
            one legal value, its first, and with it log-probability, entropy and gradient 0.

    Example:
        >>> Size = IntEnum("Size", {"SMALL": 3, "LARGE": 7})
        >>> legal_actions({"size": In({7.0})}, {"size": Size})
        array([[0, 1]], dtype=int8)
        >>> legal_actions({"size": In([[3], [3, 7]])}, {"size": Size}, num_envs=2)
        array([[1, 0],
               [1, 1]], dtype=int8)
        >>> legal_actions({"size": In([])}, {"size": Size})
        Traceback (most recent call last):
        ...
        ValueError: Environment 0: the constraint In on field 'size' leaves no legal value among Size(SMALL=3, LARGE=7).
        Name one, or leave the field out: then it is free.
    """

    values: Collection | ArrayLike
    counts: ArrayLike = True

    def legal(self, field: str, members: np.ndarray, num_envs: int) -> np.ndarray:
        """Flags (N, A) bool: which of `members` (A,), the enumeration's values in its order, are allowed."""
        values = self.values
        flagged = isinstance(values, Mapping) and any(flag is not None for flag in values.values())
        if flagged or isinstance(values, np.ma.MaskedArray):  # what is False or hidden in it would count
            raise ValueError(f"Field {field!r}: In() takes the legal values alone, got {values!r:.60}.")
        if not (isinstance(values, np.ndarray) and values.dtype.kind in "iu"):
            values = _as_numbers(values, field, padding=members.max() + 1)
        if values.ndim not in (1, 2) or (values.ndim == 2 and len(values) != num_envs):
            raise ValueError(
                f"Field {field!r}: In() takes values of shape (K,) or ({num_envs}, K), got {values.shape}."
            )
        values = values if values.ndim == 2 else np.broadcast_to(values, (num_envs, len(values)))
        order = np.argsort(members)
        index = np.searchsorted(members, values, sorter=order).clip(max=len(members) - 1)
        known = members[order[index]] == values
        legal = np.zeros((num_envs, len(members)), bool)
        legal[np.nonzero(known)[0], order[index[known]]] = True
        return legal


@dataclass(frozen=True)
class Mask:
    """One flag per member, in the order in which the enumeration defines them.

    Args:
        flags: bool, or numbers that are 0 or 1, of shape (A,), or (N, A) for N environments. Another length is an
            error; no flags at all leave no legal value.
        counts: as for `In`.

    Example:
        >>> Machine = IntEnum("Machine", {"A": 1, "B": 2, "C": 3})
        >>> legal_actions({"machine": Mask([True, False, True])}, {"machine": Machine})
        array([[1, 0, 1]], dtype=int8)
        >>> legal_actions({"machine": Mask([1, 0])}, {"machine": Machine})
        Traceback (most recent call last):
        ...
        ValueError: Field 'machine': Mask() takes one flag for each of its 3 members, of shape (3,) or (1, 3), got (2,).
    """

    flags: ArrayLike
    counts: ArrayLike = True

    def legal(self, field: str, members: np.ndarray, num_envs: int) -> np.ndarray:
        """Flags (N, A) bool: which of `members` (A,), the enumeration's values in its order, are allowed."""
        count, flags = len(members), np.asarray(self.flags)
        if flags.shape in ((0,), (num_envs, 0)):
            flags = np.zeros(count, bool)
        if flags.shape not in ((count,), (num_envs, count)) or isinstance(self.flags, np.ma.MaskedArray):
            raise ValueError(
                f"Field {field!r}: Mask() takes one flag for each of its {count} members, of shape ({count},) or "
                f"({num_envs}, {count}), got {flags.shape}."
            )
        legal = flags.astype(bool)
        if flags.dtype != bool and (legal != flags).any():
            raise ValueError(f"Field {field!r}: Mask() takes flags that are True or False (1 or 0), got {self.flags}.")
        return legal if legal.ndim == 2 else np.broadcast_to(legal, (num_envs, count))


def _as_numbers(values: Any, field: str, padding: int) -> np.ndarray:
    """What `In` takes as numbers (K,), or (N, K) where rows that are shorter than others end with `padding`."""
    if hasattr(values, "__array__"):
        values = np.asarray(values)
        if values.dtype.kind in "iuf" and (np.isfinite(values) & (values == np.trunc(values))).all():
            return values
        values = values.tolist()
    nested = isinstance(values, Collection) and any(
        isinstance(value, Collection) and not isinstance(value, str) for value in values
    )
    if not nested:
        return _as_row(values, f"Field {field!r}")
    rows = [_as_row(row, f"Environment {i}, field {field!r}") for i, row in enumerate(values)]
    padded = np.full((len(rows), max(map(len, rows))), padding, np.result_type(*rows))
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded


def _as_row(values: Any, where: str) -> np.ndarray:
    """A collection of whole numbers as an array (K,)."""
    values = np.asarray(values).tolist() if hasattr(values, "__array__") else values
    wrong = [values]
    if isinstance(values, Collection):
        wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, Real) or not float(v).is_integer()]
    if wrong:
        flags = " Flags, one for each member, go into Mask()." if isinstance(wrong[0], bool | np.bool_) else ""
        raise ValueError(
            f"{where}: In() takes a collection of whole numbers, values of the enumeration, got {wrong[0]!r}.{flags}"
        )
    return np.array(list(values))


@lru_cache
def _values_of(enumeration: type[IntEnum]) -> np.ndarray:
    return np.array([int(member) for member in enumeration])


def legal_actions(
    constraints: Constraints, fields: Fields, num_envs: int = 1, terminated: np.ndarray | None = None
) -> np.ndarray:
    """The flat action mask (N, sum of members) int8 that the constraints leave; fields are independent of each other.

    A field that has no constraint is free. That is the only way to say so: a constraint that names nothing is an error.

    Args:
        constraints: what a mask function returned; `{}` constrains nothing.
        fields: the action type: the enumeration of each named field, in the order of the action's components.
        num_envs: N.
        terminated: (N,) bool, states that nobody acts in, which may have no legal action; default none of them.

    Raises:
        TypeError: the mask function returned something else than a mapping of field names to `In` or `Mask`.
        ValueError: an unknown field, a constraint of the wrong shape or with values that are no whole numbers, or
            a field left with no legal value, which names the environment's index.

    Example:
        >>> Pick = IntEnum("Pick", {"CUBE": 5, "BALL": 6})
        >>> Place = IntEnum("Place", {"LEFT": 1, "RIGHT": 2})
        >>> legal_actions({"place": Mask([0, 1])}, {"pick": Pick, "place": Place})
        array([[1, 1, 0, 1]], dtype=int8)
        >>> legal_actions({"pick": In([[5], [-1]])}, {"pick": Pick}, num_envs=2)
        Traceback (most recent call last):
        ...
        ValueError: Environment 1: the constraint In on field 'pick' leaves no legal value among Pick(CUBE=5, BALL=6).
        Name one, or leave the field out: then it is free.
    """
    if not isinstance(constraints, Mapping):
        raise TypeError(
            f"A mask function returns a dict of field names to In or Mask, got {type(constraints).__name__}."
        )
    unknown = [name for name in constraints if name not in fields]
    if unknown:
        raise ValueError(f"The mask function constrains unknown fields {unknown}; the action has {list(fields)}.")
    columns = []
    for name, enumeration in fields.items():
        members = _values_of(enumeration)
        if name not in constraints:
            columns.append(np.ones((num_envs, len(members)), bool))
            continue
        constraint = constraints[name]
        if not isinstance(constraint, In | Mask):
            raise TypeError(
                f"Field {name!r}: expected In or Mask, got {type(constraint).__name__}. Leave a free field out."
            )
        legal = constraint.legal(name, members, num_envs)
        counts = np.asarray(constraint.counts)
        if counts.shape not in ((), (num_envs,)) or not ((counts == 0) | (counts == 1)).all():
            expected = f"a bool, or ({num_envs},) of them, one for each environment"
            raise ValueError(f"Field {name!r}: counts takes {expected}, got {constraint.counts!r}.")
        if not counts.all():
            only_first = np.arange(len(members)) == 0
            legal = np.where(np.broadcast_to(counts, num_envs)[:, None], legal, only_first)
        some = legal.any(axis=1) if terminated is None else legal.any(axis=1) | terminated
        if not some.all():
            empty = np.flatnonzero(~some)
            names = ", ".join(f"{member.name}={int(member)}" for member in list(enumeration)[:8])
            raise ValueError(
                f"Environment {empty[0]}: the constraint {type(constraint).__name__} on field {name!r} leaves no legal "
                f"value among {enumeration.__name__}({names}{', ...' if len(members) > 8 else ''}). Name one, or leave "
                f"the field out: then it is free."
            )
        columns.append(legal)
    return np.concatenate(columns, axis=1, dtype=np.int8)


class _Chosen(dict):
    """The values chosen so far by field, which says so where one is read that is not chosen yet."""

    def __missing__(self, field: str) -> None:
        raise ValueError(f"The mask function reads field {field!r}, which is not chosen yet: so far are {list(self)}.")


def next_mask(
    mask_function: Callable, obs: Any, fields: Fields, chosen: np.ndarray, terminated: np.ndarray | None = None
) -> np.ndarray:
    """The mask (N, members) int8 of the field that comes after the choices (N, k), by a mask function of two arguments.

    Args:
        mask_function: maps a batch of observations and the values chosen so far, by field, to a constraint of the next.
        obs: the batch.
        fields: the action type, its fields in the order in which they are chosen.
        chosen: indices of the values chosen so far.
        terminated: (N,) bool, states that nobody acts in.

    Raises:
        TypeError, ValueError: as `legal_actions`, and where the function reads a field that is not chosen yet, or
            constrains another one than the next.
    """
    values = _Chosen((name, _values_of(fields[name])[i]) for name, i in zip(fields, chosen.T, strict=False))
    name = list(fields)[chosen.shape[1]]
    constraints = mask_function(obs, values)
    if isinstance(constraints, Mapping) and not set(constraints) <= {name}:
        raise ValueError(
            f"Asked for field {name!r}, the mask function constrains {list(constraints)}; expected {name!r} only, the "
            f"one that comes after {list(values)}."
        )
    return legal_actions(constraints, {name: fields[name]}, len(chosen), terminated)


class _FieldActions:
    """What both wrappers share: the action space of indices, the enumerations' values, the observation to show."""

    def _declare(
        self, space: gym.Space, inner: gym.Space, fields: Fields, mask_function: Callable, hide: tuple[str, ...]
    ) -> None:
        self.fields, self.mask_function, self.hide = dict(fields), mask_function, hide
        self.members = [_values_of(enumeration) for enumeration in fields.values()]
        if not fields or any(len(members) == 0 for members in self.members):
            raise ValueError("fields names at least one enumeration, and each has at least one member.")
        needed = [x for x in signature(mask_function).parameters.values() if x.default is x.empty]
        self.dependent = len(needed) == 2
        missing = [key for key in hide if not isinstance(space, spaces.Dict) or key not in space.spaces]
        if missing:
            raise ValueError(f"hide={missing}: the observation space has no such keys, it is {space}.")
        self._refuse_strangers(inner)

    def _refuse_strangers(self, inner: gym.Space) -> None:
        """Fields and values that the inner environment, whose action space this is, does not have."""
        if isinstance(inner, spaces.Dict):
            parts = {name: inner.spaces.get(name) for name in self.fields}
            fit = parts.keys() == inner.spaces.keys()
        elif not isinstance(inner, spaces.Discrete | spaces.MultiDiscrete | spaces.Tuple):
            return
        else:
            many = isinstance(inner, spaces.MultiDiscrete)
            pairs = zip(np.ravel(inner.nvec), np.ravel(inner.start), strict=True) if many else ()
            known = [spaces.Discrete(n, start=start) for n, start in pairs] or getattr(inner, "spaces", [inner])
            fit = len(known) == len(self.fields)
            parts = dict(zip(self.fields, known, strict=False))
        if not fit:
            raise ValueError(f"The fields are {list(self.fields)}; expected those of the inner action space {inner}.")
        for (name, part), members in zip(parts.items(), self.members, strict=True):
            strange = [int(x) for x in members if isinstance(part, spaces.Discrete) and not part.contains(x)]
            if strange:
                raise ValueError(f"Field {name!r} has the values {strange}, which are not in {part}.")

    def _index_space(self) -> gym.Space:
        sizes = [len(members) for members in self.members]
        return spaces.Discrete(sizes[0]) if len(sizes) == 1 else spaces.MultiDiscrete(sizes)

    def _shown(self, obs: Any) -> Any:
        return {key: value for key, value in obs.items() if key not in self.hide} if self.hide else obs

    def _shown_space(self, space: gym.Space) -> gym.Space:
        return spaces.Dict(self._shown(space.spaces)) if self.hide else space

    def _masks(self, obs: Any, nobody: np.ndarray) -> np.ndarray:
        """The masks (N, sum of members) of a batch of states; by field, all that follows the first is open so far."""
        if not self.dependent:
            return legal_actions(self.mask_function(obs), self.fields, len(nobody), nobody)
        first = next_mask(self.mask_function, obs, self.fields, np.zeros((len(nobody), 0), np.int64), nobody)
        rest = sum(len(members) for members in self.members[1:])
        return np.concatenate([first, np.ones((len(nobody), rest), np.int8)], axis=1)

    def _values(self, indices: np.ndarray, space: gym.Space) -> Any:
        """Enumeration values for indices (..., K): by name for a Dict action space, else in the fields' order."""
        values = [members[indices[..., k]] for k, members in enumerate(self.members)]
        if isinstance(space, spaces.Dict):
            return dict(zip(self.fields, values, strict=True))
        if isinstance(space, spaces.Tuple):
            return tuple(values)
        return values[0] if isinstance(space, spaces.Discrete) else np.stack(values, axis=-1)


class MaskFunction(_FieldActions, gym.Wrapper):
    """Give any `gymnasium.Env` an action mask that is declared by a function of its observation.

    The wrapped environment takes `Discrete` or `MultiDiscrete` indices, and its infos hold `action_mask` (sum of
    members,) int8. The inner environment receives the enumeration's own values: a dict by field name if its action
    space is a Dict, a tuple if it is a Tuple, a scalar if it is Discrete, else an array in the fields' order.

    Args:
        env: the environment.
        fields: the enumeration of each named action field.
        mask_function: maps the observation to constraints; it sees all of it, hidden keys too. With two arguments it
            is asked field by field, with what was chosen so far; the wrapper then has a method `field_mask`.
        hide: keys of a Dict observation that only the mask needs; the learner does not get them.

    Example:
        >>> from envs.worlds.job_routing import JobRouting, machines, only_machines_that_are_up
        >>> from envs.base import SingleEnv
        >>> env = SingleEnv(JobRouting(num_envs=1, num_machines=4, num_up=2))
        >>> env = MaskFunction(env, {"machine": machines(4)}, only_machines_that_are_up, hide=("up",))
        >>> obs, info = env.reset(seed=1)
        >>> list(obs), int(info["action_mask"].sum())
        (['job'], 2)
    """

    def __init__(self, env: gym.Env, fields: Fields, mask_function: Callable[[Any], Constraints], hide=()):
        super().__init__(env)
        self._declare(env.observation_space, env.action_space, fields, mask_function, tuple(hide))
        self.action_space, self.observation_space = self._index_space(), self._shown_space(env.observation_space)
        if self.dependent and len(self.fields) > 1:
            self.field_mask = self._field_mask

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, with the first state's mask in the info."""
        obs, info = self.env.reset(**kwargs)
        self.mask = self._mask(obs)
        return self._shown(obs), info | {"action_mask": self.mask}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step with indices; the inner environment gets the enumerations' values."""
        values = self._values(np.atleast_1d(action), self.env.action_space)
        obs, reward, terminated, truncated, info = self.env.step(values)
        # Nobody acts in a terminal state, of which the mask function may know nothing.
        nothing = np.zeros(sum(map(len, self.members)), np.int8)
        self.mask = nothing if terminated else self._mask(obs, truncated)
        return self._shown(obs), reward, terminated, truncated, info | {"action_mask": self.mask}

    def action_masks(self) -> np.ndarray:
        """The present state's mask (sum of members,) int8, as sb3-contrib asks for it."""
        return self.mask

    def _mask(self, obs: Any, ended: bool = False) -> np.ndarray:
        self.seen = obs
        return self._masks(obs, np.array([ended]))[0]

    def _field_mask(self, chosen: tuple[int, ...]) -> np.ndarray:
        """The mask (members,) int8 of the field after the choices, indices."""
        return next_mask(self.mask_function, self.seen, self.fields, np.array([chosen], np.int64))[0]


class VectorMaskFunction(_FieldActions, VectorWrapper):
    """`MaskFunction` for a SAME_STEP vector environment with batched `final_obs`, such as `envs.base.BatchedEnv`.

    The mask function sees the batched observation and returns batched constraints; arguments as for `MaskFunction`.
    """

    masks_are_checked = True  # by `legal_actions`, so nobody has to check them again

    def __init__(self, env: VectorEnv, fields: Fields, mask_function: Callable[[Any], Constraints], hide=()):
        super().__init__(env)
        seen, actions = env.single_observation_space, env.single_action_space
        self._declare(seen, actions, fields, mask_function, tuple(hide))
        self.single_action_space = self._index_space()
        self.single_observation_space = self._shown_space(env.single_observation_space)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.field_masks = self._field_masks if self.dependent else None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, with the first states' masks in the infos."""
        obs, infos = self.env.reset(**kwargs)
        return self._shown(obs), infos | self._mask(obs)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step with indices (N,) or (N, K); the inner environments get the enumerations' values."""
        values = self._values(np.reshape(actions, (self.num_envs, -1)), self.env.single_action_space)
        obs, rewards, terminations, truncations, infos = self.env.step(values)
        ended = terminations | truncations
        if "final_obs" in infos:
            final_info = infos["final_info"] | self._mask(infos["final_obs"], np.ones_like(ended))
            infos = infos | {"final_info": final_info, "final_obs": self._shown(infos["final_obs"])}
            ended = None  # and begun anew
        # Without autoreset (a batch of one in SingleEnv) a final state is returned as it is.
        return self._shown(obs), rewards, terminations, truncations, infos | self._mask(obs, ended)

    def _mask(self, obs: Any, ended: np.ndarray | None = None) -> dict[str, np.ndarray]:
        self.seen, rows = obs, np.ones(self.num_envs, bool)
        return {"action_mask": self._masks(obs, ~rows if ended is None else ended), "_action_mask": rows}

    def _field_masks(self, chosen: np.ndarray) -> np.ndarray:
        """The masks (N, members) int8 of the field after the choices (N, k), indices, in the present states."""
        return next_mask(self.mask_function, self.seen, self.fields, chosen)
