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
from ..deformation import DeformationField, field_from_config
from ..files import InputError, atomic_path
from ..gaussians import Gaussians
from ..mesh import Mesh, mesh_from_tensors, mesh_to_tensors

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
        return owned

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole scene to one safetensors file (temporary name first, then renamed)."""
        from safetensors.torch import save

        tensors = {f"gaussians.{k}": v for k, v in self.gaussians.tensors().items()}
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "frames": self.frames,
            "fps": self.fps,
            "loop": self.loop,
            "front": None if self.front is None else asdict(self.front),
            "crop": None if self.crop is None else asdict(self.crop),
            "field": None if self.field is None else self.field.config(),
            "meta": self.meta,
            "surface": None if self.surface is None else {"name": Path(self.surface.name).name},
        }
        if self.field is not None:
            tensors |= {f"field.{k}": v for k, v in self.field.state_dict().items()}
        if self.surface is not None:
            tensors |= {f"surface.{k}": v for k, v in mesh_to_tensors(self.surface).items()}
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        with atomic_path(path) as temporary:
            # Not save_file: it leaves the file readable by its owner alone.
            temporary.write_bytes(save(tensors, metadata={"anchor4d": json.dumps(header)}))

    @staticmethod
    def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Scene4D:
        """Read a scene file.

        Raises:
            InputError: for a missing, foreign, truncated or newer file.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such scene file")
        try:
            with safe_open(str(path), framework="pt", device="cpu") as handle:
                header = json.loads((handle.metadata() or {}).get("anchor4d", "null"))
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"{path}: not a readable scene file, it is damaged, cut short or of another kind ({error})"
            ) from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise InputError(
                f"{path}: a safetensors file, but not an Anchor4D scene; choose a scene.safetensors that a fit wrote"
            )
        if header.get("version", 0) > VERSION:
            raise InputError(
                f"{path}: scene format {header['version']} is newer than this program reads ({VERSION}), update Anchor4D"
            )
        try:
            gaussians = Gaussians(**_part(tensors, "gaussians."))
            deformation = None
            if header["field"] is not None:
                deformation = field_from_config(header["field"])
                deformation.load_state_dict(_part(tensors, "field."))
            surface = header.get("surface")
            scene = Scene4D(
                gaussians=gaussians,
                field=deformation,
                frames=int(header["frames"]),
                fps=float(header["fps"]),
                loop=bool(header["loop"]),
                front=None if header["front"] is None else FrontCamera(**header["front"]),
                crop=None if header["crop"] is None else Crop(**header["crop"]),
                meta=header["meta"],
                surface=None if surface is None else mesh_from_tensors(_part(tensors, "surface."), str(surface["name"])),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: the scene file lacks or garbles a part ({error}); fit or export it again") from None
        return scene.to(device)


def frame_times(frames: int, loop: bool = False) -> Tensor:  # (frames,)
    """Normalised times of the frames: t / (T - 1), or t / T for a clip that loops; a single frame is at 0."""
    return torch.arange(frames, dtype=torch.float32) / max(frames if loop else frames - 1, 1)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
