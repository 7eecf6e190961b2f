"""Which third-party packages work here: found out by importing them, since one that is there may be broken.

And the pack's own constants, found out without importing it.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

from .progress import pulse

#: Packages that diffusers and transformers import on their own where they find them; a broken one would take them down.
NEIGHBOURS = ("torchvision", "xformers", "flash_attn")

_broken: dict[str, str] = {}


def problem(name: str) -> str:
    """Why a package, or a module by its full name, cannot be used, in a few words; "" where it can.

    A broken one reads like an absent one from then on, for the packages too that would import it when they find it.
    """
    parent = name.rpartition(".")[0]
    if parent and (reason := problem(parent)):
        return reason
    if name in sys.modules:
        return _broken.get(name, "is not installed") if sys.modules[name] is None else ""
    try:
        importlib.import_module(name)
        return ""
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return "is not installed"
        reason = f"{error.name} is not installed"
    except SystemExit as error:
        reason = f"it exits with {error.code}"
    except BaseException as error:  # a broken installation may raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
    for module in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[module]
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    _broken[name] = f"cannot be imported ({reason})"
    return _broken[name]


def problems(*names: str) -> str:
    """What keeps any of several packages from working, with the command that installs them; "" where all work.

    Called before diffusers or transformers are used: broken packages beside them are put out of their way.
    """
    found = dict[str, str]()
    for name in (*NEIGHBOURS, *names):  # an import takes a second or two
        pulse()
        if (reason := problem(name)) and name in names:
            found[name] = reason
    pulse()
    if not found:
        return ""
    return f"{'; '.join(f'{name} {reason}' for name, reason in found.items())}; run: pip install {' '.join(found)}"


def constant_of(path: str, name: str) -> Any:
    """A plain constant of a module of this package, read from its file: help imports nothing.

    Args:
        path: from the package's folder.
    """
    for node in ast.parse((Path(__file__).parents[1] / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise LookupError(f"{path}: no constant {name}")
