"""The training loop: a sum of objectives, a schedule, and what every long fit owes its user.

Progress with a preview, interruption at any step, checkpoints, and a resumed run equal to an uninterrupted one. On a graphics
card the host never waits within a step: what changes from step to step is sent in one piece, and answers are read every ten.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from ..priors.graphs import give_way
from ..progress import Progress, pulse
from ..render.nvrtc.backend import overflowed
from ..scene.object3d import Object3D
from ..video import DrivingVideo
from .checkpoint import load_checkpoint, save_checkpoint
from .density import DensityControl, DensityState
from .device_adam import DeviceAdam
from .replay import Numbers, Replays, undisturbed, unpacked

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
        lr: factor on the learning rates at the first step; below 1 for a pass that refines what is nearly right.
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


#: What a card holds of a field's activations at once: frames are moved in slices that fit.
FIELD_BYTES = 2 << 30


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

    Every ten steps the losses are read and the state is looked at. Where something is not finite, the fit goes back to where it
    was last sound, once, with half the learning rates. On a graphics card, steps that are alike are captured as CUDA graphs;
    where memory runs out, the frames are moved in smaller slices.

    Args:
        stage: its name, in progress and in checkpoints.
        state: where to start; not changed.
        objectives: the terms; an empty list is an error, since nothing would be learnt.
        density: adds and removes Gaussians while the canonical set is trained.
        checkpoint: file to write every ``checkpoint_seconds`` and on interruption, and to resume from where it exists.
        key: identifies the inputs; a checkpoint with another key is ignored.

    Returns:
        the state with every tensor detached.

    Raises:
        InputError: where the fit lacks what an objective needs, or a field cannot follow density control.
        FloatingPointError: where it diverges again after it went back; nothing that is not finite is written.
        whatever ``progress`` raises to interrupt, after the checkpoint is written.
    """
    if not objectives:
        raise ValueError(f"{stage}: no objectives, so there is nothing to fit; connect at least one")
    check_objectives(stage, objectives, video=inputs.video, field=state.field, meshes=inputs.meshes)
    if density is not None and state.field is not None and state.field.fixed_count:
        raise InputError(
            f"{stage}: a {state.field.name} field moves a fixed number of Gaussians; choose another, or no density control"
        )
    if train != "gaussians" and state.field is None:
        raise ValueError(f"{stage}: there is no deformation field to train")
    rates = GAUSSIAN_LR if gaussian_lr is None else gaussian_lr
    fit = _Fit(stage, state, identified(objectives), schedule, inputs, train, seed, density, rates, key)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.is_file():
        tensors, header = load_checkpoint(path)
        if header["stage"] == stage and header["key"] == key:
            fit.restore(tensors, header)
            log.info("%s: resumed at step %d of %d", stage, fit.done, schedule.steps)
    first, saved = fit.done, time.monotonic()

    def save() -> None:
        if path is not None:
            save_checkpoint(path, *(fit.snapshot() if fit.sound() else fit.last_sound))

    with undisturbed(fit.device, networks=fit.field is not None and fit.field.handles() is None):
        fit.keep()
        try:
            while fit.done < schedule.steps:
                fit.advance()
                if progress is not None:
                    progress(stage, fit.done, schedule.steps, {k: v[-1] for k, v in fit.losses.items()}, fit.preview)
                if path is not None and time.monotonic() - saved > checkpoint_seconds:
                    save()
                    saved = time.monotonic()
        except FloatingPointError:
            raise
        except BaseException:
            # A step cut short has moved the generator and perhaps half the parameters: what was sound before it is kept.
            if fit.between_steps:
                save()
            elif path is not None and fit.last_sound[1]["step"] > first:
                save_checkpoint(path, *fit.last_sound)
            raise
        if fit.done > first:
            # The finished stage is kept too: a run that is interrupted in a later stage resumes behind this one.
            save()
    return FitState(fit.gaussians.detach(), fit.field, fit.losses, fit.memory)


class _Fit:
    """A fit under way: all that changes from step to step, and how a step is taken.

    Attributes:
        done: steps taken.
        losses: every ten steps, by the objectives' ids.
        factors: of objectives that are scaled to a share of the others.
        calm: factor on all learning rates, below 1 behind a divergence.
        between_steps: whether the state is that of a whole number of steps.
        last_sound: a snapshot in which everything is finite.
    """

    def __init__(
        self, stage: str, state: FitState, objectives: dict[str, Objective], schedule: Schedule, inputs: Inputs, train: Train,
        seed: int, density: DensityControl | None, rates: Mapping[str, float], key: str,
    ) -> None:  # fmt: skip
        self.stage, self.objectives, self.schedule, self.inputs = stage, objectives, schedule, inputs
        self.train: Train = train
        self.density, self.rates, self.key, self.still = density, rates, key, state.gaussians
        self.gaussians, self.field = state.gaussians.detach().clone(), state.field
        self.device = self.gaussians.device
        self.generator = torch.Generator().manual_seed(seed)
        self.losses: dict[str, list[float]] = {}
        self.factors: dict[str, float] = {}
        self.memory = {id: dict(kept) for id, kept in state.memory.items()}
        self.grown = DensityState()
        self.calm, self.done, self.between_steps = 1.0, 0, True
        self.order = tracking_order(len(inputs.taus), inputs.loop) if schedule.one_by_one else []
        self.memo: dict[Any, Any] = {}
        self.times = inputs.taus.to(self.device)
        self.slice, self.gave_way = 0, False
        varying = {"frames", "tracking"} if self.order else {"frames"} if schedule.frames else set[str]()
        self.replays = Replays(self.device, frozenset(varying))
        self.numbers = Numbers(self.device, self.replays.forget) if self.device.type == "cuda" else None
        self.captured: dict[tuple[str, str], Tensor] = {}
        self.launched_until = 0  # steps before this one are not captured
        self.optimisers = self._optimisers()
        self.step: FitStep | None = None
        if self.device.type == "cuda" and self.field is not None and self.field.handles() is None:
            self.slice = self._first_slice(self.field)
        self.last_sound: tuple[dict[str, Tensor], dict[str, Any]] = {}, {}

    # --- state ----------------------------------------------------------------------------------------------------------

    def _optimisers(self) -> dict[str, Adam]:
        adam = DeviceAdam if self.device.type == "cuda" else Adam
        made: dict[str, Adam] = {}
        if self.train != "gaussians":
            assert self.field is not None
            made["field"] = adam(self.field.parameter_groups(self.schedule.one_by_one == 0, self.schedule.smoothing))
        if self.train != "field":
            falls = {"means": (self.schedule.means_final, self.schedule.means_until)}
            groups = [Group(n, t, self.rates[n], None, *falls.get(n, (1.0, 1.0))) for n, t in self.gaussians.tensors().items()]
            made["gaussians"] = adam([group for group in groups if group.lr > 0])
        return made

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, each its own, and numbers: what a checkpoint holds."""
        tensors = {f"gaussians.{k}": v for k, v in self.gaussians.tensors().items()}
        for part, optimiser in self.optimisers.items():
            tensors |= {f"{part} {k}": v for k, v in optimiser.state().items()}
        if self.field is not None:
            tensors |= {f"field.{k}": v for k, v in self.field.state_dict().items()}
        if self.density is not None:
            tensors |= {f"density.{k}": v for k, v in self.grown.tensors().items()}
        tensors |= {f"memory.{id}.{part}": tensor for id, kept in self.memory.items() for part, tensor in kept.items()}
        tensors = {k: v.detach().clone() for k, v in tensors.items()} | {"generator": self.generator.get_state()}
        losses = {id: list(values) for id, values in self.losses.items()}
        header = {"stage": self.stage, "key": self.key, "step": self.done, "losses": losses, "factors": dict(self.factors)}
        return tensors, header | ({"calm": self.calm} if self.calm != 1 else {})

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Takes back what :meth:`snapshot` gave."""
        self.replays.forget()
        self.captured.clear()
        self.step = None
        self.done, self.calm, self.factors = header["step"], header.get("calm", 1.0), dict(header.get("factors", {}))
        self.losses = {id: list(values) for id, values in header["losses"].items()}
        self.generator.set_state(tensors["generator"].cpu())
        there = {name: tensor.to(self.device, copy=True) for name, tensor in tensors.items() if name != "generator"}

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in there.items() if name.startswith(prefix)}

        self.gaussians = Gaussians(**part("gaussians."))
        if self.field is not None:
            self.field.load_state_dict(part("field."))
            self.field.check(len(self.gaussians))
        self.grown = DensityState(**part("density."))
        self.memory = {}
        for name, tensor in part("memory.").items():
            id, _, key = name.rpartition(".")
            self.memory.setdefault(id, {})[key] = tensor
        self.optimisers = self._optimisers()
        for name, optimiser in self.optimisers.items():
            optimiser.load(part(f"{name} "))

    def sound(self) -> bool:
        """Whether everything that is trained is finite. Waits for the card."""
        trained = [group.parameter.detach() for optimiser in self.optimisers.values() for group in optimiser.groups]
        return not trained or bool(torch.stack([tensor.isfinite().all() for tensor in trained]).all())

    def keep(self) -> None:
        """Remembers the present state as one to go back to."""
        self.last_sound = self.snapshot()

    # --- a step ---------------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One step; every ten the losses are read, and the state is kept or, where it is not sound, the last one taken back."""
        self.between_steps = False
        index, terms, full = self.done, None, None
        try:
            terms = self._take(index)
        except torch.cuda.OutOfMemoryError as error:
            full = error.with_traceback(None)  # which keeps what the step had made
        except InputError as error:
            if self.sound():
                raise
            self._go_back(index, str(error))
            return
        if terms is None:
            assert full is not None
            self._halve(full)
            return
        self.done, self.between_steps = index + 1, True
        if index % 10 == 0 or self.done == self.schedule.steps:
            self._look(index, terms)

    def _take(self, index: int) -> Tensor:
        """The step's terms (n,), in the objectives' order."""
        schedule, inputs = self.schedule, self.inputs
        turns = schedule.trained(index, self.train)
        for part, optimiser in self.optimisers.items():
            optimiser.requires_grad(part in turns)
        rows, tracking, rho = None, None, index / schedule.steps
        if schedule.one_by_one:
            turn, within = divmod(index, schedule.one_by_one)
            tracking = self.order[turn]
            rows = frames = torch.tensor([tracking[0]])
            if within == 0 and self.field is not None:
                self.field.continue_motion(*tracking, schedule.momentum)
                for optimiser in self.optimisers.values():
                    optimiser.reset()
            factor = schedule.lr * schedule.lr_final ** (within / schedule.one_by_one)
        else:
            factor = schedule.lr * schedule.lr_final**rho
            frames = torch.arange(len(inputs.taus))
            if schedule.frames:
                frames = torch.randperm(len(inputs.taus), generator=self.generator)[: schedule.frames].sort().values
        if self.calm != 1:
            factor *= self.calm
        background = torch.rand(3, generator=self.generator) if schedule.background == "random" else torch.ones(3)
        resolution = schedule.resolution(rho)

        def make(kind: type[FitStep], **where: Any) -> FitStep:
            self.step = self._step(kind, index, frames, resolution, tracking=tracking, **where)
            return self.step

        if self.numbers is None:
            step = make(FitStep, taus=inputs.taus[frames].to(self.device), background=background.to(self.device))
            weights = {id: objective.weight_at(step) for id, objective in self.objectives.items()}
            terms = self._backward(step, weights, turns)
            for part in turns:
                self.optimisers[part].step(factor, rows, rho)
        else:
            step, terms = self._take_on_card(make, turns, factor, rho, frames, background, tracking, resolution)
        if self.density is not None and step.statistics is not None and "gaussians" in turns:
            before = len(self.gaussians)
            adam = self.optimisers["gaussians"]
            self.gaussians = self.density.update(
                self.grown, index, schedule.steps, self.gaussians, adam, step.statistics, self.generator
            )
            if len(self.gaussians) != before or self.gaussians is not step.canonical:
                self.replays.forget()
        return terms

    def _step(self, kind: type[FitStep], index: int, frames: Tensor, resolution: int, **where: Any) -> FitStep:
        """A step of the present state at some of the fitted frames."""
        inputs, schedule = self.inputs, self.schedule
        return kind(
            index=index, total=schedule.steps, canonical=self.gaussians, field=self.field, frames=inputs.first + frames,
            driving=inputs.video, times=self.times, fronts=inputs.fronts, resolution=resolution,
            generator=self.generator, still=self.still, meshes=inputs.meshes, loop=inputs.loop,
            stiffness=schedule.stiffness, backend=inputs.backend, statistics=[] if self.density is not None else None,
            memo=self.memo, slice=self.slice, **where,
        )  # fmt: skip

    def _backward(
        self, step: FitStep, weights: Mapping[str, float | Tensor], turns: Sequence[str],
        drawn: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> Tensor:  # fmt: skip
        """The terms (n,) of a step; gradients of their sum are left on what is trained."""
        terms: dict[str, Tensor] = {}
        for id, objective in self.objectives.items():
            step.memory = self.memory.setdefault(id, {})
            step.drawn = None if drawn is None else drawn[id]
            if self.numbers is None:  # on a card this may be recorded, and a step takes little
                pulse()
            terms[id] = objective.weighted(step, weights[id])
        # What waits for its share of the gradient counts nothing until then.
        waiting = {id: o for id, o in self.objectives.items() if o.share > 0 and id not in self.factors}
        if waiting:
            trained = [group.parameter for part in turns for group in self.optimisers[part].groups]
            for id, objective in waiting.items():
                if step.index >= objective.share_step:
                    step.memory, step.drawn = self.memory[id], None
                    own = objective.probe(step)
                    self.factors |= _shared(id, objective.share, terms[id] if own is None else own, terms, trained)
        scale = dict.fromkeys(waiting, 0.0) | self.factors
        terms = {id: scale.get(id, 1.0) * term for id, term in terms.items()}
        stacked = torch.stack([term for term in terms.values()])
        total = stacked.sum()
        if self.numbers is None:
            pulse()
        if total.requires_grad:
            total.backward()
        return stacked.detach()

    def _take_on_card(
        self, make: Any, turns: tuple[str, ...], factor: float, rho: float, frames: Tensor, background: Tensor,
        tracking: tuple[int, int, int] | None, resolution: int,
    ) -> tuple[FitStep, Tensor]:  # fmt: skip
        """As on the CPU, with all that changes from step to step sent to the card in one piece."""
        assert self.numbers is not None
        index, count, inputs = self.done, len(frames), self.inputs
        plain = make(FitStep, taus=self.times, background=self.times)  # for its weights alone
        weights = [objective.weight_at(plain) for objective in self.objectives.values()]
        drawn = {id: objective.draw(plain) for id, objective in self.objectives.items()}
        span = max(plain.frame_count - (0 if inputs.loop else 1), 1)
        values = [*background.tolist(), *weights, *((t / span for t in tracking) if tracking else ())]
        values += [*(inputs.first + frames).tolist(), *frames.tolist(), *inputs.taus[frames].tolist()]
        for part in turns:
            adam = self.optimisers[part]
            assert isinstance(adam, DeviceAdam)
            values += adam.advance(factor, rho)
        random = [tensor for tensors in drawn.values() for tensor in tensors.values()]
        sent, after = self.numbers.send(values, random), 3 + len(weights)
        times = after + (3 if tracking else 0)
        waiting = any(o.share > 0 and id not in self.factors for id, o in self.objectives.items())
        variants = tuple(objective.variant(plain) for objective in self.objectives.values())
        key = (
            resolution,
            turns,
            count,
            tracking is None,
            len(self.gaussians),
            self.slice,
            tuple(self.factors.items()),
            variants,
        )

        def take(step: FitStep) -> tuple[FitStep, Tensor]:
            given = weights if self.replays.plain(key) else sent[3:after].unbind()
            terms = self._backward(step, dict(zip(self.objectives, given, strict=True)), turns, unpacked(drawn, sent))
            rest, row = sent[times + 3 * count :], sent[times + count : times + count + 1].long() if tracking else None
            for part in turns:
                adam = self.optimisers[part]
                assert isinstance(adam, DeviceAdam)
                adam.apply(rest[: 1 + len(adam.schedules)], row)
                rest = rest[1 + len(adam.schedules) :]
            return step, terms

        def stepped(kind: type[FitStep]) -> FitStep:
            return make(
                kind, taus=sent[times + 2 * count : times + 3 * count], background=sent[:3],
                rows=sent[times : times + count].long(), tracked_taus=sent[after:times] if tracking else None,
            )  # fmt: skip

        self.step = None
        if waiting or index < self.launched_until:
            taken = take(stepped(FitStep))
        else:
            taken = self.replays.run(key, index, stepped, take, self.memory)
        self._settle()
        self.step = plain
        return taken

    def _settle(self) -> None:
        """What objectives have renewed goes where the graphs read it."""
        for id, kept in self.memory.items():
            for name, tensor in kept.items():
                there = self.captured.setdefault((id, name), tensor)
                if there is tensor:
                    continue
                if there.shape == tensor.shape and there.dtype == tensor.dtype:
                    kept[name] = there.copy_(tensor)
                else:
                    self.captured[id, name] = tensor
                    self.replays.forget()

    # --- what may go wrong ----------------------------------------------------------------------------------------------

    def _look(self, index: int, terms: Tensor) -> None:
        values = dict(zip(self.objectives, terms.tolist(), strict=True))
        worst = next((id for id, value in values.items() if not math.isfinite(value)), None)
        if worst is not None or not self.sound():
            what = f"the loss {worst!r}" if worst is not None else f"what is trained ({self._unsound()})"
            self._go_back(index, f"{what} is not finite")
            return
        if self.device.type == "cuda" and overflowed(self.device):
            log.debug(
                "%s: the lists of a captured step were too short, back to step %d", self.stage, self.last_sound[1]["step"]
            )
            self.restore(*self.last_sound)
            self.launched_until = index + 1  # each of these steps makes the room that it needs
            return
        for id, value in values.items():
            self.losses.setdefault(id, []).append(value)
        if self.device.type == "cuda":
            gc.collect(0)
        self.keep()

    def _unsound(self) -> str:
        groups = [group for optimiser in self.optimisers.values() for group in optimiser.groups]
        return next(group.name for group in groups if not group.parameter.isfinite().all())

    def _go_back(self, index: int, why: str) -> None:
        """To the last sound state, once, with half the learning rates.

        Raises:
            FloatingPointError: the second time.
        """
        message = f"{self.stage}: {why} at step {index}"
        if self.calm != 1:
            raise FloatingPointError(f"{message}, also with half the learning rates; lower its weight or the learning rate")
        tensors, header = self.last_sound
        log.warning("%s; going back to step %d with half the learning rates", message, header["step"])
        self.restore(tensors, header | {"calm": 0.5})
        self.between_steps = True
        self.keep()

    def _halve(self, full: torch.cuda.OutOfMemoryError) -> None:
        """Back to the last sound state, with frames moved in slices half as large; of a single one, once without captures.

        Raises:
            torch.cuda.OutOfMemoryError: the one given, where neither is left.
        """
        frames = self.schedule.frames or len(self.inputs.taus)
        held = min(self.slice or frames, frames)
        if self.order or self.field is None or held == 1:
            if self.gave_way:
                raise full
            self.gave_way = True
            log.warning("%s: the card's memory is full, going on with all of it that others can spare", self.stage)
        else:
            self.slice = -(-held // 2)
            log.warning("%s: the card's memory does not hold %d frames, going on with %d at once", self.stage, held, self.slice)
        self.restore(*self.last_sound)
        give_way()
        self.between_steps = True

    def _first_slice(self, field: DeformationField) -> int:
        """Frames whose activations fit :data:`FIELD_BYTES`, from those of one; 0 where all do."""
        frames = self.schedule.frames or len(self.inputs.taus)
        before = torch.cuda.memory_allocated(self.device)
        moved = field(self.gaussians, self.times[:1])
        taken = torch.cuda.memory_allocated(self.device) - before
        del moved
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - before
        size = max(1, int(min(FIELD_BYTES, 0.4 * free) / max(taken, 1)))
        return 0 if size >= frames else size

    def _not_taken(self) -> FitStep:
        """A step to look at, where none was taken since the state was taken back."""
        frames = torch.tensor([self.order[0][0]]) if self.order else torch.arange(len(self.inputs.taus))
        return self._step(
            FitStep, self.done, frames, self.schedule.resolution(self.done / self.schedule.steps),
            taus=self.inputs.taus[frames].to(self.device), background=torch.ones(3, device=self.device),
        )  # fmt: skip

    def preview(self) -> Tensor:
        """Target and render of one frame side by side, (H, 2 W, 3); without a video, the first and last frame of the step.

        On white, whatever the step's background is: colours that change every time hide the object. White alone while the state
        is not finite, which is found within ten steps.
        """
        step = self.step or self._not_taken()
        if self.numbers is not None or not bool((step.background == 1).all()):
            taus = step.taus if self.numbers is None else self.inputs.taus[step.frames - self.inputs.first].to(self.device)
            step = replace(step, taus=taus, background=torch.ones(3, device=self.device), rows=None)
            step.statistics = None
        return _preview(step) if self.sound() else torch.ones(step.resolution, 2 * step.resolution, 3)


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


@torch.no_grad()
def _preview(step: FitStep) -> Tensor:
    """Target and render of one frame side by side, (H, 2 W, 3); without a video, the first and last frame of the step."""
    if step.driving is None:
        return torch.cat([step.front.color[t, 0].detach().clamp(0, 1) for t in (0, -1)], 1)
    target, _ = step.target
    return torch.cat([target[-1, 0], step.front.color[-1, 0].detach().clamp(0, 1)], 1)
