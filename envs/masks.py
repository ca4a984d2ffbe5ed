"""Masks on the host: pure functions that check them and count what breaks them, before anything reaches the device."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def action_nvec(space: gym.Space) -> np.ndarray:
    """The number of choices in each field of an action space, (K,) int64.

    Raises:
        ValueError: the space is none of Discrete, MultiDiscrete and MultiBinary.

    >>> action_nvec(spaces.Discrete(4)), action_nvec(spaces.MultiDiscrete([3, 2])), action_nvec(spaces.MultiBinary(2))
    (array([4]), array([3, 2]), array([2, 2]))
    """
    if isinstance(space, spaces.Discrete):
        return np.array([space.n], np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().astype(np.int64)
    if isinstance(space, spaces.MultiBinary):
        return np.full(int(np.prod(space.shape)), 2, np.int64)
    raise ValueError(
        f"The action space {space} is not supported; expected Discrete (ppo_action_mask.py, dqn_action_mask.py), "
        f"MultiDiscrete or MultiBinary (ppo_action_mask.py). Choices can be masked, numbers cannot: discretise them."
    )


def grid_nvec(seen: gym.Space, space: gym.Space) -> np.ndarray:
    """The number of choices in each field of one cell's action, (K,), the same in all cells.

    Args:
        seen, space: of observations and actions of one environment.

    Raises:
        ValueError: the observation is no map (C, H, W), or the action space not a MultiDiscrete (H, W) or (H, W, K).
    """
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 3:
        raise ValueError(f"The observation space {seen} is no map; expected a Box (C, H, W).")
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.shape[:2] == seen.shape[1:] and space.nvec.ndim <= 3:
        nvec = space.nvec.reshape(*seen.shape[1:], -1)
        if (nvec == nvec[0, 0]).all():
            return nvec[0, 0].astype(np.int64)
    raise ValueError(
        f"The action space {space} is not one action for each cell; expected a MultiDiscrete of shape {seen.shape[1:]} "
        f"or {(*seen.shape[1:], 'K')}, with the same choices in each cell."
    )


def check_uses(uses: Any, nvec: np.ndarray) -> np.ndarray:
    """A declaration of which fields count for each choice in the first one, (nvec[0], K) bool.

    Raises:
        ValueError: another shape, values other than 0 and 1, or a first field that does not always count.

    >>> check_uses([[1, 0], [1, 1]], np.array([2, 3]))  # nothing to do, or a move and its direction
    array([[ True, False],
           [ True,  True]])
    """
    table, shape = np.asarray(uses), (int(nvec[0]), len(nvec))
    if table.shape != shape or not ((table == 0) | (table == 1)).all() or not (table[:, 0] == 1).all():
        raise ValueError(
            f"The environment's attribute `uses` has shape {table.shape}; expected {shape}, for each choice in field 0 "
            f"1 where a field counts and 0 where it does not, and 1 in the column of field 0."
        )
    return table.astype(bool)


def check_action_mask(
    action_mask: Any, nvec: np.ndarray, first_env: int = 0, ended: Any = False, first_field: int = 0
) -> np.ndarray:
    """Check masks on the host, before they reach the device, and return them as int8.

    Args:
        action_mask: (N, sum(nvec)), bool or numbers that are 0 or 1; 1 where the action is legal.
        nvec: (K,) choices in each action field.
        first_env: the index of the environment that row 0 belongs to, for messages.
        ended: (N,) bool or a bool, rows of states that nobody acts in any more, which may have no legal action.
        first_field: the index of the first of these fields, for messages.

    Raises:
        ValueError: wrong shape, a value other than 0 and 1 (NaN among them), or a field without a legal action.

    >>> check_action_mask([[1, 1, 0], [0, 0, 0]], np.array([3]))
    Traceback (most recent call last):
    ...
    ValueError: Environment 1: the action mask leaves no legal action in field 0 (its 3 entries are all 0). ...
    """
    mask = np.asarray(action_mask)
    if mask.ndim != 2 or mask.shape[1] != nvec.sum() or mask.dtype.kind not in "biuf":
        fields = " + ".join(map(str, nvec[:6])) + (" + ..." if len(nvec) > 6 else "")
        raise ValueError(
            f"Environment {first_env}: the action mask has shape {mask.shape[1:]} and dtype {mask.dtype}; expected "
            f"shape ({nvec.sum()},), one entry for each choice ({fields}), as int8 with 1 where legal."
        )
    # With few environments the calls cost more than the arithmetic: whether a row is bad comes first, which one after.
    bad = mask.view(np.uint8).max() > 1 if mask.dtype == np.int8 else ((mask != 0) & (mask != 1)).any()
    if bad:
        row, column = np.argwhere((mask != 0) & (mask != 1))[0]
        raise ValueError(
            f"Environment {first_env + row}: the action mask holds {mask[row, column]} at entry {column}; expected "
            f"only 0 (illegal) and 1 (legal)."
        )
    mask = mask.astype(np.int8, copy=False)
    if len(nvec) == 1:
        legal = mask.any(axis=1, keepdims=True)
    else:
        legal = np.add.reduceat(mask, np.cumsum(nvec) - nvec, axis=1, dtype=np.int64) > 0
    if not legal.all() and not (legal.all(axis=1) | ended).all():
        row = np.flatnonzero(~(legal.all(axis=1) | ended))[0]
        field = np.flatnonzero(~legal[row])[0]
        raise ValueError(
            f"Environment {first_env + row}: the action mask leaves no legal action in field "
            f"{first_field + field} (its {nvec[field]} entries are all 0). A state to act in needs one: add a no-op, "
            f"or end the episode."
        )
    return mask


def check_truncated(masks: np.ndarray, truncated: np.ndarray) -> None:
    """Refuse masks (N, A) in which nothing is legal in a state that a truncation led to, `truncated` (N,) bool.

    Raises:
        ValueError: names the environment.
    """
    stuck = truncated & ~masks.any(axis=1)
    if stuck.any():
        raise ValueError(
            f"Environment {np.flatnonzero(stuck)[0]}: nothing is legal in the state that a truncation led to. The "
            f"target of DQN is about it: expected a mask in the info of that step too."
        )


def check_grid_masks(
    action_mask: Any, agent_mask: Any, nvec: np.ndarray, first_env: int = 0, ended: Any = False
) -> np.ndarray:
    """Check the two masks of a grid, and return them as one (N, 1 + sum(nvec), H, W) int8, the agent mask in front.

    Args:
        action_mask: (N, sum(nvec), H, W), 1 where the cell's agent may do this; without an agent 0 or 1, as you like.
        agent_mask: (N, H, W), 1 where the cell holds an agent.
        nvec: (K,) choices in each field of one agent's action.
        first_env: the index of the environment that row 0 belongs to, for messages.
        ended: (N,) bool or a bool, rows of states that nobody acts in any more.

    Raises:
        ValueError: wrong shape, a value other than 0 and 1, or an agent without a legal choice in one of its fields.
    """
    masks, agents = np.asarray(action_mask), np.asarray(agent_mask)
    shape = (len(agents), nvec.sum(), *agents.shape[1:])
    if agents.ndim != 3 or masks.shape != shape:
        raise ValueError(
            f"Environment {first_env}: the agent mask has shape {agents.shape[1:]} and the action mask "
            f"{masks.shape[1:]}; expected (H, W) and ({nvec.sum()}, H, W): {' + '.join(map(str, nvec))} choices in "
            f"each cell."
        )
    for name, mask in (("agent", agents), ("action", masks)):
        bad = mask.view(np.uint8) > 1 if mask.dtype == np.int8 else (mask != 0) & (mask != 1)
        if bad.any():
            row, *place = np.argwhere(bad)[0].tolist()
            raise ValueError(
                f"Environment {first_env + row}: the {name} mask holds {mask[row, *place]} at {place}; expected only 0 "
                f"and 1."
            )
    row, y, x = np.nonzero(agents)  # of each agent, few beside the cells
    legal = np.add.reduceat(masks[row, :, y, x], np.cumsum(nvec) - nvec, axis=1, dtype=np.int64) > 0  # (P, K)
    stuck = ~legal.all(axis=1) & ~np.broadcast_to(ended, len(agents))[row]
    if stuck.any():
        agent = np.flatnonzero(stuck)[0]
        row, y, x, field = row[agent], y[agent], x[agent], np.flatnonzero(~legal[agent])[0]
        raise ValueError(
            f"Environment {first_env + row}: the action mask leaves the agent in cell ({y}, {x}) no legal action in "
            f"field {field}. An agent needs one: add a no-op, or take it out of the agent mask."
        )
    return np.concatenate([agents[:, None], masks], axis=1, dtype=np.int8, casting="unsafe")


def illegal_actions(actions: np.ndarray, masks: np.ndarray, nvec: np.ndarray) -> np.ndarray:
    """Which actions (B,) or (B, K) break their masks (B, sum(nvec)), in any field: bool (B,).

    >>> illegal_actions(np.array([[0, 1], [0, 2], [1, 0]]), np.array([[1, 0, 1, 1, 0]] * 3), np.array([2, 3]))
    array([False,  True,  True])
    """
    columns = np.reshape(actions, (len(actions), len(nvec))) + (np.cumsum(nvec) - nvec)
    return (np.take_along_axis(masks, columns, axis=1) == 0).any(axis=1)


def choose(
    scores: np.ndarray, mask: np.ndarray, nvec: np.ndarray, field_mask: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """The legal choice of the highest score in each field: int64 (N,), or (N, K) for K > 1 fields.

    With logits as scores it is the most probable action, with Gumbel noise added to them a random one: a sample of
    pi(a_1) pi(a_2 | a_1) ..., where fields depend on those before them, as in AlphaStar's policy (Vinyals et al. 2019,
    https://doi.org/10.1038/s41586-019-1724-z).

    Args:
        scores: (N, sum(nvec)).
        mask: of the same shape, 1 where legal.
        nvec: (K,) choices in each field.
        field_mask: where they depend on each other: maps the choices so far (N, k) to the mask (N, nvec[k]) of the next
            field, which then counts instead of `mask`.

    >>> scores, nvec = np.array([[0.1, 0.5, 0.3, 0.2]]), np.array([2, 2])
    >>> choose(scores, np.array([[1, 1, 0, 1]]), nvec)
    array([[1, 1]])
    >>> choose(scores, np.ones((1, 4)), nvec, lambda chosen: np.eye(2)[[1]])  # in each field the second only
    array([[1, 1]])
    """
    scores = np.maximum(scores, np.finfo(np.float32).min)  # what is legal is above what is not, -inf, even so
    if len(nvec) == 1:
        return np.where(mask, scores, -np.inf).argmax(1)
    if field_mask is None:
        within = np.arange(nvec.max()) < nvec[:, None]  # (K, A): the choices of each field, padded to the largest
        padded = np.full((len(scores), *within.shape), -np.inf)
        padded[:, within] = np.where(mask, scores, -np.inf)
        return padded.argmax(2)
    actions = np.zeros((len(scores), len(nvec)), np.int64)
    for k, field in enumerate(np.split(scores, np.cumsum(nvec)[:-1], axis=1)):
        actions[:, k] = np.where(field_mask(actions[:, :k]), field, -np.inf).argmax(1)
    return actions


def drop_legal(mask: np.ndarray, nvec: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A stricter mask (N, sum(nvec)): each legal choice is forbidden with probability `share`; one a field stays.

    On a grid, (N, 1 + sum(nvec), H, W), so are those of each agent.

    >>> drop_legal(np.array([[1, 1, 0, 1]], np.int8), np.array([2, 2]), 1.0, np.random.default_rng(0)).sum()
    np.int64(2)
    """
    if not share:
        return mask
    if mask.ndim == 4:
        cells = np.moveaxis(mask[:, 1:], 1, -1)
        kept = drop_legal(cells.reshape(-1, cells.shape[-1]), nvec, share, rng).reshape(cells.shape)
        return np.concatenate([mask[:, :1], np.moveaxis(kept, -1, 1)], axis=1)
    luck = np.where(mask, rng.random(mask.shape), -1.0)  # the luckiest of each field stays
    best = np.maximum.reduceat(luck, np.cumsum(nvec) - nvec, axis=1)
    return ((luck >= share) | (luck == np.repeat(best, nvec, axis=1))).astype(np.int8) & mask
