"""What the player shows, as it writes it into its node: checked once, before anything is drawn of it."""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from ..cameras import from_camera_info
from ..files import InputError

#: Characters of a view at most; a long recorded path takes some 100 kB.
LONGEST = 8 << 20


def read_view(text: str) -> dict[str, Any]:
    """The player's JSON; {} where the player has not been used yet.

    ``camera`` is a LOAD3D_CAMERA value with ``principal``, the principal point in shares of the picture; ``time`` is in
    [0, 1]; ``background`` is "#rrggbb" or a word; ``trajectory`` is what :meth:`Trajectory.from_json` reads; ``moments`` says
    whether its keys hold moments of the scene.

    Raises:
        InputError: for what the player does not write.
    """
    if not text.strip():
        return {}
    try:
        view = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        view = None
    if not isinstance(view, dict):
        raise _refusal("it is not readable")
    for name in ("camera", "trajectory"):
        if not isinstance(view.get(name) or {}, dict):
            raise _refusal(f"its {name} is no group of values")
    if view.get("camera"):
        _check_camera(view["camera"])
    keys = (view.get("trajectory") or {}).get("keys") or []
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise _refusal("its camera path is no list of keys")
    return view


def _check_camera(info: dict[str, Any]) -> None:
    try:
        pose = from_camera_info(info, 64, 64)
        x, y = map(float, info.get("principal") or (0.5, 0.5))
        aspect = float(info.get("aspect") or 1.0)
        numbers = torch.cat([pose.world_to_camera.flatten(), pose.K.flatten(), torch.tensor([x, y, aspect])])
    except InputError as error:
        raise _refusal(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _refusal(f"its camera lacks or garbles a part ({' '.join(str(error).split())[:80]})") from None
    if not torch.isfinite(numbers).all() or not (0.01 <= aspect <= 100 and math.hypot(x, y) < 100):
        raise _refusal("its camera is nowhere")


def _refusal(reason: str) -> InputError:
    return InputError(f"view: {reason}, right-click the node and choose Reset the view")
