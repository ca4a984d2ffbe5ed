"""Pictures of a trained agent: how it plays, what it attends to, what a team does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from envs.uniform import UniformVectorEnv
from envs.worlds.drawing import action_map
from experiment.evaluation import Play

PICTURE = 6  # steps of the trained agent before its picture is taken
Look = Callable[[np.ndarray], np.ndarray]  # the attention (N, heads, Q, E) for observations (N, E, 1 + D)


@torch.inference_mode()
def write_pictures(
    writer: SummaryWriter, envs: UniformVectorEnv, play: Play, look: Look | None, gif: Path | None, step: int
) -> None:
    """Play a few steps of a new episode, and write what it looks like then as TensorBoard images.

    `agent` is the environment's own picture. An environment that cannot render gets none; one whose renderer fails, for
    want of a screen or of a package, gets none either, unless a GIF was asked for. `attention` is what the agent looks
    at, `actions` what each agent of a grid does.

    Args:
        writer: of the run.
        envs: one environment, which renders "rgb_array" if it can; it is closed in the end. If it requires a mask, the
            agent plays with it.
        play: acts.
        look: what the agent attends to, for agents that do; an environment may draw it.
        gif: where to write an animation of 200 steps, or None.
        step: environment steps of the training.
    """
    frames, moments = [], []
    obs, infos = envs.reset(seed=20_000)
    started = np.ones(1, bool)
    for t in range(200 if gif else PICTURE + 1):
        mask = infos["action_mask"]
        actions = play(obs, mask if envs.require_mask else envs.all_legal(mask), started)
        if look and hasattr(envs.unwrapped, "attention"):  # drawn as lines from the agent, the mean over heads
            envs.unwrapped.attention = look(obs)[:, :, 0].mean(1)
        moments.append((obs, mask, actions))
        if envs.render_mode and (gif or t == PICTURE):
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
        maps = rearrange(look(moments[PICTURE][0]), "1 h q e -> (h q) e")
        writer.add_image("attention", np.kron(maps / maps.max(), np.ones((16, 16))), step, dataformats="HW")
    if envs.layout == "grid":
        _, mask, actions = max(moments[: PICTURE + 1], key=lambda moment: moment[1][:, 0].sum())  # when most agents act
        writer.add_image("actions", action_map(actions[0], mask[0, 0], envs.nvec), step, dataformats="HWC")
