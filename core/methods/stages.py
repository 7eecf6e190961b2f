"""The stages that methods share, each a function that the nodes and the command line call.

The camera is aligned, Gaussians are fitted to the object and the first frame (frame to 3D), and a deformation field is fitted
to the clip (3D to 4D). A method is a :class:`MethodConfig`: which search, which objectives, how long.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as default
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..align import FocalAlignment, align_camera, align_together, color_from_frame
from ..align.distance import LENS, Meaning, ModelDistance, align_distance, align_model_distance, fixed_camera, visual_distance
from ..cameras import FrontCamera, matrix_to_quaternion
from ..deformation import FIELDS, ControlNodes, DeformationField
from ..files import InputError
from ..fit.density import DensityControl
from ..fit.estimate import FitEstimate, Pass, estimate_passes
from ..fit.loop import GAUSSIAN_LR, FitState, Inputs, Schedule, Train, run_fit
from ..gaussians import Gaussians, from_points, neighbour_distances, random_gaussians
from ..generate.anchors import sample_anchors
from ..generate.sampling import StepProgress
from ..identity import fingerprint
from ..mesh import Mesh, sample_evenly, sample_surface
from ..objectives.base import Objective
from ..objectives.motion_prior import MotionPriorPull
from ..priors.base import Prior, Role
from ..progress import Progress
from ..render import rasterize
from ..scene.anchors import Anchors
from ..scene.object3d import Object3D, SplatObject
from ..scene.scene import Scene4D
from ..video import DrivingVideo, looks_looping, moving_fronts
from . import structure
from .backing import bare, closed, seconds_to_close
from .caution import certainty, certainty_line
from .following import Following, carried_over, follow
from .reveal import revealed

log = logging.getLogger(__name__)

#: How the driving video's camera is found: PLA4D's focal alignment or Align4D's object distance (VAOD), each robust or as the
#: paper searches, or DreamGaussian4D's fixed camera.
Camera = Literal["focal", "focal-literal", "distance", "distance-literal", "fixed"]


@dataclass(frozen=True)
class StaticConfig:
    """Frame-to-3D: Gaussians from the mesh and the first frame.

    Args:
        gaussians: sampled on the mesh's surface; without a mesh, grey ones spread in a ball.
        schedule: of the fit.
        objectives: its terms.
        density: clone, split and prune, or None.
        rates: learning rates of the Gaussians in place of :data:`~..fit.loop.GAUSSIAN_LR`.
        frame: which frame of the clip is fitted, "first" or "middle"; a given object shows the first.
    """

    gaussians: int
    schedule: Schedule
    objectives: tuple[Objective, ...]
    density: DensityControl | None = None
    rates: Mapping[str, float] | None = None
    frame: Literal["first", "middle"] = "first"

    def changed(self, change: Change) -> StaticConfig:
        """With its objectives changed; those that become None are left out."""
        return replace(self, objectives=_all(self.objectives, change))


@dataclass(frozen=True)
class MotionConfig:
    """3D-to-4D: the deformation field from the clip.

    Args:
        field: name of a deformation field, of :data:`~..deformation.FIELDS`.
        tracking: schedule of the pass that follows the object frame by frame, or None.
        lift: schedule of a pass behind it, without the video, taken where an objective starts the motion: of that one and the
            regularisers; or None.
        schedule: of the pass over all frames.
        fine: schedule of a pass at full size, or None.
        refine: schedule of a last pass, taken where an objective asks a diffusion prior; those take part in this pass
            alone. None: they take part in every pass but the tracking one.
        objectives: terms of all passes.
        following: how the motion is first found by flow, without a fit; or None.
        fields: settings of fields by their names, see their ``build``; a field that is not among them has its own defaults.
        train: "field", or "both": the Gaussians too, at once or in turns (:attr:`Schedule.turns`).
        density: clone, split and prune in the pass over all frames, where the Gaussians are trained and the field moves any
            number of them; or None.
        rates: learning rates of the Gaussians in place of :data:`~..fit.loop.GAUSSIAN_LR`.
        joints: the pass over all frames is taken with the object as rigid parts on joints too, of an object with a rig on the
            rig's, and those are kept where they leave at most this many times the free motion's error in the driving view,
            see :func:`.structure.chosen`; 0 tries none.
    """

    field: str
    schedule: Schedule
    objectives: tuple[Objective, ...]
    tracking: Schedule | None = None
    lift: Schedule | None = None
    fine: Schedule | None = None
    refine: Schedule | None = None
    following: Following | None = None
    fields: Mapping[str, Mapping[str, Any]] = default(default_factory=dict)
    train: Train = "field"
    density: DensityControl | None = None
    rates: Mapping[str, float] | None = None
    joints: float = 0.0

    def changed(self, change: Change) -> MotionConfig:
        """With its objectives changed; those that become None are left out."""
        return replace(self, objectives=_all(self.objectives, change))


@dataclass(frozen=True)
class AnchorConfig:
    """How the anchors of a driving video are sampled (STAG4D), see :func:`~..generate.anchors.sample_anchors`.

    Args:
        prior: that draws them.
        gamma: share of the first frame's features.
        steps, guidance: of the sampler, for priors of single pictures.
        plus_steps, plus_guidance: of the sampler, for priors of six views (Zero123++).
        together: frames sampled in a batch, the first aside.
    """

    prior: Prior
    gamma: float = 0.5
    steps: int = 30
    guidance: float | None = None
    plus_steps: int = 75
    plus_guidance: float | None = 4.0
    together: int = 2


@dataclass(frozen=True)
class Config:
    """Settings of a whole method: plain data, until :meth:`bound` puts models in the places of their roles.

    Args:
        name: of the preset.
        static, motion: the two fits.
    """

    name: str
    static: StaticConfig
    motion: MotionConfig

    def changed(self, change: Change) -> Self:
        """With the objectives of all fits changed; those that become None are left out."""
        return replace(self, static=self.static.changed(change), motion=self.motion.changed(change))

    def bound(self, models: Mapping[str, Prior]) -> Self:
        """With models in the places of their roles; what asks a model that is not there is left out."""
        return self.changed(lambda o: o.bound(models))


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Config):
    """A whole method that follows a video; ``preset()`` of its file gives the named ones.

    Args:
        camera: how it is found.
        resolution: of the driving video as it is read, pixels.
        model_distance: search the prior's preferred object distance (MAOD) and condition it on that; None = no search.
        anchors: how the anchors are sampled; None = none are, unless they are given.
        distance: of the lens (49.1 degrees) of anchors from the object, whose longest side is 1; where ``model_distance`` is
            searched for, the video's.
        with_object: takes this one's place where an object is given to a method that needs none.
    """

    camera: Camera
    resolution: int
    model_distance: Meaning | None = None
    anchors: AnchorConfig | None = None
    distance: float = 1.7
    with_object: MethodConfig | None = None

    def bound(self, models: Mapping[str, Prior]) -> Self:
        anchors, given = self.anchors, self.with_object
        if anchors is not None and isinstance(anchors.prior, Role):
            drawn = models.get(anchors.prior.name)
            anchors = None if drawn is None else replace(anchors, prior=drawn)
        bare = super().bound(models)
        return replace(bare, anchors=anchors, with_object=None if given is None else given.bound(models))


#: What is made of an objective; None leaves it out.
Change = Callable[[Objective], Objective | None]


def _all(terms: Sequence[Objective], change: Change) -> tuple[Objective, ...]:
    return tuple(made for o in terms if (made := change(o)) is not None)


def untextured(config: MethodConfig) -> MethodConfig:
    """The preset for a mesh without colours of its own: its depth and normals count beside the colours filled in."""
    return replace(config, static=replace(config.static, objectives=tuple(o.untextured() for o in config.static.objectives)))


def align(
    video: DrivingVideo,
    mesh: Object3D,
    *,
    camera: Camera = "focal",
    yaw: Literal["auto"] | float = "auto",
    same_camera: FrontCamera | None = None,
    progress: Any = None,
) -> FocalAlignment:
    """The camera of the first frame, and the object normalised and turned to face it.

    A mesh without colours is given the first frame's, filled in where the frame does not see.

    Args:
        same_camera: of another object of the clip, whose field of view this one's has; an object among others is always
            searched robustly.
    """
    if video.hidden is not None:
        return colored(align_together([mesh], [video], yaws=[yaw], camera=same_camera, progress=progress)[0], video)
    if same_camera is not None:
        raise InputError(f"{video.source}: shares no camera, it shows one object; split the clip into its objects")
    search, _, literal = camera.partition("-")
    mode: Any = literal or "robust"
    if search == "focal":
        aligned = align_camera(mesh, video, yaw=yaw, mode=mode, progress=progress)
    elif search == "distance":
        aligned = align_distance(mesh, video, yaw=yaw, mode=mode, progress=progress)
    else:
        aligned = fixed_camera(mesh, video, yaw=yaw, progress=progress)
    return colored(aligned, video)


def realign(
    video: DrivingVideo,
    alignment: FocalAlignment,
    *,
    mode: Literal["robust", "literal"] = "robust",
    yaw: Literal["keep", "auto"] | float = "keep",
    solve_elevation: bool = False,
    progress: Any = None,
) -> FocalAlignment:
    """The object distance (VAOD) of an object that another search, such as DreamGaussian4D's fixed camera, has aligned.

    Colours that the earlier alignment took from the frame are taken anew: through the wrong camera they lie in wrong places.

    Args:
        yaw: degrees to turn the object as it was before any alignment, ``keep`` for the turn it has, ``auto`` to detect it.
    """
    mesh = alignment.mesh
    if isinstance(mesh, Mesh) and alignment.report.get("coloured"):
        mesh = replace(mesh, vertex_colors=None)
    turn: Any = "auto" if yaw == "auto" else 0.0 if yaw == "keep" else yaw - alignment.yaw
    found = align_distance(
        mesh,
        video,
        mode=mode,
        yaw=turn,
        elevation=alignment.front.elevation,
        solve_elevation=solve_elevation,
        fovy=alignment.report.get("lens", LENS),
        progress=progress,
    )
    total = 180 - (180 - alignment.yaw - found.yaw) % 360
    return colored(replace(found, yaw=total, report=found.report | {"yaw": total}), video)


def colored(aligned: FocalAlignment, video: DrivingVideo) -> FocalAlignment:
    """A mesh without colours given those of the first frame, as its camera sees it; the report then says ``coloured``."""
    if not isinstance(aligned.mesh, Mesh) or aligned.mesh.has_color:
        return aligned
    log.warning(
        "%s: has no colours; the first frame's are taken and continued on the sides that it does not see. Give it with its "
        "texture or vertex colours for true ones",
        aligned.mesh.name or "object",
    )
    camera = aligned.front.cropped(video.crop, video.resolution)
    mesh = color_from_frame(aligned.mesh, video.frames[0], video.masks[0], camera)
    return replace(aligned, mesh=mesh, report=aligned.report | {"coloured": True})


def prefer_distance(
    config: MethodConfig,
    video: DrivingVideo,
    alignment: FocalAlignment,
    *,
    seed: int = 0,
    progress: Any = None,
) -> tuple[MethodConfig, ModelDistance | None]:
    """The distance that the configuration's prior prefers (MAOD), found and given to the objectives that ask it.

    None, and the configuration as it is, where it wants no search or has no such objective.
    """
    asked = [p for o in (*config.motion.objectives, *config.static.objectives) if "distance" in o.takes for p in o.priors()]
    if config.model_distance is None or not asked:
        return config, None
    found = align_model_distance(alignment, video, asked[0], meaning=config.model_distance, seed=seed, progress=progress)
    return config.changed(lambda o: o.with_distance(found.distance)), found


def with_anchors(config: MethodConfig, anchors: Anchors) -> MethodConfig:
    """The configuration whose objectives look at these anchors."""
    return config.changed(lambda o: o.with_anchors(anchors))


def anchor_distance(config: MethodConfig, video: DrivingVideo, front: FrontCamera) -> float:
    """Where the lens of anchors stands."""
    return config.distance if config.model_distance is None else visual_distance(front, video.crop)


def draw_anchors(
    video: DrivingVideo, front: FrontCamera, config: MethodConfig, *, seed: int = 0, progress: StepProgress | None = None
) -> Anchors | None:
    """The anchors of a driving video as the configuration has them; None where it has none."""
    how = config.anchors
    if how is None:
        return None
    steps, guidance = (how.plus_steps, how.plus_guidance) if how.prior.pictures == 6 else (how.steps, how.guidance)
    return sample_anchors(
        how.prior, video, front, distance=anchor_distance(config, video, front), fovy=LENS, gamma=how.gamma, steps=steps,
        guidance=guidance, seed=seed, together=how.together, progress=progress,
    )  # fmt: skip


def match_anchors(anchors: Anchors, still: Gaussians, frame: int, *, backend: str = "auto") -> Anchors:
    """Anchors scaled to the object as it is at a frame, for priors that frame every object in their own way (Zero123++)."""
    with torch.no_grad():
        cameras = anchors.cameras().to(still.device)
        return anchors.matched(rasterize(still, cameras, backend=backend).alpha, frame)


def without_object(video: DrivingVideo, *, distance: float, points: int, seed: int = 0) -> FocalAlignment:
    """Point-cloud initialisation in place of an object, and the camera under which the video's object is about 1 large.

    The longest side of its outline, in the frame where it is largest, counts as 1, and the centre of the video's crop as the
    origin.

    Args:
        distance: of the camera from the origin.
        points: in a ball whose diameter is 1.
    """
    started = time.perf_counter()
    crop = video.crop
    inside = video.masks > 0.5
    spans = [inside.any(dim).float().sum(-1).max() for dim in (1, 2)]
    share = max(float(max(spans)) / video.resolution, 1e-3)
    focal = distance * share * crop.size  # pixels: a length of 1 at this distance takes the outline's pixels
    front = FrontCamera(
        2 * math.degrees(math.atan(crop.height / 2 / focal)), distance, crop.width, crop.height,
        cx=crop.x + crop.size / 2, cy=crop.y + crop.size / 2,
    )  # fmt: skip
    ball = SplatObject.of(random_gaussians(points, torch.Generator().manual_seed(seed)), "point cloud")
    report = {"mode": "none", "share": share, "seconds": time.perf_counter() - started}
    return FocalAlignment(front, ball, 0.0, [], 0.0, report)


#: Points of the surface for each Gaussian, and the spread of those around it, relative to its width, below which it lies on
#: something thinner than itself.
AROUND, WIRE = 4, 0.5


def gaussians_on_mesh(mesh: Mesh, count: int, seed: int = 0) -> tuple[Gaussians, Tensor]:
    """Flat Gaussians on the surface, coloured from the texture, and the face that each lies on, (N,).

    Each is a disc across the surface normal, about as wide as its neighbours are apart, evenly spread so that gaps are small,
    and nearly opaque. On what is thinner than that, a wire or a leg of an insect, it is drawn out along it instead.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = sample_evenly(mesh, count, generator)
    normals = F.normalize(samples.normals, dim=-1)
    width = neighbour_distances(samples.points, 6).mean(-1).clamp_min(1e-4)
    discs = _discs(samples.points, samples.colors, normals, 0.55 * width, 0.97)
    return _along_wires(discs, mesh, generator), samples.face


def _along_wires(discs: Gaussians, mesh: Mesh, generator: torch.Generator) -> Gaussians:
    """Discs that reach beyond the surface around them take its axes: long along it, across it as thin as it is."""
    from scipy.spatial import KDTree

    centres, width = discs.means.double(), discs.log_scales[:, 0].exp().double()
    surface = sample_surface(mesh, AROUND * len(discs), generator).points.double()
    away, index = KDTree(surface.numpy()).query(centres.numpy(), k=min(6 * AROUND, len(surface)))
    near = torch.from_numpy(away) < 2 * width[:, None]
    offsets = (surface[torch.from_numpy(index)] - centres[:, None]) * near[..., None]  # (N, K, 3)
    # Not as a matrix product, whose last bits are the processor's.
    spread = (offsets[..., :, None] * offsets[..., None, :]).sum(1) / near.sum(1).clamp_min(1)[:, None, None]
    variance, axes = torch.linalg.eigh(spread)  # smallest first
    reach = variance.clamp_min(0).sqrt()
    # Of a flat surface the spread within two widths is one width, at its border too.
    thin = (reach[:, 1] < WIRE * width) & (reach[:, 2] > 0)
    if not bool(thin.any()):
        return discs
    axes = torch.where(torch.linalg.det(axes)[:, None, None] < 0, -axes, axes)[thin]
    scales = torch.maximum(torch.minimum(reach, width[:, None]), 0.04 * width[:, None])[thin]
    scales[:, 2] = width[thin]
    quats, log_scales = discs.quats.clone(), discs.log_scales.clone()
    quats[thin], log_scales[thin] = matrix_to_quaternion(axes.float()), scales.log().float()
    return replace(discs, quats=quats, log_scales=log_scales)


def _discs(points: Tensor, colors: Tensor, normals: Tensor, width: Tensor, opacity: float) -> Gaussians:
    """Flat Gaussians across unit normals, a fifth as thick as wide."""
    # The shortest rotation from +Z, the discs' thin axis, to the normal.
    z = torch.tensor([0.0, 0.0, 1.0]).expand_as(normals)
    quats = torch.cat([1 + normals[:, 2:], torch.linalg.cross(z, normals)], -1)
    quats = torch.where(quats.norm(dim=-1, keepdim=True) < 1e-4, quats.new_tensor([0.0, 1.0, 0.0, 0.0]), quats)
    scales = width[:, None] * torch.tensor([1.0, 1.0, 0.2])
    return from_points(points, colors, scales=scales, quats=F.normalize(quats, dim=-1), opacity=opacity)


def fit_static(
    video: DrivingVideo | None,
    mesh: Object3D | None,
    front: FrontCamera,
    config: StaticConfig,
    *,
    start: Gaussians | None = None,
    close: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
    backend: str = "auto",
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    identity: str = "",
) -> Scene4D:
    """Frame-to-3D: Gaussians on the mesh, fitted to the first frame and to renders of the mesh (Eq. 5-9).

    Args:
        video: driving video; its first frame is the reference. None where the objectives compare with none.
        mesh: aligned, see :func:`align`. Of Gaussians, as many as the configuration has are where the fit starts. None where
            the object is made of nothing, as of a text.
        front: the aligned camera.
        start: Gaussians to start from instead.
        close: with Gaussians beneath the surface where its far side would show through (:mod:`.backing`), for an object that
            is looked at as it is; :func:`fit_motion` takes them away and puts its own.
        device: of a fit without a video.
        identity: of all inputs, where the caller knows it; else their content is theirs.

    Returns:
        a scene of one static object with the video's timing, else of a single frame.
    """
    if start is not None:
        gaussians = start
    elif mesh is None:
        gaussians = random_gaussians(config.gaussians, torch.Generator().manual_seed(seed))
    elif isinstance(mesh, SplatObject):
        gaussians = mesh.thinned(config.gaussians, seed)
    else:
        gaussians, _ = gaussians_on_mesh(mesh, config.gaussians, seed)
    state = FitState(gaussians.to(device if video is None else video.frames.device))
    stage = "frame to 3D" if video is not None else "to 3D" if start is None else "to 3D, fine"
    if config.objectives:
        frame = len(video) // 2 if video is not None and config.frame == "middle" else 0
        meshes, content = [] if mesh is None else [mesh], mesh or gaussians.tensors()
        seen = moving_fronts(video, front)[frame if video is not None and video.shifts is not None else 0]
        inputs = Inputs(video=video, taus=torch.zeros(1), fronts=[seen], meshes=meshes, backend=backend, first=frame)
        state = run_fit(
            stage, state, config.objectives, config.schedule, inputs, train="gaussians", seed=seed,
            density=config.density, gaussian_lr=_rates(config),
            progress=progress, checkpoint=checkpoint,
            key="" if checkpoint is None else fingerprint(identity or [video, content, front], config, seed),
        )  # fmt: skip
    surface = mesh if isinstance(mesh, Mesh) else None
    scene = Scene4D(state.gaussians, front=front, meta={"losses": {stage: state.losses}}, surface=surface)
    if close:
        scene = closed(scene, backend=backend, progress=progress)
    if video is None:
        return scene
    return replace(scene, frames=len(video), fps=video.fps, loop=looks_looping(video), crop=video.crop)


def build_field(config: MotionConfig, scene: Scene4D, mesh: Object3D | None = None, seed: int = 0) -> DeformationField:
    """A deformation field at rest for a scene's Gaussians.

    Args:
        mesh: by its surface control nodes know which parts belong together; without one, neighbourhoods in space do.

    Raises:
        InputError: for an unknown field.
    """
    kind = FIELDS.named(config.field)
    torch.manual_seed(seed)
    return kind.build(scene, mesh if isinstance(mesh, Mesh) else None, **config.fields.get(config.field, {}))


def fit_motion(
    video: DrivingVideo | None,
    scene: Scene4D,
    config: MotionConfig,
    *,
    mesh: Object3D | None = None,
    meshes: Sequence[Object3D] = (),
    fronts: Sequence[FrontCamera] = (),
    field: DeformationField | None = None,
    start: Scene4D | None = None,
    window: tuple[float, float] = (0.0, 1.0),
    label: str = "",
    reveal: bool = False,
    seed: int = 0,
    backend: str = "auto",
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    identity: str = "",
) -> Scene4D:
    """3D-to-4D: a deformation field that makes the scene's object follow the video (Eq. 10, and 11 with a prior).

    Args:
        video: driving video; None where the objectives compare with none.
        scene: a static object with its aligned camera, see :func:`fit_static`.
        mesh: the aligned mesh: the surface for control nodes, and the target of mesh objectives.
        meshes: one aligned mesh a frame instead (variant v4).
        fronts: one camera a frame instead of the scene's (variant v4).
        field: to train instead of one that the configuration makes.
        start: a moving scene of the same object, with whose motion the fit starts in place of following the video, see
            :mod:`.following`; None: ``scene`` itself where it moves.
        window: the part of the clip, of [0, 1], whose frames the objectives see.
        label: put before the stages' names.
        reveal: what the first frame hides takes the colours in which later frames show it (:mod:`.reveal`), for an object whose
            colours there are a guess.
        identity: of all inputs, where the caller knows it; else their content is theirs.

    Returns:
        the moving scene; where the far side would show through, with Gaussians beneath its surface (:mod:`.backing`). Of fields
        with handles, ``meta["certainty"]`` says where the motion is a guess (:mod:`.caution`).
    """
    if scene.front is None:
        raise ValueError("motion: the scene has no aligned camera; align it with the driving video first")
    if video is not None and len(video) != scene.frames:
        raise ValueError(
            f"motion: the video has {len(video)} frames but the scene {scene.frames}; prepare both from the same clip"
        )
    scene = bare(scene)
    inputs = _motion_inputs(video, scene, mesh, meshes, fronts, backend)
    inside = (inputs.taus >= window[0] - 1e-6) & (inputs.taus <= window[1] + 1e-6)
    inputs = replace(inputs, taus=inputs.taus[inside])
    given = None if field is None else [field.config(), field.state_dict()]
    started = False
    if field is None:
        field = build_field(config, scene, mesh, seed)
        start = scene if start is None else start
        if start.field is not None:
            given = [start.gaussians.tensors(), start.field]
            started = carried_over(start, field, scene)
        elif config.following is not None and video is not None:
            if not isinstance(field, ControlNodes):
                raise InputError(f"preset preview: moves control nodes, not a {field.name} field; choose control-nodes")
            follow(video, scene, inputs.fronts, field, config.following, backend=backend, progress=progress)
            started = True
    content = [video, scene.gaussians.tensors(), inputs.fronts, inputs.meshes, given]
    key = "" if checkpoint is None else fingerprint(identity or content, label, window, config, seed)
    state = FitState(scene.gaussians, field)
    losses = dict(scene.meta.get("losses", {}))

    def taken(state: FitState, stage: str, part: Pass) -> FitState:
        return run_fit(
            stage,
            state,
            part.objectives,
            part.schedule,
            inputs,
            train=part.train,
            seed=seed,
            density=None if stage != label + "3D to 4D" else config.density,
            gaussian_lr=_rates(config),
            progress=progress,
            checkpoint=None if checkpoint is None else _with_stage(checkpoint, stage),
            key=key,
        )

    for stage, part in motion_passes(config, scene.frames, started):
        stage = label + stage
        if part.schedule is config.fine and state.field is not None:
            # At full size covariances follow the surface; in the coarse passes that would cost more than a tenth of a step.
            state = replace(state, field=state.field.stretching())
        rival = None
        if config.joints and video is not None and stage == label + "3D to 4D":
            shape = mesh if isinstance(mesh, Mesh) else scene.surface
            if shape is not None and shape.skin is not None:
                rival = structure.rigged(state, scene, shape, video, inputs.fronts, backend)
            else:
                rival = structure.articulated(state, inputs.taus)
        state = taken(state, stage, part)
        if rival is not None and video is not None:
            rival = taken(rival, f"{stage}, joints", part)
            state = structure.chosen(state, rival, scene, video, inputs.fronts, config.joints, backend)
        losses[stage] = state.losses
    surface = mesh if scene.surface is None and isinstance(mesh, Mesh) else scene.surface
    made = replace(scene, gaussians=state.gaussians, field=state.field, meta={**scene.meta, "losses": losses}, surface=surface)
    if video is None:
        return made
    pull = next((o for o in config.objectives if isinstance(o, MotionPriorPull)), None)
    if (sure := certainty(made, video, inputs.fronts, None if pull is None else pull.prior, backend)) is not None:
        held = {"flat": True} if pull is not None and pull.flat else {}
        made = replace(made, meta={**made.meta, "certainty": sure.report() | held})
        log.info("%s", certainty_line(made.meta["certainty"]))
    if reveal:
        made = revealed(made, video, inputs.fronts, backend)
    return closed(made, video, inputs.fronts, backend, progress)


def motion_passes(config: MotionConfig, frames: int, started: bool = False) -> list[tuple[str, Pass]]:
    """The passes of :func:`fit_motion` by name; those without objectives or steps left out.

    Args:
        started: the field moves already, and need not follow frame by frame.
    """
    plain = tuple(o for o in config.objectives if not o.priors())
    asking = tuple(o for o in config.objectives if not o.starts) if len(plain) < len(config.objectives) else ()
    joint = plain if config.refine is not None else config.objectives
    tracking = None if started else config.tracking
    if tracking is not None and tracking.one_by_one:
        tracking = replace(tracking, steps=tracking.one_by_one * (frames - 1))
    following = tuple(o for o in plain if not o.starts)
    lifting = tuple(o for o in plain if o.starts or o.regularises) if len(following) < len(plain) else ()
    passes = [
        ("follow frame by frame", tracking, following),
        ("lift", config.lift, lifting),
        ("3D to 4D", config.schedule, joint),
        ("3D to 4D, fine", config.fine, joint),
        ("3D to 4D, refine", config.refine, asking),
    ]
    return [
        # Following a frame moves that frame's part of the field alone.
        (stage, Pass(terms, schedule, "field" if schedule.one_by_one else config.train))
        for stage, schedule, terms in passes
        if schedule and schedule.steps and terms
    ]


def _motion_inputs(
    video: DrivingVideo | None,
    scene: Scene4D,
    mesh: Object3D | None,
    meshes: Sequence[Object3D],
    fronts: Sequence[FrontCamera],
    backend: str,
) -> Inputs:
    assert scene.front is not None
    return Inputs(
        video=video, taus=scene.taus, fronts=list(fronts) or moving_fronts(video, scene.front),
        meshes=list(meshes) or ([] if mesh is None else [mesh]), loop=scene.loop, backend=backend,
    )  # fmt: skip


def estimate(
    video: DrivingVideo | None,
    scene: Scene4D,
    config: StaticConfig | MotionConfig,
    *,
    mesh: Object3D | None = None,
    meshes: Sequence[Object3D] = (),
    fronts: Sequence[FrontCamera] = (),
    backend: str = "auto",
    progress: Progress | None = None,
) -> FitEstimate:
    """What :func:`fit_static` or :func:`fit_motion` will cost, from a few steps of each pass; the scene may be unfitted."""
    scene = bare(scene)
    inputs = _motion_inputs(video, scene, mesh, meshes, fronts, backend)
    if isinstance(config, StaticConfig):
        inputs = replace(inputs, taus=scene.taus[:1])
        passes = [Pass(config.objectives, config.schedule, "gaussians")] if config.objectives else []
        return estimate_passes(passes, FitState(scene.gaussians), inputs, progress=progress)
    state = FitState(scene.gaussians, build_field(config, scene, mesh))
    passes = [part for _, part in motion_passes(config, scene.frames, scene.field is not None)]
    found = estimate_passes(passes, state, inputs, progress=progress)
    return found if video is None else replace(found, seconds=found.seconds + seconds_to_close(scene, backend))


def _rates(config: StaticConfig | MotionConfig) -> dict[str, float] | None:
    return None if config.rates is None else GAUSSIAN_LR | dict(config.rates)


def _with_stage(checkpoint: str | Path, stage: str) -> Path:
    path = Path(checkpoint)
    return path.with_name(f"{path.stem}-{stage.replace(', ', '-').replace(' ', '-')}{path.suffix}")
