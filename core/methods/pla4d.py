"""PLA4D: pixel-level alignment for video (or text) to 4D. Liang et al., arXiv 2405.19957. First open implementation.

Three stages, each a function that the nodes and the command line call: the camera is aligned (Eq. 4), Gaussians are fitted to
the mesh and the first frame (Eq. 5-9), and a deformation field is fitted to the clip (Eq. 10; Eq. 11 needs a prior).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..align import FocalAlignment, align_camera, color_from_frame
from ..cameras import FrontCamera
from ..deformation import ControlNodes, DeformationField, DeformationMLP, HexPlane
from ..fit.checkpoint import fingerprint
from ..fit.density import DensityControl
from ..fit.estimate import FitEstimate, Pass, estimate_passes
from ..fit.loop import FitState, Inputs, Progress, Schedule, run_fit
from ..gaussians import Gaussians, from_points, neighbour_distances
from ..mesh import Mesh, sample_surface
from ..object3d import Object3D, SplatObject
from ..objectives.base import Objective, constant, linear
from ..objectives.first_frame import FirstFrame
from ..objectives.front import FrontMatch
from ..objectives.mesh import MeshMatch
from ..objectives.novel_view import NovelView
from ..objectives.reference import ReferenceRefinement
from ..objectives.rigidity import Rigidity, Smoothness
from ..priors.base import Prior
from ..priors.distill import Annealed, Distillation
from ..scene import Scene4D
from ..video import DrivingVideo, looks_looping

#: First weight of an objective that asks a prior, against a front match of weight 3; the paper does not give it. In our presets
#: it falls to zero, so that the front, which a prior's noise costs up to a decibel, is sharp again at the end
#: (docs/benchmarks.md).
REFINEMENT_WEIGHT = 0.6
NOVEL_VIEW_WEIGHT = 0.1
#: Diffusion times of our presets: below them a prior sharpens what is there, tears included.
REFINEMENT_TIME = Annealed(0.6, 0.4)


@dataclass(frozen=True)
class StaticConfig:
    """Frame-to-3D: Gaussians from the mesh and the first frame.

    Args:
        gaussians: sampled on the mesh's surface.
        schedule: of the fit.
        objectives: its terms.
        density: clone, split and prune, or None.
    """

    gaussians: int
    schedule: Schedule
    objectives: tuple[Objective, ...]
    density: DensityControl | None = None


@dataclass(frozen=True)
class MotionConfig:
    """3D-to-4D: the deformation field from the clip.

    Args:
        field: "control-nodes", "hexplane" or "mlp".
        tracking: schedule of the pass that follows the object frame by frame, or None.
        schedule: of the pass over all frames.
        fine: schedule of a pass at full size, or None.
        refine: schedule of a last pass, taken where an objective asks a diffusion prior (``generative``); those take part in
            this pass alone. None: they take part in every pass but the tracking one.
        objectives: terms of all passes.
        nodes: control nodes.
        opacity: whether opacity moves.
    """

    field: Literal["control-nodes", "hexplane", "mlp"]
    schedule: Schedule
    objectives: tuple[Objective, ...]
    tracking: Schedule | None = None
    fine: Schedule | None = None
    refine: Schedule | None = None
    nodes: int = 300
    opacity: bool = False


@dataclass(frozen=True)
class PLA4DConfig:
    """The whole method: ``preset()`` gives the named ones."""

    name: str
    alignment: Literal["robust", "literal"]
    resolution: int
    static: StaticConfig
    motion: MotionConfig
    focal_per_frame: bool = False


def preset(name: str, prior: Prior | None = None) -> PLA4DConfig:
    """ "paper", "standard" or "draft", with reference refinement (Eq. 11) where a prior is given.

    ``paper`` is the paper's text; what it leaves open is marked. ``draft`` and ``standard`` were chosen by measurement
    (docs/benchmarks.md) and are iteration counts, never time budgets.
    """
    if name == "paper":
        refinement: tuple[Objective, ...] = ()
        if prior is not None:
            distillation = Distillation(prior, time=Annealed(0.5, 0.02))  # 5.5: lambda_t 0.5 -> 0.02
            # App. A: batch 6; the weight is open, this keeps our presets' proportion.
            refinement = (ReferenceRefinement(distillation, linear(0.5, 0.02, 1e4 / 3 * REFINEMENT_WEIGHT), views=6, away=0.0),)
        sizes = ((0.5, 128), (0.7, 256), (1.0, 512))  # App. A: 128 until 50 %, 256 until 70 %, then 512
        return PLA4DConfig(
            name="paper",
            alignment="literal",  # Eq. 4
            resolution=512,  # 5.1: videos of 512 x 512
            static=StaticConfig(
                gaussians=40_000,  # open in the paper; 30 to 50 thousand surface points
                schedule=Schedule(steps=1000, resolutions=sizes, lr_final=0.02),  # App. A: 1000 iterations; rates open
                objectives=(
                    FrontMatch(
                        weight=linear(0.98, 0.02, 1e4), mask=0.1, perceptual=1e3
                    ),  # Eq. 5-8; lambda 0.98 -> 0.02; gamma open
                    MeshMatch(
                        weight=linear(0.98, 0.02, 1e4), views=6, mask=0.1, perceptual=1e3, elevation=(-30.0, 30.0)
                    ),  # Eq. 9, N_c' = 6
                ),
                density=DensityControl(every=100, start=100, stop=0.7),  # open in the paper; DreamGaussian's rhythm
            ),
            motion=MotionConfig(
                field="mlp",  # 5.4: an MLP on time
                opacity=True,  # 5.4: position, rotation, scale and opacity
                schedule=Schedule(
                    steps=65, resolutions=sizes, lr_final=1.0
                ),  # App. A: 65 iterations; all frames a step is our reading of batch 6
                objectives=(
                    FrontMatch(weight=linear(0.5, 0.02, 1e4), mask=0.1, perceptual=1e3),  # Eq. 10; lambda_t 0.5 -> 0.02
                    FirstFrame(weight=constant(1e4), views=1),  # Eq. 10, second term
                    *refinement,  # Eq. 11
                ),
            ),
        )
    if name not in _OURS:
        raise ValueError(f"preset {name!r}: unknown, choose paper, standard or draft")
    if prior is None:
        return _OURS[name](())
    distillation = Distillation(prior, time=REFINEMENT_TIME)
    return _OURS[name]((ReferenceRefinement(distillation, linear(REFINEMENT_WEIGHT, 0.0)),))


def _standard(refinement: tuple[Objective, ...]) -> PLA4DConfig:
    return PLA4DConfig(
        name="standard",
        alignment="robust",
        resolution=256,
        static=StaticConfig(
            gaussians=12_000,
            schedule=Schedule(steps=200, resolutions=((0.5, 128), (1.0, 256)), lr_final=0.1),
            objectives=(
                FrontMatch(weight=constant(1e4), mask=0.3, perceptual=0.0),
                MeshMatch(weight=constant(1e4), views=4, mask=0.3, perceptual=0.0),
            ),
        ),
        motion=MotionConfig(
            field="control-nodes",
            nodes=600,
            tracking=Schedule(steps=60, one_by_one=60, resolutions=((1.0, 96),), background="random"),
            schedule=Schedule(steps=300, resolutions=((0.6, 96), (1.0, 128)), background="random"),
            fine=Schedule(steps=400, resolutions=((0.5, 192), (1.0, 256)), background="random", smoothing=0.125, stiffness=0.5),
            refine=Schedule(
                steps=100, resolutions=((1.0, 256),), background="random", smoothing=0.125, stiffness=0.5, lr=0.3, lr_final=0.3
            ),
            objectives=(
                FrontMatch(weight=constant(3.0), mask=0.33, perceptual=0.0, levels=4),
                Rigidity(weight=constant(1.0), joints=0.05),
                Smoothness(weight=constant(20.0)),
                *refinement,
            ),
        ),
    )


def _draft(refinement: tuple[Objective, ...]) -> PLA4DConfig:
    standard = _standard(refinement)
    static, motion = standard.static, standard.motion
    assert motion.tracking is not None and motion.fine is not None and motion.refine is not None
    return replace(
        standard,
        name="draft",
        static=replace(static, gaussians=8000, schedule=replace(static.schedule, steps=80)),
        motion=replace(
            motion,
            tracking=replace(motion.tracking, one_by_one=15),
            schedule=replace(motion.schedule, steps=80, resolutions=((1.0, 96),)),
            fine=replace(motion.fine, steps=60, resolutions=((1.0, 160),)),
            refine=replace(motion.refine, steps=50, resolutions=((1.0, 160),)),
        ),
    )


_OURS = {"standard": _standard, "draft": _draft}


def v4(config: PLA4DConfig, prior: Prior | None = None) -> PLA4DConfig:
    """The variant ``pla4d-v4`` of a preset, after a summary of the later paper; the details are ours.

    A focal length for each frame (:func:`~anchor4d.core.align.clip.focal_per_frame`), and GS-Mesh losses (Eq. 9) on the 4D
    Gaussians at each frame's time, against that frame's mesh where there is one a frame, else against the first frame's. With a
    prior, time-multiview refinement: distillation at random (time, view) pairs, conditioned on that time's frame.
    """
    front = next((o for o in config.motion.objectives if isinstance(o, FrontMatch)), FrontMatch())
    match = MeshMatch(weight=front.weight, views=4, mask=front.mask, perceptual=front.perceptual, levels=front.levels)
    views: tuple[Objective, ...] = ()
    if prior is not None:
        views = (NovelView(Distillation(prior, time=REFINEMENT_TIME), linear(NOVEL_VIEW_WEIGHT, 0.0)),)
    return replace(
        config,
        name=f"{config.name}-v4",
        focal_per_frame=True,
        motion=replace(config.motion, objectives=(*config.motion.objectives, match, *views)),
    )


def untextured(config: PLA4DConfig) -> PLA4DConfig:
    """The preset for a mesh without colours of its own: its depth and normals count beside the colours filled in."""

    def geometric(objective: Objective) -> Objective:
        return replace(objective, depth=1.0, normals=0.3) if isinstance(objective, MeshMatch) else objective

    return replace(config, static=replace(config.static, objectives=tuple(map(geometric, config.static.objectives))))


def align(
    video: DrivingVideo,
    mesh: Object3D,
    *,
    mode: Literal["robust", "literal"] = "robust",
    yaw: Literal["auto"] | float = "auto",
    progress: Any = None,
) -> FocalAlignment:
    """Focal alignment (Eq. 4): the camera of the first frame, and the mesh normalised and turned to face it.

    A mesh without colours is given the first frame's, filled in where the frame does not see.
    """
    aligned = align_camera(mesh, video, yaw=yaw, mode=mode, progress=progress)
    if isinstance(aligned.mesh, Mesh) and not aligned.mesh.has_color:
        colored = color_from_frame(
            aligned.mesh, video.frames[0], video.masks[0], aligned.front.cropped(video.crop, video.resolution)
        )
        aligned = replace(aligned, mesh=colored)
    return aligned


def gaussians_on_mesh(mesh: Mesh, count: int, seed: int = 0) -> tuple[Gaussians, Tensor]:
    """Flat Gaussians on the surface, coloured from the texture, and the face that each lies on, (N,).

    Each is a disc across the surface normal about as wide as its neighbours are apart, and nearly opaque.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = sample_surface(mesh, count, generator)
    normals = F.normalize(samples.normals, dim=-1)
    width = neighbour_distances(samples.points, 6).mean(-1).clamp_min(1e-4)
    scales = width[:, None] * torch.tensor([0.55, 0.55, 0.12])
    # The shortest rotation from +Z, the discs' thin axis, to the normal.
    z = torch.tensor([0.0, 0.0, 1.0]).expand_as(normals)
    quats = torch.cat([1 + normals[:, 2:], torch.linalg.cross(z, normals)], -1)
    quats = torch.where(quats.norm(dim=-1, keepdim=True) < 1e-4, quats.new_tensor([0.0, 1.0, 0.0, 0.0]), quats)
    return from_points(
        samples.points, samples.colors, scales=scales, quats=F.normalize(quats, dim=-1), opacity=0.95
    ), samples.face


def fit_static(
    video: DrivingVideo,
    mesh: Object3D,
    front: FrontCamera,
    config: StaticConfig,
    *,
    seed: int = 0,
    backend: str = "auto",
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> Scene4D:
    """Frame-to-3D: Gaussians on the mesh, fitted to the first frame and to renders of the mesh (Eq. 5-9).

    Args:
        video: driving video; its first frame is the reference.
        mesh: aligned, see :func:`align`. Of Gaussians, as many as the configuration has are where the fit starts.
        front: the aligned camera.

    Returns:
        a scene of one still object with the video's timing.
    """
    if isinstance(mesh, SplatObject):
        gaussians = mesh.thinned(config.gaussians, seed)
    else:
        gaussians, _ = gaussians_on_mesh(mesh, config.gaussians, seed)
    state = FitState(gaussians.to(video.frames.device))
    if config.objectives:
        inputs = Inputs(video=video, taus=torch.zeros(1), fronts=[front], meshes=[mesh], backend=backend)
        state = run_fit(
            "frame to 3D", state, config.objectives, config.schedule, inputs, train="gaussians", seed=seed,
            density=None if config.density is None else replace(config.density), progress=progress, checkpoint=checkpoint,
            key=fingerprint(video.frames, video.masks, mesh.vertices, asdict(front), repr(config), seed),
        )  # fmt: skip
    loop = looks_looping(video)
    return Scene4D(
        state.gaussians, None, frames=len(video), fps=video.fps, loop=loop, front=front, crop=video.crop,
        meta={"method": "pla4d", "losses": {"frame to 3D": state.losses}},
    )  # fmt: skip


def build_field(config: MotionConfig, scene: Scene4D, mesh: Object3D | None = None, seed: int = 0) -> DeformationField:
    """A deformation field at rest for a scene's Gaussians.

    Args:
        mesh: its surface tells control nodes which parts belong together; without one, neighbourhoods in space do.
    """
    torch.manual_seed(seed)
    if config.field == "control-nodes":
        surface = mesh if isinstance(mesh, Mesh) else None
        return ControlNodes.build(
            scene.gaussians, scene.frames, mesh=surface, nodes=config.nodes, loop=scene.loop, opacity=config.opacity
        )
    if config.field == "hexplane":
        field = HexPlane(time_resolution=max(2, math.ceil(0.85 * scene.frames)), opacity=config.opacity)
        return field.to(scene.gaussians.device)
    if config.field == "mlp":
        return DeformationMLP(opacity=config.opacity).to(scene.gaussians.device)
    raise ValueError(f"field {config.field!r}: unknown, choose control-nodes, hexplane or mlp")


def fit_motion(
    video: DrivingVideo,
    scene: Scene4D,
    config: MotionConfig,
    *,
    mesh: Object3D | None = None,
    meshes: Sequence[Object3D] = (),
    fronts: Sequence[FrontCamera] = (),
    seed: int = 0,
    backend: str = "auto",
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> Scene4D:
    """3D-to-4D: a deformation field that makes the scene's object follow the video (Eq. 10, and 11 with a prior).

    Args:
        video: driving video.
        scene: a still object with its aligned camera, see :func:`fit_static`.
        mesh: the aligned mesh: the surface for control nodes, and the target of mesh objectives.
        meshes: one aligned mesh a frame instead (variant v4).
        fronts: one camera a frame instead of the scene's (variant v4).
    """
    if scene.front is None:
        raise ValueError("motion: the scene has no aligned camera; align it with the driving video first")
    if len(video) != scene.frames:
        raise ValueError(
            f"motion: the video has {len(video)} frames but the scene {scene.frames}; prepare both from the same clip"
        )
    field = build_field(config, scene, mesh, seed)
    inputs = _motion_inputs(video, scene, mesh, meshes, fronts, backend)
    key = fingerprint(
        video.frames, video.masks, scene.gaussians.tensors(), [asdict(f) for f in inputs.fronts],
        [m.vertices for m in inputs.meshes], repr(config), seed,
    )  # fmt: skip
    state = FitState(scene.gaussians, field)
    losses = dict(scene.meta.get("losses", {}))
    for stage, part in motion_passes(config, len(video)):
        path = None if checkpoint is None else _with_stage(checkpoint, stage)
        state = run_fit(
            stage,
            state,
            part.objectives,
            part.schedule,
            inputs,
            train="field",
            seed=seed,
            progress=progress,
            checkpoint=path,
            key=key,
        )
        losses[stage] = state.losses
    return replace(scene, field=state.field, meta={**scene.meta, "losses": losses})


def motion_passes(config: MotionConfig, frames: int) -> list[tuple[str, Pass]]:
    """The passes of :func:`fit_motion` by name; those without objectives or steps left out."""
    plain = tuple(o for o in config.objectives if not getattr(o, "generative", False))
    asking = config.objectives if len(plain) < len(config.objectives) else ()
    joint = plain if config.refine is not None else config.objectives
    tracking = config.tracking
    if tracking is not None and tracking.one_by_one:
        tracking = replace(tracking, steps=tracking.one_by_one * (frames - 1))
    passes = [
        ("follow frame by frame", tracking, plain),
        ("3D to 4D", config.schedule, joint),
        ("3D to 4D, fine", config.fine, joint),
        ("3D to 4D, refine", config.refine, asking),
    ]
    return [(stage, Pass(terms, schedule)) for stage, schedule, terms in passes if schedule and schedule.steps and terms]


def _motion_inputs(
    video: DrivingVideo,
    scene: Scene4D,
    mesh: Object3D | None,
    meshes: Sequence[Object3D],
    fronts: Sequence[FrontCamera],
    backend: str,
) -> Inputs:
    assert scene.front is not None
    return Inputs(
        video=video, taus=scene.taus, fronts=list(fronts) or [scene.front],
        meshes=list(meshes) or ([] if mesh is None else [mesh]), loop=scene.loop, backend=backend,
    )  # fmt: skip


def estimate(
    video: DrivingVideo,
    scene: Scene4D,
    config: StaticConfig | MotionConfig,
    *,
    mesh: Object3D | None = None,
    meshes: Sequence[Object3D] = (),
    fronts: Sequence[FrontCamera] = (),
    backend: str = "auto",
) -> FitEstimate:
    """What :func:`fit_static` or :func:`fit_motion` will cost, from a few steps of each pass; the scene may be unfitted."""
    inputs = _motion_inputs(video, scene, mesh, meshes, fronts, backend)
    if isinstance(config, StaticConfig):
        inputs = replace(inputs, taus=scene.taus[:1])
        passes = [Pass(config.objectives, config.schedule, "gaussians")] if config.objectives else []
        return estimate_passes(passes, FitState(scene.gaussians), inputs)
    state = FitState(scene.gaussians, build_field(config, scene, mesh))
    return estimate_passes([part for _, part in motion_passes(config, len(video))], state, inputs)


def _with_stage(checkpoint: str | Path, stage: str) -> Path:
    path = Path(checkpoint)
    return path.with_name(f"{path.stem}-{stage.replace(', ', '-').replace(' ', '-')}{path.suffix}")
