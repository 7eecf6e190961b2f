"""Deformation fields: (canonical Gaussians, times) to moved Gaussians."""

from .articulated import Articulated
from .base import FIELDS, DeformationField, Handles, StaticScene, field_from_config, loaded_field, register_field
from .chain import ClipChain
from .control_nodes import ControlNodes
from .frames import FrameField
from .hexplane import HexPlane
from .mlp import DeformationMLP
from .skeleton import Motion, Skeleton, find_skeleton
from .time_gated import TimeGatedMLP
from .timed import TimedGaussians
from .wrappers import ClosedLoop, Faded, Parts, Placed, TimeMap

__all__ = [
    "FIELDS",
    "Articulated",
    "ClipChain",
    "ClosedLoop",
    "ControlNodes",
    "DeformationField",
    "DeformationMLP",
    "Faded",
    "FrameField",
    "Handles",
    "HexPlane",
    "Motion",
    "Parts",
    "Placed",
    "Skeleton",
    "StaticScene",
    "TimeGatedMLP",
    "TimeMap",
    "TimedGaussians",
    "field_from_config",
    "find_skeleton",
    "loaded_field",
    "register_field",
]
