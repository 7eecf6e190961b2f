"""What there is of a kind, by name: methods, objectives, priors, fields, formats, ours and other packages'.

A file of ours is found by lying in its room, another package by an entry point of the group ``anchor4d`` naming its module::

    [project.entry-points.anchor4d]
    gravity = "my_package.gravity"

Importing the module runs its decorators, which register what it brings. Nothing is imported before a registry is asked.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, metadata
from typing import Generic, TypeVar

from .files import InputError

log = logging.getLogger(__name__)

GROUP = "anchor4d"
Entry = TypeVar("Entry")
Thing = TypeVar("Thing")
_plugins_loaded = False


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries of one kind by name: those of a room sorted, others in the order of their registration.

    Args:
        kind: what an entry is called in messages.
        room: package whose modules all register entries when imported; None where they are imported anyway.
    """

    def __init__(self, kind: str, room: str | None = None) -> None:
        self.kind, self.room = kind, room
        self._entries: dict[str, Entry] = {}
        self._filled = room is None

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """Decorator that registers a class or function by a name.

        Raises:
            ValueError: for a name that another entry has.
        """

        def decorate(entry: Thing) -> Thing:
            self.add(name, entry)  # pyright: ignore[reportArgumentType]
            return entry

        return decorate

    def add(self, name: str, entry: Entry) -> None:
        """Register an entry; the same one again, as after a reload, takes its place.

        Raises:
            ValueError: for a name that another entry has.
        """
        known = self._entries.get(name)
        if known is not None and _origin(known) != _origin(entry):
            raise ValueError(f"{self.kind} {name!r}: registered twice, by {_origin(known)} and {_origin(entry)}; rename one")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            self._fill()
        return self._entries[name]

    def named(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            InputError: for an unknown one, with those there are.
        """
        self._fill()
        if name not in self._entries:
            raise InputError(f"{self.kind} {name!r}: unknown, choose one of {', '.join(self)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._fill()
        # A room's modules may have been imported in any order.
        return iter(self._entries if self.room is None else sorted(self._entries))

    def __len__(self) -> int:
        self._fill()
        return len(self._entries)

    def _fill(self) -> None:
        if not self._filled:
            self._filled = True
            package = import_module(str(self.room))
            for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
                import_module(f"{self.room}.{module}")
        load_plugins()


def load_plugins() -> None:
    """Import the modules that installed packages name in the group; one that fails is left out with a warning."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # another package's fault must not stop what does not use it
            log.warning("plug-in %s (%s): left out, %s: %s", point.name, point.value, type(error).__name__, error)


def _origin(entry: object) -> tuple[str, str]:
    return getattr(entry, "__module__", ""), getattr(entry, "__qualname__", repr(entry))
