"""Pictures of a trained agent: how it plays, what it attends to, what a team does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from envs.episodes import Play, frame, moments
from envs.worlds.drawing import action_map
from experiment.notes import attempt, say

PICTURE, GIF = 6, 200  # steps of the trained agent before its picture is taken, and in an animation
Look = Callable[[np.ndarray], np.ndarray]  # the attention (N, heads, Q, E) for observations (N, E, 1 + D)


@torch.inference_mode()
def write_pictures(run: Any, play: Play, look: Look | None) -> None:
    """Play a few steps of a new episode, and write what it looks like then as TensorBoard images.

    `agent` is the environment's own picture, if it renders "rgb_array"; with `--capture-video`, agent.gif is how it
    goes on: whole episodes, unless the first is too long. `attention` is what the agent looks at, `actions` what each
    agent of a grid does. What fails, for want of a screen or of a package, costs that picture only.

    Args:
        run: a `Run` at its end.
        play: acts, with a mask if the environment requires one.
        look: what the agent attends to, for agents that do; an environment may draw it.
    """
    writer, video = run.board.writer, run.args.capture_video
    if video or "rgb_array" in (run.envs.metadata.get("render_modes") or ()):
        with attempt("No picture of the agent"):
            envs, frames, whole = run.make_one(render_mode="rgb_array"), [], 0
            for t, (obs, _, _) in enumerate(moments(envs, play, GIF + 1 if video else PICTURE + 1)):
                whole = whole if envs.episode_lengths[0] else t  # frames of episodes that have ended
                if look and hasattr(envs.unwrapped, "attention"):  # drawn as lines from the agent, the mean over heads
                    envs.unwrapped.attention = look(obs)[:, :, 0].mean(1)
                if video or t == PICTURE:
                    frames.append(frame(envs))
            writer.add_image("agent", frames[PICTURE if video else 0], run.global_step, dataformats="HWC")
            if video:
                pictures = [Image.fromarray(array) for array in frames[:whole] or frames]
                gif = run.board.folder / "agent.gif"
                pictures[0].save(gif, save_all=True, append_images=pictures[1:], duration=150, loop=0)
                say(f"Wrote {gif}")
    if look or run.envs.layout == "grid":
        with attempt("No picture of what the agent sees or does"):
            seen = list(moments(run.make_one(), play, PICTURE + 1))
            if look:
                maps = rearrange(look(seen[PICTURE][0]), "1 h q e -> (h q) e")
                picture = np.kron(maps / max(maps.max(), 1e-9), np.ones((16, 16)))  # an empty set attends to nothing
                writer.add_image("attention", picture, run.global_step, dataformats="HW")
            else:
                _, mask, actions = max(seen, key=lambda moment: moment[1][:, 0].sum())  # when most agents act
                picture = action_map(actions[0], mask[0, 0], run.envs.nvec)
                writer.add_image("actions", picture, run.global_step, dataformats="HWC")
