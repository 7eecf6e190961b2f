"""What a method is: settings as plain data, and a plan of stages. Whoever lists methods reads :data:`METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..files import InputError
from ..priors.base import Prior, Role
from ..registry import Registry
from ..scene.scene import Scene4D

if TYPE_CHECKING:
    from .plan import MethodRun
    from .stages import Config

#: A part that is left out where the object's depth is a guess: its motion in depth.
DEPTH_MOTION = "depth-motion"
#: From the fastest on; "preview" is tracking alone, which not every method has.
PRESETS = ("preview", "draft", "standard", "paper")
FITTED = PRESETS[1:]


@dataclass(frozen=True)
class ModelRole:
    """A model that a method asks.

    Args:
        name: of its :class:`~..priors.base.Role` in the method's settings, and of the run's setting that names the model.
        own: names of models that the paper uses, or that stand in for its own; the first that is on this machine is taken.
        fallback: what is taken where none is, or no GPU for it: a name, or the name of another role; None: it must be there.
        unless: "object" where the model is not asked once an object is given, or a part whose leaving out leaves it out.
        optional: whether "none" can be chosen.
    """

    name: str
    own: tuple[str, ...]
    fallback: str | None = None
    unless: str = ""
    optional: bool = True


@dataclass(frozen=True)
class Choice:
    """What a run chose of a method.

    Args:
        preset: of :data:`PRESETS`.
        without, plus: parts to leave out and to add.
        prompt: the text, where one is followed.
        models: names of the roles that have a model.
    """

    preset: str = "standard"
    without: tuple[str, ...] = ()
    plus: tuple[str, ...] = ()
    prompt: str = ""
    models: frozenset[str] = frozenset()

    def role(self, name: str) -> Role | None:
        """The place of a model in the settings; None where there is none."""
        return Role(name) if name in self.models else None


@dataclass(frozen=True)
class Method:
    """A method of the literature.

    Args:
        name: of the command line's ``--method``, of the nodes and of reports.
        title: as its authors call it.
        source: where it is published.
        summary: one line, for help.
        settings: its settings as plain data for a choice: numbers, names, objectives with the roles of their models; a
            :class:`~.stages.Config`.
        plan: its stages, which make a scene of a run's inputs.
        roles: the models that it asks.
        follows: what drives the object.
        needs_object: whether there is no start without an object.
        without: parts that can be left out, as in the paper's ablations.
        plus: parts that can be added, of other methods or for some objects.
        prolongs: whether a motion can be prolonged by further texts, or made to loop.
        object_a_frame: whether it takes one object for each frame.
        presets: those of :data:`PRESETS` that it has.
    """

    name: str
    title: str
    source: str
    summary: str
    settings: Callable[[Choice], Config]
    plan: Callable[[MethodRun], Scene4D]
    roles: tuple[ModelRole, ...] = ()
    follows: Literal["video", "text"] = "video"
    needs_object: bool = True
    without: tuple[str, ...] = ()
    plus: tuple[str, ...] = ()
    prolongs: bool = False
    object_a_frame: bool = False
    presets: tuple[str, ...] = FITTED

    def motion_objectives(self) -> frozenset[str]:
        """Names of its motion's objectives with every model and part of preset standard."""
        config = self.settings(Choice(models=frozenset(role.name for role in self.roles)))
        return frozenset(objective.name for objective in config.motion.objectives)

    def check(self, choice: Choice) -> None:
        """Refuse a preset or parts that it does not have.

        Raises:
            InputError: naming them.
        """
        if choice.preset not in PRESETS:
            raise InputError(f"preset {choice.preset!r}: unknown, choose one of {', '.join(PRESETS)}")
        if choice.preset not in self.presets:
            having = " or ".join(name for name, other in METHODS.items() if choice.preset in other.presets)
            raise InputError(
                f"preset {choice.preset!r}: of method {having}, {self.name} has none; choose one of {', '.join(self.presets)}"
            )
        self._check("without", choice.without, self.without, "left out of")
        self._check("plus", choice.plus, self.plus, "added to")

    def _check(self, word: str, chosen: Collection[str], known: tuple[str, ...], done: str) -> None:
        for part in chosen:
            if not known:
                having = [name for name, other in METHODS.items() if getattr(other, word)]
                raise InputError(f"{word} {part!r}: parts are {done} {' or '.join(having)}, not {done.split()[-1]} {self.name}")
            if part not in known:
                raise InputError(f"{word} {part!r}: not a part of {self.name}, choose of {', '.join(known)}")


#: Methods by name.
METHODS: Registry[Method] = Registry("method", __package__)


def method(name: str, **facts: Any) -> Callable[[Callable[[MethodRun], Scene4D]], Callable[[MethodRun], Scene4D]]:
    """Decorator of a plan that registers its method; ``facts`` are those of :class:`Method`."""

    def decorate(plan: Callable[[MethodRun], Scene4D]) -> Callable[[MethodRun], Scene4D]:
        METHODS.add(name, Method(name=name, plan=plan, **facts))
        return plan

    return decorate


def method_config(name: str, preset: str = "standard", models: Mapping[str, Prior] | None = None, **choice: Any) -> Any:
    """The settings of a method with models in their places.

    Args:
        models: by role; what asks another one is left out.
        choice: ``without``, ``plus`` and ``prompt``, see :class:`Choice`.

    Raises:
        InputError: for an unknown method, preset or part.
    """
    chosen, models = METHODS.named(name), models or {}
    made = Choice(preset, models=frozenset(models), **choice)
    chosen.check(made)
    return chosen.settings(made).bound(models)
