"""A set of aligned quadruplets as a torch dataset."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..cameras import Crop
from ..files import InputError
from ..io.objects import load_object
from ..scene.object3d import Object3D
from ..scene.scene import Scene4D
from ..scene.validation import crop_window
from ..video import DrivingVideo, continued, resampled, straight
from .x4d import MANIFEST, checked_file, read_clip_tensors, read_manifest


class X4D(Dataset[dict[str, Any]]):
    """The quadruplets of a set that ``x4d build`` or ``x4d choose`` wrote.

    An item is a dict, which PyTorch's own collate joins where ``frames`` and ``size`` make all alike:

    - ``id``, ``text``: strings;
    - ``image``: the first frame, (S, S, 4) float32, straight alpha in [0, 1];
    - ``video``: the clip, (T, S, S, 4); ``taus``: its times, (T,) in [0, 1]; ``fps``;
    - ``world_to_camera`` (4, 4), OpenCV, and ``K`` (3, 3), pixels: the camera that sees the 3D and the 4D as the clip shows
      them (world +Y up, front +Z, degrees of azimuth 0).

    The 3D and the 4D are read when they are asked for: :meth:`object` and :meth:`scene`.

    Args:
        folder: of the set.
        frames: of every clip, spread over it (the nearest there are); its own where None.
        size: side of every picture, pixels; its own where None.
        verify: check the hash of each file before it is read.
        where: keeps the entries of the manifest for which it is true.

    Raises:
        InputError: for a folder without a manifest, or one that is garbled.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        frames: int | None = None,
        size: int | None = None,
        verify: bool = False,
        where: Callable[[dict[str, Any]], bool] | None = None,
    ) -> None:
        if (frames is not None and frames < 1) or (size is not None and not 1 <= size <= 8192):
            raise InputError(f"frames {frames}, size {size}: choose 1 or more, and at most 8192 pixels")
        self.folder, self.frames, self.size, self.verify = Path(folder), frames, size, verify
        entries = read_manifest(self.folder / MANIFEST)
        self.entries = [entry for entry in entries if where is None or where(entry)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry, tensors = self.entries[index], read_clip_tensors(self.path(index, "clip"))
        video, taus, K = tensors["frames"], tensors["taus"], tensors["K"]
        if self.frames is not None:
            chosen = torch.linspace(0, len(video) - 1, self.frames).round().long()
            video, taus = video[chosen], taus[chosen]
        video = video.float() / 255
        if self.size is not None and self.size != video.shape[1]:
            K = K * torch.tensor([[self.size / video.shape[1]], [self.size / video.shape[1]], [1.0]])
            colors, alpha = straight(resampled(torch.cat([video[..., :3] * video[..., 3:], video[..., 3:]], -1), self.size))
            video = torch.cat([colors, alpha[..., None]], -1)
        return {
            "id": entry["id"],
            "text": entry["text"],
            "image": video[0],
            "video": video,
            "taus": taus,
            "fps": float(entry["fps"]),
            "world_to_camera": tensors["world_to_camera"],
            "K": K,
        }

    def index(self, name: str) -> int:
        """The place of an id.

        Raises:
            InputError: where the set has none of this id.
        """
        for number, entry in enumerate(self.entries):
            if entry["id"] == name:
                return number
        some = ", ".join(entry["id"] for entry in self.entries[:5])
        raise InputError(f"{self.folder}: has no {name!r}; its ids are {some}{', ...' if len(self) > 5 else ''}")

    def path(self, index: int, what: str) -> Path:
        """A file of a quadruplet: "image", "video", "object", "scene", "clip" or "strip".

        Raises:
            InputError: for another name, or where ``verify`` finds another file.
        """
        files = self.entries[index].get("files", {})
        if what not in files:
            raise InputError(f"{what!r}: no file of {self.entries[index]['id']}; choose of {', '.join(files)}")
        return checked_file(self.folder, files[what], whole=self.verify)

    def driving_video(self, index: int) -> DrivingVideo:
        """The clip as methods take it: cut out, its window in the original picture known."""
        entry, clip = self.entries[index], read_clip_tensors(self.path(index, "clip"))["frames"].float() / 255
        colors, masks = straight(torch.cat([clip[..., :3] * clip[..., 3:], clip[..., 3:]], -1))
        side = clip.shape[1]
        crop = Crop(0, 0, side, side, side) if entry.get("crop") is None else crop_window(entry["crop"])
        return DrivingVideo(continued(colors, masks), masks, float(entry["fps"]), crop, source=entry["id"])

    def object(self, index: int) -> Object3D:
        """The 3D, in the world of the camera and of the scene."""
        return load_object(self.path(index, "object"))

    def scene(self, index: int) -> Scene4D:
        """The 4D, on the CPU."""
        return Scene4D.load(self.path(index, "scene"))
