"""Scene4D: Gaussians that move. Saved as one self-describing safetensors file."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict, dataclass, replace
from dataclasses import field as default
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cameras import Crop, FrontCamera
from ..deformation import DeformationField, loaded_field
from ..files import InputError, read_tensors, write_tensors
from ..gaussians import Gaussians
from ..mesh import Mesh, mesh_from_tensors, mesh_to_tensors
from ..progress import pulse
from ..reading import regular_size
from . import validation

#: Identifies our files; the number grows when older programs could no longer read them.
FORMAT = "anchor4d-scene"
VERSION = 1


@dataclass(frozen=True)
class Scene4D:
    """Canonical Gaussians, the field that moves them, their timing, and the camera that watched them.

    Args:
        gaussians: the canonical set, (N, ...), equal to the scene at tau = 0 for a freshly made field.
        field: deformation; None holds the object still.
        frames: number of frames of the clip.
        fps: frames a second.
        loop: whether frame ``frames`` is frame 0 again; then frame t is at tau = t / frames, else t / (frames - 1).
        front: the driving video's camera, where one was aligned.
        crop: the window of the driving video that was fitted.
        meta: settings and provenance, JSON-serialisable.
        surface: the mesh that the Gaussians were made from, where there was one: coloured, in their frame, at tau = 0.
    """

    gaussians: Gaussians
    field: DeformationField | None = None
    frames: int = 1
    fps: float = 12.0
    loop: bool = False
    front: FrontCamera | None = None
    crop: Crop | None = None
    meta: dict[str, Any] = default(default_factory=dict)
    surface: Mesh | None = None

    @property
    def taus(self) -> Tensor:
        """Times of the clip's frames, ``(frames,)`` in [0, 1]."""
        return frame_times(self.frames, self.loop)

    def at(self, tau: Tensor | float) -> Gaussians:
        """The object at time ``tau`` in [0, 1]: unbatched for a number, ``(B, N, ...)`` for ``(B,)`` times."""
        pulse()
        times = torch.as_tensor(tau, dtype=torch.float32, device=self.gaussians.device)
        if self.field is None:
            moved = self.gaussians.map(lambda t: t.expand(times.numel(), *t.shape))
        else:
            moved = self.field(self.gaussians, times.reshape(-1))
        return moved.map(lambda t: t[0]) if times.dim() == 0 else moved

    @torch.no_grad()
    def bake(self, frames: int | None = None) -> list[Gaussians]:
        """The object at each frame time; a number other than the clip's own resamples it."""
        count = self.frames if frames is None else frames
        return [self.at(float(t)) for t in frame_times(count, self.loop)]

    def to(self, device: torch.device | str) -> Scene4D:
        """The scene on a device; this one stays where it is."""
        field = self.field
        if field is not None and any(tensor.device != torch.device(device) for tensor in field.state_dict().values()):
            field = copy.deepcopy(field).to(device)  # a module moves in place
        return replace(
            self,
            gaussians=self.gaussians.to(device),
            field=field,
            surface=None if self.surface is None else self.surface.to(device),
        )

    def _comfy_cache_tensors(self) -> list[Tensor]:
        """The tensors this value holds, for the host's cache accounting."""
        owned = list(self.gaussians.tensors().values())
        if self.field is not None:
            owned += self.field.state_dict().values()
        if self.surface is not None:
            owned += [v for v in vars(self.surface).values() if isinstance(v, Tensor)] + list(self.surface.textures)
            if self.surface.skin is not None:
                owned += [v for v in vars(self.surface.skin).values() if isinstance(v, Tensor)]
        return owned

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole scene to one safetensors file (temporary name first, then renamed)."""
        tensors = {f"gaussians.{k}": v for k, v in self.gaussians.tensors().items()}
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "frames": self.frames,
            "fps": self.fps,
            "loop": self.loop,
            # What a camera of one object lacks is left out, so that older programs read it.
            "front": None
            if self.front is None
            else {k: v for k, v in asdict(self.front).items() if k[0] != "p" or v is not None},
            "crop": None if self.crop is None else asdict(self.crop),
            "field": None if self.field is None else self.field.config(),
            "meta": self.meta,
            "surface": None if self.surface is None else {"name": Path(self.surface.name).name},
        }
        if self.field is not None:
            tensors |= {f"field.{k}": v for k, v in self.field.state_dict().items()}
        if self.surface is not None:
            tensors |= {f"surface.{k}": v for k, v in mesh_to_tensors(self.surface).items()}
        write_tensors(path, tensors, {"anchor4d": json.dumps(header)})

    @staticmethod
    def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Scene4D:
        """Read a scene file, every value checked, see :mod:`.validation`.

        Raises:
            InputError: for a missing, foreign, truncated, garbled or newer file.
        """
        regular_size(path, "scene file")
        tensors, header = _opened(Path(path))
        if header.get("format") != FORMAT:
            raise InputError(
                f"{path}: a safetensors file, but not an Anchor4D scene; choose a scene.safetensors that a fit wrote"
            )
        version = header.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise InputError(f"{path}: scene format {str(version)[:20]!r} is not one; fit or export it again")
        if version > VERSION:
            raise InputError(f"{path}: scene format {version} is newer than this program reads ({VERSION}), update Anchor4D")
        try:
            return _described(header, tensors).to(device)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (
            KeyError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError, IndexError, RecursionError,
        ) as error:  # fmt: skip
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: the scene file lacks or garbles a part ({reason}); fit or export it again") from None


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A scene file's tensors and header."""
    from safetensors import SafetensorError

    try:
        tensors, metadata = read_tensors(path)
        header = json.loads(metadata.get("anchor4d", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable scene file, it is damaged, cut short or of another kind ({reason})") from None
    return tensors, header if isinstance(header, dict) else {}


def _described(header: dict[str, Any], tensors: dict[str, Tensor]) -> Scene4D:
    """The scene that a header and its tensors make, every value checked."""
    gaussians = validation.canonical(_part(tensors, "gaussians."))
    field = None
    if header["field"] is not None:
        field = loaded_field(header["field"], _part(tensors, "field."), len(gaussians))
        validation.motion(field, gaussians)
    surface = header.get("surface")
    if surface is not None:
        parts = validation.surface_tensors(_part(tensors, "surface."))
        surface = mesh_from_tensors(parts, Path(str(surface["name"])[:200]).name)
    if not isinstance(header["loop"], bool) or not isinstance(header["meta"], dict):
        raise ValueError("loop or meta are of a wrong type")
    return Scene4D(
        gaussians=gaussians,
        field=field,
        frames=validation.integer(header["frames"], "frames", 1, validation.MAX_FRAMES),
        fps=validation.number(header["fps"], "fps", 0, validation.MAX_FPS, above=True),
        loop=header["loop"],
        front=None if header["front"] is None else validation.front_camera(header["front"]),
        crop=None if header["crop"] is None else validation.crop_window(header["crop"]),
        meta=header["meta"],
        surface=surface,
    )


def frame_times(frames: int, loop: bool = False) -> Tensor:  # (frames,)
    """Normalised times of the frames: t / (T - 1), or t / T for a clip that loops; a single frame is at 0."""
    return torch.arange(frames, dtype=torch.float32) / max(frames if loop else frames - 1, 1)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
