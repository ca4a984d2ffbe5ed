"""Observations of any space, a batch at a time: their flat form, and the form of a set of entities."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.masks import action_nvec

NO_FLAT_FORM = (
    "The observation space {} has no fixed flat form; expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or "
    "Tuple of these."
)


def flatten_observations(space: gym.Space, obs: Any, num_envs: int, dtype: type = np.float32) -> np.ndarray:
    """A batch of observations as (N, D) float32, without a loop over environments; Discrete becomes one-hot.

    With `dtype` float64 a Box keeps its digits, for whoever centres large numbers next.

    Raises:
        ValueError: a value outside of its Discrete, MultiDiscrete or MultiBinary space, with the environment's index;
            a space without a flat form; a Box of another shape.

    >>> space = spaces.Dict({"cell": spaces.Discrete(3), "speed": spaces.Box(0, 1, (2,))})
    >>> flatten_observations(space, {"cell": np.array([2]), "speed": np.array([[0.5, 1.0]])}, num_envs=1)
    array([[0. , 0. , 1. , 0.5, 1. ]], dtype=float32)
    """
    if isinstance(space, spaces.Box):
        if np.shape(obs) != (num_envs, *space.shape):
            raise ValueError(f"Observations have the shape {np.shape(obs)}; expected {num_envs} rows of {space}.")
        return np.asarray(obs, dtype).reshape(num_envs, -1)
    if isinstance(space, spaces.MultiBinary):
        bits = np.asarray(obs, np.float32).reshape(num_envs, -1)
        _check_inside(space, bits, (bits == 0) | (bits == 1))
        return bits
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return _one_hot(space, np.asarray(obs).reshape(num_envs, -1))
    if isinstance(space, spaces.Dict):
        parts = [flatten_observations(sub, obs[key], num_envs, dtype) for key, sub in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [flatten_observations(sub, part, num_envs, dtype) for sub, part in zip(space.spaces, obs, strict=True)]
    else:
        raise ValueError(NO_FLAT_FORM.format(space))
    return np.concatenate(parts, axis=1)


def _one_hot(space: gym.Space, values: np.ndarray) -> np.ndarray:
    """Rows (N, sum(nvec)) float32 of values (N, K) of any dtype, without a table of size n x n."""
    start, nvec = np.ravel(space.start).astype(np.int64), action_nvec(space)
    with np.errstate(invalid="ignore"):  # NaN and inf become integers, which they do not equal
        indices = values.astype(np.int64) - start
    inside = indices.view(np.uint64) < nvec.view(np.uint64)  # negative ones are huge without their sign
    if values.dtype.kind == "f":
        inside &= values == indices + start
    _check_inside(space, values, inside)
    flat = np.zeros((len(values), nvec.sum()), np.float32)
    flat[np.arange(len(values))[:, None], indices + (nvec.cumsum() - nvec)] = 1
    return flat


def _check_inside(space: gym.Space, values: np.ndarray, inside: np.ndarray) -> None:
    if not inside.all():
        row, entry = np.argwhere(~inside)[0]
        raise ValueError(
            f"Environment {row}: the observation holds {values[row, entry]} at entry {entry}, outside of its space "
            f"{space}."
        )


def flat_size(space: gym.Space) -> int:
    """The number of entries D of a flattened observation; raises ValueError for a space without a flat form."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return sum(flat_size(part) for part in parts)
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return spaces.flatdim(space)
    raise ValueError(NO_FLAT_FORM.format(space))


def check_kind(space: gym.Space, obs: Any) -> None:
    """Refuse floats where the space has whole numbers (ValueError): a replay buffer, which goes by it, would cut them.

    >>> check_kind(spaces.Box(0, 9, (1,), np.int8), np.array([[0.5]]))
    Traceback (most recent call last):
    ...
    ValueError: Observations are float64, and their space is Box(0, 9, (1,), int8); expected what it declares.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            check_kind(part, obs[key])
    elif isinstance(space, spaces.Box) and space.dtype.kind != "f" and np.asarray(obs).dtype.kind == "f":
        raise ValueError(f"Observations are {obs.dtype}, and their space is {space}; expected what it declares.")


def flat_dtype(space: gym.Space) -> np.dtype:
    """The smallest dtype that holds flattened observations as they are, at most float32: what a replay buffer stores.

    >>> flat_dtype(spaces.Discrete(500)), flat_dtype(spaces.Box(0, 255, (3,), np.uint8)), flat_dtype(spaces.Box(0, 1))
    (dtype('bool'), dtype('uint8'), dtype('float32'))
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return np.result_type(*(flat_dtype(part) for part in parts))
    if isinstance(space, spaces.Box):
        return space.dtype if space.dtype.itemsize <= 2 else np.dtype(np.float32)
    return np.dtype(bool)  # one-hot, or bits


def entities_shape(space: gym.Space, presence_column: int | None) -> tuple[int, int]:
    """The shape (E, 1 + D) of the layout "entities", or with global features (E, 1 + D + G).

    Raises:
        ValueError: neither a Dict with `entities` and `entity_mask` nor a matrix with a presence column.

    >>> entities_shape(spaces.Box(-1, 1, (5, 7)), presence_column=0)
    (5, 8)
    """
    if isinstance(space, spaces.Dict) and {"entities", "entity_mask"} <= set(space.spaces):
        if presence_column is not None:
            raise ValueError(
                f"--presence-column {presence_column}: the observation is a Dict, whose entity_mask says who is "
                f"present; leave the flag out."
            )
        rows, masks = space["entities"].shape, space["entity_mask"].shape
        if rows is None or len(rows) != 2 or masks != rows[:1]:
            raise ValueError(
                f"The observation has no entities that can be read: `entities` is {space['entities']} and "
                f"`entity_mask` {space['entity_mask']}; expected arrays of shapes (E, D) and (E,)."
            )
        return rows[0], 1 + rows[1] + flat_size(globals_space(space))
    if isinstance(space, spaces.Box) and len(space.shape) == 2:
        if presence_column is None:
            raise ValueError(
                f"The observation is a matrix {space.shape}, one row for each entity. Name the column that is 1 where "
                f"the entity is present: --presence-column 0 for highway-env's Kinematics."
            )
        if 0 <= presence_column < space.shape[1]:
            return space.shape[0], 1 + space.shape[1]
        raise ValueError(f"--presence-column {presence_column}: the observation has columns 0 to {space.shape[1] - 1}.")
    raise ValueError(
        f"The observation space {space} has no entities; expected a Dict with entities (E, D) and entity_mask (E,), or "
        f"a matrix (E, D) with --presence-column."
    )


def globals_space(space: gym.Space) -> spaces.Dict:
    """What an observation in the layout "entities" holds beside them, about no entity: all other keys of its Dict.

    Raises:
        ValueError: a key whose space has no flat form, by name.
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    others = {key: part for key, part in parts.items() if key not in ("entities", "entity_mask")}
    for key, part in others.items():
        try:
            flat_size(part)
        except ValueError as error:
            raise ValueError(f"The observation's key {key!r}: {error}") from error
    return spaces.Dict(others)


def entity_rows(
    obs: Any, presence_column: int | None, others: spaces.Dict, dtype: type = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of sets as rows of presence, features, and the global features, which all rows of a set repeat.

    Returns:
        The rows (N, E, 1 + D + G) of this `dtype`, as in `flatten_observations`, and the same with the features of
        absent entities, which may hold anything, as 0.

    Raises:
        ValueError: presence is neither 0 nor 1, with the environment's index.

    >>> obs = {"entities": np.array([[[5.0], [np.nan]]]), "entity_mask": np.array([[1, 0]]), "hour": np.array([1])}
    >>> entity_rows(obs, None, spaces.Dict(hour=spaces.Discrete(2)))[1]
    array([[[1., 5., 0., 1.],
            [0., 0., 0., 1.]]], dtype=float32)
    """
    named = isinstance(obs, dict)
    given, features = (obs["entity_mask"], obs["entities"]) if named else (obs[..., presence_column], obs)
    present = given == 1
    known = present | (given == 0)
    if not known.all():
        row, entity = np.argwhere(~known)[0]
        raise ValueError(
            f"Environment {row}: {'entity_mask' if named else 'the presence column'} holds {given[row, entity]} for "
            f"entity {entity}; expected 1 where it is present, 0 where it is absent."
        )
    rows = np.concatenate([present[..., None], features], axis=-1, dtype=dtype)
    seen = np.where(present[..., None], rows, 0)
    if not others.spaces:
        return rows, seen
    flat = flatten_observations(others, obs, len(present), dtype)
    repeated = np.broadcast_to(flat[:, None], (*present.shape, flat.shape[1]))
    return np.concatenate([rows, repeated], axis=-1), np.concatenate([seen, repeated], axis=-1)
