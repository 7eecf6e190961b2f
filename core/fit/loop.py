"""The training loop: a sum of objectives, a schedule, and what every long fit owes its user.

Progress with a preview, interruption at any step, checkpoints, and a resumed run equal to an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..cameras import FrontCamera
from ..deformation import DeformationField
from ..files import InputError
from ..gaussians import Gaussians
from ..objectives.base import FitStep, Objective, check_objectives, identified
from ..optimiser import Adam, Group
from ..progress import Progress
from ..render import ScreenStatistics
from ..scene.object3d import Object3D
from ..video import DrivingVideo
from .checkpoint import load_checkpoint, save_checkpoint
from .density import DensityControl, DensityState

log = logging.getLogger(__name__)

#: What a fit changes: the deformation field, the canonical Gaussians, or both.
Train = Literal["field", "gaussians", "both"]


@dataclass(frozen=True)
class Schedule:
    """How long and how large.

    Args:
        steps: iterations.
        resolutions: pairs (until rho, pixels): the first pair whose rho is not yet passed sets the picture size.
        frames: frames a step, drawn at random; 0 takes all.
        lr: factor on the learning rates at the first step; below 1 for a pass that mends what is nearly right.
        lr_final: further factor to which they fall log-linearly.
        background: "white", or "random": a new solid colour each step, the same for renders and targets, which sharpens alpha.
        one_by_one: 0, or the steps spent on each frame in turn, starting from its neighbour (see :func:`tracking_order`);
            ``steps`` is then that times the frames tracked.
        momentum: share of the last frame's motion that the next one starts with when tracking.
        smoothing: factor on how far the field spreads each step over neighbours and time; below 1 for fine detail.
        stiffness: factor on the weights of the regularisers (rigidity, smoothness).
        means_final: further factor to which the rate of the Gaussians' positions falls log-linearly (DreamGaussian4D: 0.02).
        means_until: progress at which that factor is reached (STAG4D: a quarter of its steps).
        turns: where both are trained, the steps that the field and then the Gaussians have their turn while the other rests
            (Align4D's asynchronous optimisation); (0, 0) trains both in every step.
    """

    steps: int
    resolutions: tuple[tuple[float, int], ...] = ((1.0, 256),)
    frames: int = 0
    lr: float = 1.0
    lr_final: float = 0.1
    background: str = "white"
    one_by_one: int = 0
    momentum: float = 0.8
    smoothing: float = 1.0
    stiffness: float = 1.0
    means_final: float = 1.0
    means_until: float = 1.0
    turns: tuple[int, int] = (0, 0)

    def trained(self, index: int, train: Train) -> tuple[str, ...]:
        """Which of "field" and "gaussians" a step changes."""
        if train != "both":
            return (train,)
        if not any(self.turns):
            return "field", "gaussians"
        return ("field",) if index % sum(self.turns) < self.turns[0] else ("gaussians",)

    def resolution(self, rho: float) -> int:
        """Picture size at a progress."""
        return next((pixels for until, pixels in self.resolutions if rho < until), self.resolutions[-1][1])


@dataclass
class FitState:
    """What a fit changes.

    Args:
        gaussians: the canonical set.
        field: deformation, or None in the static stage.
        losses: of the last pass, every ten steps, by the objectives' ids.
        memory: what objectives keep from pass to pass, by their ids.
    """

    gaussians: Gaussians
    field: DeformationField | None = None
    losses: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    memory: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """What a fit looks at: see :class:`FitStep`.

    Args:
        taus: times of the frames that are fitted: all those of the clip or, from frame ``first`` on, some.
    """

    video: DrivingVideo | None
    taus: Tensor
    fronts: list[FrontCamera]
    meshes: list[Object3D] = dataclasses.field(default_factory=list)
    loop: bool = False
    backend: str = "auto"
    first: int = 0


#: Learning rates of the static stage (DreamGaussian4D's, positions falling to 2 %).
GAUSSIAN_LR = {"means": 1e-3, "sh": 1e-2, "opacity_logits": 5e-2, "log_scales": 5e-3, "quats": 5e-3}


def run_fit(
    stage: str,
    state: FitState,
    objectives: Sequence[Objective],
    schedule: Schedule,
    inputs: Inputs,
    *,
    train: Train = "field",
    seed: int = 0,
    density: DensityControl | None = None,
    gaussian_lr: dict[str, float] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    key: str = "",
) -> FitState:
    """Minimise the sum of the objectives.

    Args:
        stage: its name, shown in progress and kept in checkpoints.
        state: where to start; not changed.
        objectives: the terms; an empty list is an error, since nothing would be learnt.
        density: adds and removes Gaussians while the canonical set is trained.
        checkpoint: file to write every ``checkpoint_seconds`` and on interruption, and to resume from where it exists.
        key: identifies the inputs; a checkpoint with another key is ignored.

    Returns:
        the state with every tensor detached.

    Raises:
        InputError: where the fit lacks what an objective needs, or a field cannot follow density control.
        whatever ``progress`` raises to interrupt, after the checkpoint is written.
    """
    if not objectives:
        raise ValueError(f"{stage}: no objectives, so there is nothing to fit; connect at least one")
    check_objectives(stage, objectives, video=inputs.video, field=state.field, meshes=inputs.meshes)
    if density is not None and state.field is not None and state.field.fixed_count:
        raise InputError(
            f"{stage}: a {state.field.name} field moves a fixed number of Gaussians; choose another, or no density control"
        )
    named = identified(objectives)
    generator = torch.Generator().manual_seed(seed)
    gaussians, deformation = state.gaussians.detach().clone(), state.field
    losses: dict[str, list[float]] = {}
    factors: dict[str, float] = {}  # of objectives that are scaled to a share of the others
    memory = {id: dict(kept) for id, kept in state.memory.items()}
    memo: dict[Any, Any] = {}
    grown = DensityState()
    rates = GAUSSIAN_LR if gaussian_lr is None else gaussian_lr

    if train != "gaussians" and deformation is None:
        raise ValueError(f"{stage}: there is no deformation field to train")

    def optimisers_for(gaussians: Gaussians) -> dict[str, Adam]:
        made = {}
        if train != "gaussians":
            assert deformation is not None
            made["field"] = Adam(deformation.parameter_groups(schedule.one_by_one == 0, schedule.smoothing))
        if train != "field":
            falls = {"means": (schedule.means_final, schedule.means_until)}
            groups = [Group(n, t, rates[n], None, *falls.get(n, (1.0, 1.0))) for n, t in gaussians.tensors().items()]
            made["gaussians"] = Adam([group for group in groups if group.lr > 0])
        return made

    path = None if checkpoint is None else Path(checkpoint)
    first, resumed = 0, None
    if path is not None and path.is_file():
        tensors, header = load_checkpoint(path)
        if header["stage"] == stage and header["key"] == key:
            first, resumed, losses = header["step"], tensors, header["losses"]
            factors = header.get("factors", {})
            gaussians = Gaussians(**{k: tensors[f"gaussians.{k}"] for k in gaussians.tensors()}).to(gaussians.device)
            if deformation is not None:
                deformation.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("field.")})
                deformation.check(len(gaussians))
            generator.set_state(tensors["generator"])
            kept = {name: tensor.to(gaussians.device) for name, tensor in tensors.items()}
            grown = DensityState(**{name[8:]: tensor for name, tensor in kept.items() if name.startswith("density.")})
            for name in [name for name in kept if name.startswith("memory.")]:
                id, _, part = name[7:].rpartition(".")
                memory.setdefault(id, {})[part] = kept[name]
            log.info("%s: resumed at step %d of %d", stage, first, schedule.steps)
    optimisers = optimisers_for(gaussians)
    if resumed is not None:
        for part, optimiser in optimisers.items():
            optimiser.load({k.removeprefix(f"{part} "): v for k, v in resumed.items() if k.startswith(f"{part} ")})

    def save(step: int) -> None:
        if path is None:
            return
        tensors = {f"gaussians.{k}": v for k, v in gaussians.tensors().items()}
        for part, optimiser in optimisers.items():
            tensors |= {f"{part} {k}": v for k, v in optimiser.state().items()}
        tensors["generator"] = generator.get_state()
        if deformation is not None:
            tensors |= {f"field.{k}": v for k, v in deformation.state_dict().items()}
        if density is not None:
            tensors |= {f"density.{k}": v for k, v in grown.tensors().items()}
        tensors |= {f"memory.{id}.{part}": tensor for id, kept in memory.items() for part, tensor in kept.items()}
        save_checkpoint(path, tensors, {"stage": stage, "key": key, "step": step, "losses": losses, "factors": factors})

    count = len(inputs.taus)
    order = tracking_order(count, inputs.loop) if schedule.one_by_one else []
    device = gaussians.device
    saved = time.monotonic()
    done, between_steps = first, True
    try:
        for index in range(first, schedule.steps):
            between_steps = False
            rows, turn = None, 0
            turns = schedule.trained(index, train)
            for part, optimiser in optimisers.items():
                optimiser.requires_grad(part in turns)
            if schedule.one_by_one:
                turn, within = divmod(index, schedule.one_by_one)
                frame, source, before = order[turn]
                rows = torch.tensor([frame])
                if within == 0 and deformation is not None:
                    deformation.continue_motion(frame, source, before, schedule.momentum)
                    for optimiser in optimisers.values():
                        optimiser.reset()
                factor = schedule.lr * schedule.lr_final ** (within / schedule.one_by_one)
                frames = rows
            else:
                factor = schedule.lr * schedule.lr_final ** (index / schedule.steps)
                frames = torch.arange(count)
                if schedule.frames:
                    frames = torch.randperm(count, generator=generator)[: schedule.frames].sort().values
            background = torch.rand(3, generator=generator) if schedule.background == "random" else torch.ones(3)
            statistics: list[ScreenStatistics] | None = [] if density is not None else None
            step = FitStep(
                index=index, total=schedule.steps, canonical=gaussians, field=deformation, frames=inputs.first + frames,
                taus=inputs.taus[frames].to(device), driving=inputs.video, times=inputs.taus.to(device), fronts=inputs.fronts,
                resolution=schedule.resolution(index / schedule.steps), background=background.to(device), generator=generator,
                still=state.gaussians, meshes=inputs.meshes, loop=inputs.loop,
                tracking=order[turn] if order else None, stiffness=schedule.stiffness, backend=inputs.backend,
                statistics=statistics, memo=memo,
            )  # fmt: skip
            terms: dict[str, Tensor] = {}
            for id, objective in named.items():
                step.memory = memory.setdefault(id, {})
                terms[id] = objective.weighted(step, objective.weight_at(step))
            trained = [group.parameter for part in turns for group in optimisers[part].groups]
            # What waits for its share of the gradient counts nothing until then.
            waiting = {id: o for id, o in named.items() if o.share > 0 and id not in factors}
            for id, objective in waiting.items():
                if index >= objective.share_step:
                    step.memory = memory[id]
                    own = objective.probe(step)
                    factors |= _shared(id, objective.share, terms[id] if own is None else own, terms, trained)
            scale = dict.fromkeys(waiting, 0.0) | factors
            terms = {name: scale.get(name, 1.0) * term for name, term in terms.items()}
            total = torch.stack([term for term in terms.values()]).sum()
            if total.requires_grad:
                total.backward()
            for part in turns:
                optimisers[part].step(factor, rows, index / schedule.steps)
            if density is not None and statistics is not None and "gaussians" in turns:
                adam = optimisers["gaussians"]
                gaussians = density.update(grown, index, schedule.steps, gaussians, adam, statistics, generator)
            done, between_steps = index + 1, True
            if index % 10 == 0 or done == schedule.steps:
                values = {name: float(term.detach()) for name, term in terms.items()}
                for name, value in values.items():
                    losses.setdefault(name, []).append(value)
                if not all(map(_finite, values.values())):
                    worst = next(name for name, value in values.items() if not _finite(value))
                    raise FloatingPointError(
                        f"{stage}: the loss {worst!r} is not finite at step {index}; lower its weight or the learning rate"
                    )
            if progress is not None:
                progress(stage, done, schedule.steps, {k: v[-1] for k, v in losses.items()}, lambda: _preview(step))  # noqa: B023
            if path is not None and time.monotonic() - saved > checkpoint_seconds:
                save(done)
                saved = time.monotonic()
    except FloatingPointError:
        raise
    except BaseException:
        # A step cut short has moved the generator and perhaps half the parameters: the last checkpoint is the one to keep.
        if between_steps:
            save(done)
        raise
    if done > first:
        # The finished stage is kept too: a run that is interrupted in a later stage resumes behind this one.
        save(done)
    return FitState(gaussians.detach(), deformation, losses, memory)


def tracking_order(frames: int, loop: bool) -> list[tuple[int, int, int]]:
    """The order in which frames are tracked: (frame, the neighbour it starts from, the neighbour before that).

    A clip that loops is followed from frame 0 both ways, so that nothing is tracked further than half the clip.
    """
    if not loop:
        return [(t, t - 1, max(t - 2, 0)) for t in range(1, frames)]
    order: list[tuple[int, int, int]] = []
    ahead, back = 1, frames - 1
    while ahead <= back:
        order.append((ahead, ahead - 1, max(ahead - 2, 0)))
        if back > ahead:
            order.append((back, (back + 1) % frames, (back + 2) % frames if back + 1 < frames else 0))
        ahead, back = ahead + 1, back - 1
    return order


def _shared(name: str, share: float, own: Tensor, terms: dict[str, Tensor], trained: Sequence[Tensor]) -> dict[str, float]:
    """The factor that gives a term's gradient its share of the others'; none while either has no gradient."""

    def size(loss: Tensor) -> float:
        if not loss.requires_grad:
            return 0.0
        gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        return float(sum(g.square().sum() for g in gradients if g is not None)) ** 0.5

    mine, rest = size(own), size(sum((term for other, term in terms.items() if other != name), torch.zeros(())))
    return {name: share * rest / mine} if mine > 0 and rest > 0 else {}


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


@torch.no_grad()
def _preview(step: FitStep) -> Tensor:
    """Target and render of one frame side by side, (H, 2 W, 3); without a video, the first and last frame of the step."""
    if step.driving is None:
        return torch.cat([step.front.color[t, 0].detach().clamp(0, 1) for t in (0, -1)], 1)
    target, _ = step.target
    return torch.cat([target[-1, 0], step.front.color[-1, 0].detach().clamp(0, 1)], 1)
