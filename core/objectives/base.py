"""What an objective is: a scalar of the step's renders, its weight, and what it needs of a fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..cameras import Cameras, Crop, FrontCamera
from ..files import InputError
from ..gaussians import Gaussians
from ..priors.distill import Distillation
from ..registry import Registry
from ..render import Render, ScreenStatistics, rasterize
from ..scene.object3d import Object3D
from ..schedules import Weight
from ..transfer import sent
from ..video import DrivingVideo

if TYPE_CHECKING:
    from ..align.distance import ObjectDistance
    from ..deformation import DeformationField
    from ..priors.base import Prior
    from ..scene.anchors import Anchors


#: Objectives by name.
OBJECTIVES: Registry[type[Objective]] = Registry("objective", __package__)


class Objective:
    """One term of a fit. Subclasses are small frozen dataclasses, registered by their name; their fields are their settings.

    The loop checks :attr:`needs` before the first step, and at each step adds ``weighted(step, weight_at(step))``. A subclass
    implements :meth:`loss`, and :meth:`scaled` where its weight is relative to a count. Only one whose weight leaves a part of
    the loss as it is, as lambda does the perceptual distance of PLA4D, implements :meth:`weighted` in place of both.

    Random numbers come from ``step.generator`` alone. What an objective keeps from step to step is tensors in ``step.memory``:
    these are its own in a fit, go on from pass to pass, and are written to checkpoints. Nothing else remembers a fit.

    Attributes:
        name: of the class, unique in the registry; see :func:`identified` for its name in a fit.
        needs: of what a fit may have, what this must have: "video" (a driving video), "field" (a motion is fitted), "mesh" (an
            object is given), or something that the field offers, see :attr:`~..deformation.DeformationField.offers`.
        takes: names of its fields that a method fills once it knows them: "distance", "anchors", "prompt".
        regularises: whether a pass's stiffness scales its weight.
        starts: it starts the motion of a clip that has been followed frame by frame, in a pass "lift" of its own, and takes
            part in the passes over all frames behind it, see :class:`~..methods.stages.MotionConfig`.
        requires: names of its fields that hold a :class:`Distillation` it cannot do without.
        weight: of the loss, as a function of the progress rho.
        share: above 0, the weight is set automatically: the objective is left out until step ``share_step``, and scaled there
            so that its gradient on what is trained is that share of all other terms'.
        share_step: when.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()
    regularises: ClassVar[bool] = False
    starts: ClassVar[bool] = False
    requires: ClassVar[frozenset[str]] = frozenset({"distillation"})
    weight: Weight
    share: float = 0.0
    share_step: int = 0

    def draw(self, step: FitStep) -> dict[str, Tensor]:
        """What a step draws at random, tensors on the CPU from ``step.generator``; the loss reads them by ``step.given(self)``.

        An objective that draws here and not in its loss can be captured on a graphics card, which makes its steps faster.
        """
        return {}

    def variant(self, step: FitStep) -> Hashable:
        """What of a step changes the sizes of its work besides its pictures' size, from the host's numbers alone."""
        return None

    def loss(self, step: FitStep) -> Tensor:
        """The loss of a step, a scalar, without its weight and its scale."""
        return self.weighted(step, 1.0)

    def weighted(self, step: FitStep, weight: float | Tensor) -> Tensor:
        """The loss of a step, a scalar, with a weight that is a number or a scalar tensor."""
        return self.scaled(step, weight) * self.loss(step)

    def scaled(self, step: FitStep, weight: float | Tensor) -> float | Tensor:
        """The weight as it multiplies the loss: itself, or relative to the number of values that the loss is a sum of.

        One number, so that a step on a graphics card multiplies once, and results round the same way everywhere.
        """
        return weight

    def weight_at(self, step: FitStep) -> float:
        """The weight of a step, from the host's numbers alone."""
        return step.stiffness * self.weight(step.rho) if self.regularises else self.weight(step.rho)

    def __call__(self, step: FitStep) -> Tensor:
        """The weighted loss of a step, a scalar."""
        return self.weighted(step, self.weight_at(step))

    def probe(self, step: FitStep) -> Tensor | None:
        """What the automatic weight measures in place of the weighted loss; None where it is the loss itself.

        For a term whose gradient at ``share_step`` says little of how strong it is.
        """
        return None

    def priors(self) -> tuple[Prior, ...]:
        """The diffusion priors it asks. One that asks some takes part in a schedule's last pass, see :class:`MotionConfig`."""
        return ()

    def perceptual_network(self) -> str | None:
        """The network of its perceptual distance, see :func:`~..metrics.perceptual.perceptual_distance`; None without one."""
        return None

    def check(self) -> None:
        """Refuse settings or priors that do not fit, before the first step.

        Raises:
            InputError: naming them.
        """

    def bound(self, models: Mapping[str, Prior]) -> Self | None:
        """This objective with models in the places of its priors' roles; None where one that it requires is missing."""
        changed: dict[str, Any] = {}
        for f in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            if isinstance(asked := getattr(self, f.name), Distillation):
                changed[f.name] = asked.bound(models)
                if changed[f.name] is None and f.name in self.requires:
                    return None
        if not changed:
            return self
        bound = dataclasses.replace(self, **changed)  # pyright: ignore[reportArgumentType]
        return bound if bound.priors() else None

    def with_distance(self, distance: ObjectDistance) -> Self:
        """This objective given the object distance that its prior prefers, where it takes one."""
        return self._given("distance", distance)

    def with_anchors(self, anchors: Anchors) -> Self:
        """This objective given the anchors of the driving video, where it takes some."""
        return self._given("anchors", anchors)

    def with_prompt(self, prompt: str) -> Self:
        """This objective with another text, where it takes one."""
        return self._given("prompt", prompt)

    def untextured(self) -> Self:
        """This objective for an object whose colours were filled in from one frame, so that they say little."""
        return self

    def detailed(self) -> Self | None:
        """This objective in a second pass over a finished static object, for its looks alone; None where it has none."""
        return self

    def _given(self, name: str, value: Any) -> Self:
        return dataclasses.replace(self, **{name: value}) if name in self.takes else self  # pyright: ignore[reportArgumentType]


def identified(objectives: Iterable[Objective]) -> dict[str, Objective]:
    """The objectives of a fit by their ids: the name, and from the second of a name on, its number: "mesh", "mesh 2"."""
    found: dict[str, Objective] = {}
    for objective in objectives:
        number = 1 + sum(other.name == objective.name for other in found.values())
        found[objective.name if number == 1 else f"{objective.name} {number}"] = objective
    return found


#: How a need reads in the refusal of a fit that lacks it.
_LACKING = {
    "video": "a driving video, and this fit has none",
    "field": "a motion, and this fit is of the static object; connect it to the motion stage",
    "mesh": "the object's mesh or Gaussians, and this fit has none; connect them",
}


def check_objectives(
    stage: str,
    objectives: Iterable[Objective],
    *,
    video: DrivingVideo | None,
    field: DeformationField | None,
    meshes: Sequence[Object3D],
) -> None:
    """Refuse a fit that lacks what one of its objectives needs.

    Raises:
        InputError: naming the objective, and what it needs.
    """
    there = {"video"} if video is not None else set[str]()
    there |= {"mesh"} if meshes else set()
    there |= {"field", *field.offers} if field is not None else set()
    for id, objective in identified(objectives).items():
        for need in sorted(objective.needs - there, key=lambda need: (need not in _LACKING, need)):
            kind = "" if field is None else f", and a {field.name} field has none"
            lacking = _LACKING.get(need, f"a field with {need}{kind}; choose another field")
            raise InputError(f"{stage}: objective {id!r} needs {lacking}, or leave it out")
        objective.check()


@dataclass(eq=False)
class FitStep:
    """What a step shows its objectives. Renders are made when first asked for and shared between objectives.

    Args:
        index, total: this step and the number of steps.
        canonical: the canonical Gaussians.
        field: the deformation field; None in the static stage.
        frames: the clip's frames of this step, (B,).
        taus: their times, (B,).
        driving: the driving video; None where no video drives the object.
        times: of all frames of the fit, (T,).
        fronts: the aligned front camera of each frame of the clip; one for all where its length is 1.
        resolution: of this step's front renders, pixels.
        background: colour behind this step's renders and targets, (3,).
        generator: source of every random choice.
        still: the Gaussians as the fit found them, not changed by it.
        meshes: the object as it was given, or one of each frame of the clip; empty where there is none.
        loop: whether the clip's last frame is followed by its first.
        tracking: while frames are tracked one by one: this frame, its tracked neighbour, and the one before that.
        stiffness: factor that regularisers put on their weights.
        backend: renderer.
        statistics: one is added by every render of the step, for density control; None where nobody asks.
        memory: what the objective that is asked keeps from step to step; the loop sets it before it asks one.
        memo: what is the same in every step of a pass, made once.
        rows: the frames (B,) int64 where the fit is; None: to be made of ``frames``.
        tracked_taus: the times of ``tracking`` (3,) where the fit is; None: to be made of it.
        drawn: what the objective that is asked draws at random, where the fit is; None: it is drawn when first asked for.
        slice: frames that the field moves at once, each slice made again for its gradients; 0 = all, kept.
    """

    index: int
    total: int
    canonical: Gaussians
    field: DeformationField | None
    frames: Tensor
    taus: Tensor
    driving: DrivingVideo | None
    times: Tensor
    fronts: list[FrontCamera]
    resolution: int
    background: Tensor
    generator: torch.Generator
    still: Gaussians
    meshes: list[Object3D] = dataclasses.field(default_factory=list)
    loop: bool = False
    tracking: tuple[int, int, int] | None = None
    stiffness: float = 1.0
    backend: str = "auto"
    statistics: list[ScreenStatistics] | None = None
    memory: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    memo: dict[Any, Any] = dataclasses.field(default_factory=dict)
    rows: Tensor | None = None
    tracked_taus: Tensor | None = None
    drawn: Mapping[str, Tensor] | None = None
    slice: int = 0

    def given(self, objective: Objective) -> Mapping[str, Tensor]:
        """What the objective drew for this step, where the fit is."""
        if self.drawn is not None:
            return self.drawn
        return {name: sent(tensor, self.canonical.device) for name, tensor in objective.draw(self).items()}

    def leave_uncaptured(self) -> None:
        """To be called by an objective whose work fills a card by itself, or lies where it may move: its steps are launched."""

    @property
    def at(self) -> Tensor:
        """The clip's frames of this step, (B,) int64, where the fit is."""
        return self.frames.to(self.canonical.device) if self.rows is None else self.rows

    def due(self, every: int) -> bool:
        """Whether what an objective renews every so many steps is renewed in this one.

        To be asked in place of ``index``: the steps in between are then the same to a graphics card, and so are faster.
        """
        return self.index % every == 0

    @property
    def tracked(self) -> Tensor | None:
        """The times of ``tracking`` (3,); None where frames are not tracked one by one."""
        if self.tracked_taus is None and self.tracking is not None:
            span = max(self.frame_count - (0 if self.loop else 1), 1)
            self.tracked_taus = torch.tensor([t / span for t in self.tracking]).to(self.canonical.device)
        return self.tracked_taus

    def whole_clip(self) -> FitStep:
        """This step with all frames of the fit, and pictures of its own."""
        every = torch.arange(len(self.times))
        return replace(self, frames=every, taus=self.times, rows=None, tracking=None, tracked_taus=None, drawn=None)

    @property
    def rho(self) -> float:
        """Progress in [0, 1]: 0 at the first step, 1 at the last."""
        return self.index / max(self.total - 1, 1)

    @property
    def video(self) -> DrivingVideo:
        """The driving video.

        Raises:
            InputError: where there is none, so that an objective that asks for it has no place in this fit.
        """
        if self.driving is None:
            raise InputError("objectives: one of them compares with a driving video, and this fit has none; unplug it")
        return self.driving

    @property
    def moving(self) -> DeformationField:
        """The deformation field of a motion stage, which objectives that need "field" are sure to have."""
        assert self.field is not None
        return self.field

    @property
    def frame_count(self) -> int:
        """Frames of the whole clip."""
        return len(self.times) if self.driving is None else len(self.driving)

    @cached_property
    def gaussians(self) -> Gaussians:
        """The object at this step's frames, (B, N, ...)."""
        if self.field is None:
            return self.canonical.map(lambda t: t.expand(len(self.taus), *t.shape))
        if not 0 < self.slice < len(self.taus) or not torch.is_grad_enabled():
            return self.field(self.canonical, self.taus)
        field, canonical = self.field, self.canonical

        def moved(*tensors: Tensor) -> tuple[Tensor, ...]:
            *own, taus = tensors
            return tuple(field(Gaussians(*own), taus).tensors().values())

        parts = [
            checkpoint(moved, *canonical.tensors().values(), taus, use_reentrant=False, preserve_rng_state=False)
            for taus in self.taus.split(self.slice)
        ]
        shared = canonical.sh.expand(len(self.taus), *canonical.sh.shape)
        whole = {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(canonical.tensors()) if name != "sh"}
        return Gaussians(**whole, sh=shared if "sh" not in field.changes else torch.cat([part[4] for part in parts]))

    @cached_property
    def front_cameras(self) -> Cameras:
        """The front camera of each of this step's frames, (B, 1); of a fit without a video, a square of its picture."""
        front = self.fronts[0]
        side = max(front.width, front.height)
        whole = Crop((front.width - side) / 2, (front.height - side) / 2, side, front.width, front.height)
        if len(self.fronts) == 1:
            crops = [whole if self.driving is None else self.driving.crop]
        else:
            crops = [self.video.crop] * len(self.fronts)
        key = "front cameras", self.resolution
        if key not in self.memo:
            each = Cameras.cat([front.cropped(crop, self.resolution) for front, crop in zip(self.fronts, crops, strict=True)])
            self.memo[key] = each.to(self.canonical.device)
        cameras: Cameras = self.memo[key]
        if len(self.fronts) == 1:
            poses, lenses = (t.expand(len(self.taus), *t.shape[1:]) for t in (cameras.world_to_camera, cameras.K))
        else:
            index = self.frames if self.rows is None else self.rows
            poses, lenses = cameras.world_to_camera[index], cameras.K[index]
        return replace(cameras, world_to_camera=poses, K=lenses).reshape(len(self.taus), 1)

    def render(self, gaussians: Gaussians, cameras: Cameras, background: Tensor | None = None) -> Render:
        """:func:`rasterize` with this step's renderer and statistics, on its background or another."""
        statistics = None
        if self.statistics is not None:
            statistics = ScreenStatistics()
            self.statistics.append(statistics)
        behind = self.background if background is None else background
        return rasterize(gaussians, cameras, behind, backend=self.backend, statistics=statistics)

    @cached_property
    def front(self) -> Render:
        """The object seen by the front camera at each of this step's frames, (B, 1, H, W, ...)."""
        return self.render(self.gaussians, self.front_cameras)

    @cached_property
    def target(self) -> tuple[Tensor, Tensor]:
        """The driving video on this step's background and its masks, (B, 1, H, W, 3) and (B, 1, H, W)."""
        key = "video", self.resolution
        if key not in self.memo:
            self.memo[key] = resized_video(self.video, self.resolution)
        color, mask = self.memo[key]
        index = self.frames if self.rows is None else self.rows
        color, mask = color[index][:, None], mask[index][:, None]
        return color + (1 - mask[..., None]) * self.background, mask


def resized_video(video: DrivingVideo, resolution: int) -> tuple[Tensor, Tensor]:
    """The video's premultiplied colours (T, R, R, 3) and masks (T, R, R) at a resolution."""
    rgba = torch.cat([video.frames * video.masks[..., None], video.masks[..., None]], -1).movedim(-1, 1)
    if resolution != video.resolution:
        rgba = F.interpolate(rgba, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
    rgba = rgba.movedim(1, -1).contiguous()
    return rgba[..., :3].contiguous(), rgba[..., 3].contiguous()
