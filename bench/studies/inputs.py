"""What a run begins with: videos and objects of other makers, degraded, longer, masked wrong, moving more or less."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...core.methods.stages import MethodConfig
from ...core.objectives.front import ReferenceViewLoss
from ...core.pictures import open_picture
from . import Inputs, Variant, study

Change = Callable[[Inputs], Inputs]


def on_frames(change: Callable[[Tensor, torch.Generator], Tensor]) -> Change:
    """A change of the driving video's pictures (T, H, W, 4)."""

    def changed(inputs: Inputs) -> Inputs:
        return replace(inputs, frames=change(inputs.frames, torch.Generator().manual_seed(inputs.seed)))

    return changed


# Degraded video


def white(frames: Tensor) -> Tensor:  # (T, H, W, 4) -> (T, H, W, 3)
    return frames[..., :3] * frames[..., 3:] + 1 - frames[..., 3:]


def blurred(frames: Tensor, sigma: float) -> Tensor:
    """Colours and outline through a Gaussian of ``sigma``, in parts of the picture's height."""
    pixels = sigma * frames.shape[1]
    reach = max(1, round(3 * pixels))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / pixels).square())
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1, 1)
    over = torch.cat([frames[..., :3] * frames[..., 3:], frames[..., 3:]], -1).movedim(-1, 1)
    flat = over.flatten(0, 1)[:, None]
    for weights, pad in ((kernel, (reach, 0)), (kernel.mT, (0, reach))):
        flat = F.conv2d(flat, weights, padding=pad)
    soft = flat[:, 0].reshape(over.shape).movedim(1, -1)
    return torch.cat([(soft[..., :3] / soft[..., 3:].clamp_min(1e-6)).clamp(0, 1), soft[..., 3:]], -1)


def noisy(frames: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Noise on the colours; the outline stays."""
    grain = torch.randn(frames[..., :3].shape, generator=generator)
    return torch.cat([(frames[..., :3] + sigma * grain).clamp(0, 1), frames[..., 3:]], -1)


def compressed(frames: Tensor, quality: int) -> Tensor:
    """Each picture on white through JPEG; the outline stays."""
    made = []
    for picture in white(frames):
        buffer = io.BytesIO()
        Image.fromarray((picture * 255).round().byte().numpy()).save(buffer, "JPEG", quality=quality)
        made.append(torch.from_numpy(np.asarray(open_picture(buffer.getvalue())).copy()).float() / 255)
    return torch.cat([torch.stack(made), frames[..., 3:]], -1)


def rarer(every: int) -> Change:
    """Each ``every``-th frame alone; scored at all of them."""
    return lambda inputs: replace(inputs, frames=inputs.frames[::every], fps=inputs.fps / every, every=every)


study(
    "video-quality",
    question="How good must the driving video be?",
    paper="Degraded videos are in none of the papers; STAG4D names blurry inputs as a limit.",
    limits="Blur softens the outline as well, noise and JPEG leave it: a matting network's faults are the study bad-masks. "
    "Rows with fewer frames are scored at all frames of the truth, those between included.",
    variants=(
        Variant("as it is"),
        *(
            Variant(f"blur {sigma:.1%} of the height", inputs=on_frames(lambda f, _, s=sigma: blurred(f, s)))
            for sigma in (0.004, 0.008, 0.016)
        ),
        *(
            Variant(f"noise {sigma:g}", inputs=on_frames(lambda f, g, s=sigma: noisy(f, s, g)))
            for sigma in (0.05, 0.1, 0.2)
        ),
        *(
            Variant(f"JPEG quality {quality}", inputs=on_frames(lambda f, _, q=quality: compressed(f, q)))
            for quality in (50, 20, 5)
        ),
        Variant("every 2nd frame", inputs=rarer(2)),
        Variant("every 4th frame", inputs=rarer(4)),
    ),
)  # fmt: skip


# Masks


def grown(alpha: Tensor, share: float) -> Tensor:  # (T, H, W)
    """Outlines grown, or below 0 shrunk, by a part of the picture's height."""
    pixels = max(1, round(abs(share) * alpha.shape[1]))
    sign = 1.0 if share > 0 else -1.0
    for _ in range(pixels):
        alpha = sign * F.max_pool2d(sign * alpha[:, None], 3, 1, 1)[:, 0]
    return alpha


def masked(change: Callable[[Tensor, torch.Generator], Tensor]) -> Change:
    """Another outline of the same pictures on white."""

    def changed(frames: Tensor, generator: torch.Generator) -> Tensor:
        return torch.cat([white(frames), change(frames[..., 3], generator)[..., None]], -1)

    return on_frames(changed)


def holed(alpha: Tensor, generator: torch.Generator, count: int = 6, radius: float = 0.05) -> Tensor:
    """Discs cut out of each frame's outline, at places of their own in each; radius in parts of the picture's height."""
    frames, height, width = alpha.shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    made = alpha.clone()
    for t in range(frames):
        inside = (alpha[t] > 0.5).nonzero()
        if not len(inside):
            continue
        for row, column in inside[torch.randint(len(inside), (count,), generator=generator)].tolist():
            made[t][(rows - row).square() + (columns - column).square() < (radius * height) ** 2] = 0.0
    return made


def flickering(alpha: Tensor, generator: torch.Generator, share: float = 0.015) -> Tensor:
    """Each frame's outline grown or shrunk by chance."""
    grow = torch.rand(len(alpha), generator=generator) > 0.5
    return torch.where(grow[:, None, None], grown(alpha, share), grown(alpha, -share))


study(
    "bad-masks",
    question="How good must the masks be?",
    paper="None: all cut out by rembg.",
    limits="On white, as background removal leaves them: a grown outline takes white along. Real faults come and go with the "
    "pose; holes and flicker here are drawn anew for each frame.",
    numbers=("front", "unseen", "gain", "motion", "iou", "overlap", "size", "seconds"),
    variants=(
        Variant("as they are"),
        *(
            Variant(
                f"{'grown' if share > 0 else 'shrunk'} by {abs(share):.1%} of the height",
                inputs=masked(lambda a, _, s=share: grown(a, s)),
            )
            for share in (-0.03, -0.01, 0.01, 0.03)
        ),
        Variant("holes", inputs=masked(holed)),
        Variant("flicker", inputs=masked(flickering)),
    ),
)  # fmt: skip


def unmasked(config: MethodConfig) -> MethodConfig:
    """The reference view loss compares colours alone."""
    return config.changed(lambda o: replace(o, mask=0.0) if isinstance(o, ReferenceViewLoss) else o)


study(
    "mask",
    method="align4d",
    question="What does the mask term of the front view give (Eq. 6)?",
    paper="Align4D V-C compares runs with and without the mask; the numbers are not at hand.",
    limits="Pictures are compared on white, where colours hold most of what a mask says; a white object would need it more.",
    variants=(
        Variant("with masks"),
        Variant("without the term", config=unmasked),
        Variant("masks by the backdrop's colour", inputs=lambda inputs: replace(inputs, frames=white(inputs.frames))),
    ),
)


# Longer, and more motion


def lasting(count: int) -> Change:
    """The first ``count`` frames, the clip played again where it is shorter."""

    def changed(inputs: Inputs) -> Inputs:
        def part(pictures: Tensor) -> Tensor:
            return pictures[torch.arange(count) % len(pictures)]

        return replace(inputs, frames=part(inputs.frames), truth={a: part(p) for a, p in inputs.truth.items()})

    return changed


study(
    "duration",
    question="How long may a clip be?",
    paper="PLA4D 8 frames, Align4D 14, AYG 16 a clip and prolonged, STAG4D and Consistent4D 32.",
    limits="The cases are loops of 16 frames: 32 and 64 are the same motion two and four times, which a field without a notion "
    "of loops does not know. Presets count steps, not frames: longer clips get no more of them but where frames are followed "
    "one by one.",
    axis="frames",
    variants=tuple(Variant(f"{count} frames", count, inputs=lasting(count)) for count in (16, 8, 24, 32, 48, 64)),
)


def striding(every: int, count: int = 4) -> Change:
    """``count`` frames, each ``every``-th."""

    def changed(inputs: Inputs) -> Inputs:
        def part(pictures: Tensor) -> Tensor:
            return pictures[every * torch.arange(count) % len(pictures)]

        fps = inputs.fps / every
        return replace(inputs, frames=part(inputs.frames), truth={a: part(p) for a, p in inputs.truth.items()}, fps=fps)

    return changed


study(
    "motion-range",
    question="How much may move from frame to frame?",
    paper="STAG4D names fast motion as a limit, PLA4D the small motion of open video models.",
    limits="4 frames, 1 to 5 frames of the clip apart: `frozen` says how much moves. On a loop the last of them are on the way "
    "back.",
    axis="frames apart",
    numbers=("frozen", "front", "unseen", "gain", "motion", "iou", "jitter", "seconds"),
    drawn=("gain", "motion", "front"),
    variants=tuple(Variant(f"{every} apart", every, inputs=striding(every)) for every in (1, 2, 3, 4, 5)),
)


# Other makers of videos and objects


def wobbling(frames: Tensor, generator: torch.Generator, amount: float = 0.012) -> Tensor:
    """What generated films do: each frame bent by a smooth field of its own, its brightness off by up to 5 %."""
    count, height, width, _ = frames.shape
    over = torch.cat([frames[..., :3] * frames[..., 3:], frames[..., 3:]], -1).movedim(-1, 1)
    bend = F.interpolate(torch.randn(count, 2, 4, 4, generator=generator), (height, width), mode="bicubic").movedim(1, -1)
    bend[0] = 0.0  # the object shows the first frame
    rows, columns = (torch.linspace(-1, 1, 2 * n + 1)[1::2] for n in (height, width))
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)[None] + 2 * amount * bend
    bent = F.grid_sample(over, grid, align_corners=False).movedim(1, -1)
    light = 1 + 0.05 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    light[0] = 1.0
    colors = (light * bent[..., :3] / bent[..., 3:].clamp_min(1e-6)).clamp(0, 1)
    return torch.cat([colors, bent[..., 3:].clamp(0, 1)], -1)


def outline(inputs: Inputs) -> Inputs:
    """An object that no model made: the first frame's outline inflated."""
    from ...core.generate.inflate import inflate
    from ...core.io.meshes import write_glb

    path = inputs.work / "object.glb"
    write_glb(path, inflate(inputs.frames[0]))
    return replace(inputs, object=path)


def splats(inputs: Inputs) -> Inputs:
    """The object as 8000 Gaussians, as image-to-splats models give it."""
    from ...core.io.objects import load_object
    from ...core.io.splats import write_splats
    from ...core.mesh import Mesh
    from ...core.methods.stages import gaussians_on_mesh

    mesh = load_object(inputs.object or "")
    assert isinstance(mesh, Mesh)
    path = inputs.work / "object.spz"
    write_splats(path, gaussians_on_mesh(mesh, 8000, inputs.seed)[0])
    return replace(inputs, object=path)


def made_by(video: str, item: str) -> Change:
    """A film and an object that models make of the first frame, "" = what is there; a film of its own has no truth."""

    def changed(inputs: Inputs) -> Inputs:
        from ...core.generate.chain import Links, complete
        from ...core.io import write_png
        from ...core.runs.demo import read_pictures

        picture = inputs.work / "first.png"
        write_png(picture, inputs.frames[0])
        links = Links(video=video or "svd", object=item or "lgm")
        if not video:
            made = complete(inputs.work, image=picture, video=picture, links=links, seed=inputs.seed, device=inputs.device)
            return replace(inputs, object=made.object)
        given = None if item else inputs.object
        made = complete(inputs.work, image=picture, object=given, links=links, seed=inputs.seed, device=inputs.device)
        frames = read_pictures(made.video)
        frames = frames[..., :3] if bool((frames[..., 3] == 1).all()) else frames
        return replace(inputs, frames=frames, fps=made.fps or inputs.fps, object=made.object, truth={})

    return changed


def one_after_the_other(*changes: Change | None) -> Change | None:
    """Changes in their order."""
    wanted = [change for change in changes if change is not None]

    def changed(inputs: Inputs) -> Inputs:
        for change in wanted:
            inputs = change(inputs)
        return inputs

    return changed if wanted else None


FILMS: dict[str, Change | None] = {"true film": None, "wobbling film": on_frames(wobbling)}
OBJECTS: dict[str, Change | None] = {"true mesh": None, "splats of the mesh": splats, "inflated outline": outline}

study(
    "generators",
    method="align4d",
    question="Does it matter who makes the video and who the object?",
    paper="Align4D, Table VI: {Meshy, Tripo3D} x {Kling, VideoCrafter}, near-equal votes.",
    limits="Stand-ins, none of them a generative model: the wobbling film is the true one bent and lit anew in each frame, "
    "splats and mesh are the true object, the inflated outline knows the first frame alone. Rows with svd, lgm or a Shap-E run "
    "where these are; a generated film has no truth, so its rows have only the front.",
    drawn=("unseen", "front"),
    variants=(
        *(
            Variant(f"{film}, {item}", cell=(film, item), inputs=one_after_the_other(alter, make))
            for film, alter in FILMS.items()
            for item, make in OBJECTS.items()
        ),
        Variant("true film, lgm", cell=("true film", "lgm"), inputs=made_by("", "lgm"), needs=("lgm", "imagedream")),
        Variant("svd, true mesh", cell=("svd", "true mesh"), inputs=made_by("svd", ""), needs=("svd",)),
        Variant("svd, lgm", cell=("svd", "lgm"), inputs=made_by("svd", "lgm"), needs=("svd", "lgm", "imagedream")),
    ),
)  # fmt: skip


# Repetition and size

study(
    "seeds",
    method="align4d",
    question="How much of a difference is chance?",
    paper="Align4D V-E repeats runs with other seeds; the numbers are not at hand.",
    limits="The same seed gives the same bits, so this is all the chance there is on one machine.",
    spread=True,
    variants=tuple(Variant(f"seed {seed}", settings={"seed": seed}) for seed in range(5)),
)


def budget(count: int) -> Variant:
    """So many Gaussians."""

    def change(config: MethodConfig) -> MethodConfig:
        return replace(config, static=replace(config.static, gaussians=count))

    return Variant(f"{count:,} Gaussians", count, config=change)


study(
    "gaussians",
    question="How many Gaussians does an object need?",
    paper="STAG4D 10,000, AYG about 20,000 and 150,000; PLA4D and Align4D do not say.",
    limits="At the size of the cases, 256 pixels; larger pictures need more.",
    axis="Gaussians",
    numbers=("front", "unseen", "gain", "motion", "iou", "gaussians", "memory", "card", "seconds"),
    drawn=("unseen", "front", "seconds"),
    variants=tuple(budget(count) for count in (8000, 500, 1000, 2000, 4000, 16_000, 32_000)),
)
