"""OpenUSD: Gaussians as a ParticleField3DGaussianSplat with time samples, one file for a moving object.

Source: the usdVol schema of OpenUSD 26.03 and later. Positions, orientations (quatf), linear scales, opacities in [0, 1] and
the harmonics as 3DGS has them. What does not change over the clip is stored once. USD is Z-up by custom, so the object is
turned by 90 degrees about X: our (x, y, z) is (x, -z, y) there, and its front faces -Y.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..cameras import quaternion_to_matrix
from ..files import InputError, atomic_path
from ..gaussians import Gaussians
from ..packages import problem
from ..scene.scene import Scene4D, frame_times
from ..scene.views import FrameProgress

SUFFIXES = (".usdc", ".usda", ".usdz", ".usd")

#: From our frame to one with Z up.
Z_UP = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])

#: A set that is shown until the next one is repeated this long before it, in frames: USD blends between samples.
_HELD = 0.999


def write_usd(
    path: str | os.PathLike[str],
    scene: Scene4D,
    frames: int | None = None,
    *,
    up: Literal["Z", "Y"] = "Z",
    progress: FrameProgress | None = None,
) -> None:
    """Write a scene as .usdc (binary), .usda (text, large), .usdz (package) or .usd (binary). Takes the package usd-core.

    Frame t is at time code t, with as many time codes a second as frames; a unit is a metre.

    Args:
        frames: the clip is spread over so many, its own where None.
        up: the stage's up axis; the object is turned to it.
        progress: called with the frames done and all of them.

    Raises:
        InputError: without usd-core, for another suffix, or a scene that is empty or holds values that are not numbers.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: not a name of a USD file, choose one that ends in {', '.join(SUFFIXES)}")
    Tf, Usd, UsdGeom, UsdUtils, UsdVol = _modules(path)
    if not len(scene.gaussians):
        raise InputError(f"{path}: the scene has no Gaussians, nothing to write")
    count = scene.frames if frames is None else frames
    fps = scene.fps * count / scene.frames
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z if up == "Z" else UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetTimeCodesPerSecond(fps)
    stage.SetFramesPerSecond(fps)
    if count > 1:
        stage.SetStartTimeCode(0)
        stage.SetEndTimeCode(count - 1)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/Object").GetPrim())
    splats = UsdVol.ParticleField3DGaussianSplat.Define(stage, "/Object/Splats")
    splats.CreateProjectionModeHintAttr("perspective")
    splats.CreateSortingModeHintAttr("zDepth")
    degree = math.isqrt(scene.gaussians.sh.shape[-2]) - 1
    splats.CreateRadianceSphericalHarmonicsDegreeAttr(degree)
    harmonics = splats.CreateRadianceSphericalHarmonicsCoefficientsAttr()
    harmonics.SetColorSpace("srgb_rec709_scene")  # what the harmonics add up to is encoded, as the driving video is
    held = scene.field is not None and not scene.field.continuous
    tracks = [
        _Track(attribute, held)
        for attribute in (
            splats.CreatePositionsAttr(), splats.CreateOrientationsAttr(), splats.CreateScalesAttr(),
            splats.CreateOpacitiesAttr(), harmonics, splats.CreateExtentAttr(),
        )
    ]  # fmt: skip
    before = None
    for frame, tau in enumerate(frame_times(count, scene.loop)):
        with torch.no_grad():
            gaussians = scene.at(tau).to("cpu", torch.float32)
        gaussians = gaussians.transformed(Z_UP) if up == "Z" else gaussians
        quats = _unit(gaussians.quats, before)
        before = quats
        values = (
            gaussians.means,
            quats,
            gaussians.scales,
            gaussians.opacities,
            gaussians.sh.flatten(-3, -2),
            _extent(gaussians),
        )
        if not all(bool(value.isfinite().all()) for value in values):
            raise InputError(f"{path}: the scene holds values that are not numbers (NaN or infinite), fit it again")
        for track, value in zip(tracks, values):
            track.set(frame, value)
        if progress is not None:
            progress(frame + 1, count)
    try:
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".usdz":
                with tempfile.TemporaryDirectory() as folder:
                    inner = Path(folder) / f"{path.stem}.usdc"
                    stage.GetRootLayer().Export(str(inner))
                    UsdUtils.CreateNewUsdzPackage(str(inner), str(temporary))
            else:
                stage.GetRootLayer().Export(str(temporary))
    except Tf.ErrorException as error:  # a full disk among others, in lines upon lines
        found = re.search(r"Error occurred writing file: ([^']*)", str(error))
        reason = found[1].lower() if found else "the OpenUSD library gave up"
        raise InputError(f"{path}: cannot be written ({reason}), free space or choose another place") from None


class _Track:
    """An attribute over time: one value where it never changes, else a sample a frame."""

    def __init__(self, attribute: Any, held: bool) -> None:
        self.attribute, self.held = attribute, held
        self.first: Tensor | None = None
        self.sampled = False

    def set(self, frame: int, value: Tensor) -> None:
        if self.first is None:
            self.first = value
            self.attribute.Set(_array(self.attribute, value))
        elif self.sampled or not torch.equal(value, self.first):
            if not self.sampled:
                self.attribute.Clear()
                first = _array(self.attribute, self.first)
                for earlier in {0, frame - 1}:
                    self.attribute.Set(first, earlier)
                self._hold(first, frame - 1)
                self.sampled = True
            array = _array(self.attribute, value)
            self.attribute.Set(array, frame)
            self._hold(array, frame)

    def _hold(self, array: Any, frame: int) -> None:
        if self.held:
            self.attribute.Set(array, frame + _HELD)


def _modules(path: Path) -> tuple[Any, Any, Any, Any, Any]:
    if reason := problem("pxr.UsdVol"):
        raise InputError(f"{path}: USD files take the package usd-core, which {reason}; run: pip install usd-core")
    from pxr import Tf, Usd, UsdGeom, UsdUtils, UsdVol

    if not hasattr(UsdVol, "ParticleField3DGaussianSplat"):
        raise InputError(f"{path}: this usd-core is older than 26.3 and knows no Gaussians; pip install --upgrade usd-core")
    return Tf, Usd, UsdGeom, UsdUtils, UsdVol


def _array(attribute: Any, value: Tensor) -> Any:
    """A tensor as the attribute's array type; quatf keeps its imaginary part first."""
    from pxr import Vt

    kind = str(attribute.GetTypeName())
    if kind == "quatf[]":
        value = value[:, [1, 2, 3, 0]]
    names = {"point3f[]": "Vec3fArray", "float3[]": "Vec3fArray", "quatf[]": "QuatfArray", "float[]": "FloatArray"}
    return getattr(Vt, names[kind]).FromNumpy(value.contiguous().numpy())


def _unit(quats: Tensor, before: Tensor | None) -> Tensor:  # (N, 4)
    """Unit quaternions, signed so that each turns the shorter way from the frame before."""
    length = quats.norm(dim=-1, keepdim=True)
    quats = torch.where(length > 1e-12, quats / length.clamp_min(1e-12), quats.new_tensor([1.0, 0.0, 0.0, 0.0]))
    return quats if before is None else torch.where((quats * before).sum(-1, keepdim=True) < 0, -quats, quats)


def _extent(gaussians: Gaussians) -> Tensor:  # (2, 3)
    """The box of all ellipsoids out to three standard deviations."""
    axes = quaternion_to_matrix(torch.nn.functional.normalize(gaussians.quats, dim=-1)) * gaussians.scales[:, None]
    reach = 3 * axes.norm(dim=-1)
    return torch.stack([(gaussians.means - reach).amin(0), (gaussians.means + reach).amax(0)])
