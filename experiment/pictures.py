"""Pictures of a trained agent: how it plays, what it attends to, what a team does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from envs.uniform import UniformVectorEnv
from envs.worlds.drawing import GRID, PAPER, canvas, pixels, text
from experiment.evaluation import Play

PICTURE = 6  # steps of the trained agent before its picture is taken
Look = Callable[[np.ndarray], np.ndarray]  # the attention (N, heads, Q, E) for observations (N, E, 1 + D)


@torch.inference_mode()
def write_pictures(
    writer: SummaryWriter,
    make_envs: Callable[..., UniformVectorEnv],
    play: Play,
    use_mask: bool,
    look: Look | None,
    gif: Path | None,
    step: int,
) -> None:
    """Play a few steps of a new episode, and write what it looks like then as TensorBoard images.

    `agent` is the environment's own picture. An environment that cannot render gets none; one whose renderer fails, for
    want of a screen or of a package, gets none either, unless a GIF was asked for. `attention` is what the agent looks
    at, `actions` what each agent of a grid does.

    Args:
        writer: of the run.
        make_envs: makes one environment, with a `render_mode` if it is given one.
        play: acts.
        use_mask: whether the mask restricts it.
        look: what the agent attends to, for agents that do; an environment may draw it.
        gif: where to write an animation of 200 steps, or None.
        step: environment steps of the training.
    """
    envs, frames, moments = make_envs(), [], []
    renders = gif is not None or "rgb_array" in envs.metadata.get("render_modes", ())
    if renders:
        envs.close()
        envs = make_envs(render_mode="rgb_array")
    obs, infos = envs.reset(seed=20_000)
    started = np.ones(1, bool)
    for t in range(200 if gif else PICTURE + 1):
        mask = infos["action_mask"]
        actions = play(obs, mask if use_mask else envs.all_legal(mask), started)
        if look and hasattr(envs.unwrapped, "attention"):  # drawn as lines from the agent, the mean over heads
            envs.unwrapped.attention = look(obs)[:, :, 0].mean(1)
        if t <= PICTURE:
            moments.append((obs, mask, actions))
        if renders and (gif or t == PICTURE):
            try:
                frames.append(envs.render()[0])
            except Exception as error:  # of any kind: it is another's renderer, and this is the end of a long run
                if gif:
                    raise
                print(f"No picture of the agent: {error}")
        obs, _, terminations, truncations, infos = envs.step(actions)
        started = terminations | truncations
    envs.close()
    if frames:
        writer.add_image("agent", frames[PICTURE if gif else 0], step, dataformats="HWC")
    if gif:
        pictures = [Image.fromarray(frame) for frame in frames]
        pictures[0].save(gif, save_all=True, append_images=pictures[1:], duration=150, loop=0)
        print(f"Wrote {gif}")
    if look:
        maps = rearrange(look(moments[-1][0]), "1 h q e -> (h q) e")
        writer.add_image("attention", np.kron(maps / maps.max(), np.ones((16, 16))), step, dataformats="HW")
    if envs.layout == "grid":
        _, mask, actions = max(moments, key=lambda moment: moment[1][:, 0].sum())  # when most agents act
        writer.add_image("actions", action_map(actions[0], mask[0, 0], envs.nvec), step, dataformats="HWC")


def action_map(actions: np.ndarray, agents: np.ndarray, nvec: np.ndarray) -> np.ndarray:
    """A picture of what the agents of a map do: a map for each field, in cells that act the number of the choice.

    Args:
        actions: (H, W) or (H, W, K) int, a choice for each cell; those of cells without an agent do not count.
        agents: (H, W), 1 where the cell holds an agent.
        nvec: (K,) choices in each field, which get a colour each.

    Returns:
        (24 * H, 24 * (K * W + K - 1), 3) uint8: the maps stand side by side.
    """
    cell = 24
    (height, width), fields = agents.shape, len(nvec)
    image, draw = canvas((fields * width + fields - 1) * cell, height * cell)
    for k, y, x in np.ndindex(fields, height, width):
        left, top = (k * (width + 1) + x) * cell, y * cell
        choice = actions.reshape(height, width, fields)[y, x, k]
        color = f"hsl({360 * choice // nvec[k]}, 55%, 75%)" if agents[y, x] else PAPER
        draw.rectangle([left, top, left + cell - 1, top + cell - 1], fill=color, outline=GRID)
        if agents[y, x]:
            text(draw, (left + cell / 2, top + cell / 2), str(choice), cell // 2)
    return pixels(image)
