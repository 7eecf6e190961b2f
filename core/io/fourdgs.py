"""The .4dgs container: one seekable file of a moving object, read by its own tools and players.

Written through the format's public library, the package fourdgs (pure Python). Its temporal model gives each Gaussian a moment
of birth, a velocity and a window in which it is seen, so a frame of ours becomes a set of Gaussians that live until the next
frame and travel in straight lines to their places there. Rotations, scales and opacities stay those of the frame meanwhile, and
colours are reduced to their constant part. The library has a denser model too, of keyframes and differences, which its own
reader refuses (0.6.0).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..files import InputError, atomic_path
from ..gaussians import Gaussians
from ..packages import problem
from ..scene.scene import Scene4D, frame_times
from ..scene.views import FrameProgress


def write_4dgs(
    path: str | os.PathLike[str],
    scene: Scene4D,
    frames: int | None = None,
    *,
    profile: Literal["fine", "default", "coarse"] = "fine",
    progress: FrameProgress | None = None,
) -> None:
    """Write a scene, Y up, with the front camera as the view to start from.

    Args:
        frames: the clip is spread over so many, its own where None.
        profile: how exact. "fine" keeps places within 0.02 of the median standard deviation, scales within 0.5 %, rotations
            within 0.0005, colours and opacities within 1/510 and moments within 0.5 ms; "default" and "coarse" are about 3 and
            10 times looser.
        progress: called with the frames done and all of them; the file is written after the last.

    Raises:
        InputError: without the package fourdgs, or for a scene that is empty or that it cannot hold.
    """
    if reason := problem("fourdgs"):
        raise InputError(f"{path}: .4dgs files take the package fourdgs, which {reason}; run: pip install fourdgs")
    import fourdgs

    library: Any = fourdgs
    if not len(scene.gaussians):
        raise InputError(f"{path}: the scene has no Gaussians, nothing to write")
    count = scene.frames if frames is None else frames
    duration = scene.frames / scene.fps
    starts = torch.arange(count + 1, dtype=torch.float64) * duration / count
    travels = scene.field is not None and scene.field.continuous
    parts: list[tuple[Gaussians, Tensor]] = []
    for step, tau in enumerate(frame_times(count, scene.loop)):
        with torch.no_grad():
            gaussians = scene.at(tau).to("cpu", torch.float32)
        if parts and travels:
            last, motion = parts[-1]
            motion += (gaussians.means - last.means) * (count / duration)
        parts.append((gaussians, torch.zeros_like(gaussians.means)))
        if progress is not None:
            progress(step + 1, count)
    if scene.loop and travels:
        last, motion = parts[-1]
        motion += (parts[0][0].means - last.means) * (count / duration)

    def joined(function: Callable[[Gaussians], Tensor]) -> Any:
        return torch.cat([function(gaussians) for gaussians, _ in parts]).numpy()

    size = len(scene.gaussians)
    births = starts[:-1].repeat_interleave(size)
    gaussians = library.GaussianSet(
        positions=joined(lambda g: g.means),
        scales=joined(lambda g: g.scales),
        rotations=joined(lambda g: torch.nn.functional.normalize(g.quats, dim=-1)[:, [1, 2, 3, 0]]),
        colors=joined(lambda g: torch.cat([g.colors.clamp(0, 1), g.opacities[:, None]], -1)),
        motions=torch.cat([motion for _, motion in parts]).numpy(),
        mu_t=births.float().numpy(),
        sigma_t=torch.full_like(births, torch.inf, dtype=torch.float32).numpy(),
        win_lo=births.numpy(),
        win_hi=starts[1:].repeat_interleave(size).numpy(),
    )
    options = library.WriteOptions(
        profile=profile, metadata={"coordinate_system": "y-up-right-handed", "color_space": "srgb-rec709-display"}
    )
    camera = None
    if scene.front is not None:
        place = scene.front.cameras().positions[0].tolist()
        camera = library.CameraTrajectory(fov_y_deg=scene.front.fovy, position=tuple(place), target=(0.0, 0.0, 0.0))
    with atomic_path(path) as temporary:
        try:
            library.write(str(temporary), gaussians, duration, options=options, camera=camera)
        except library.FourdgsError as error:
            raise InputError(f"{path}: a .4dgs file cannot hold this scene ({error}), export another format") from None
