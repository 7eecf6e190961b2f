"""Deformation fields: (canonical Gaussians, times) to moved Gaussians."""

from .base import DeformationField, field_from_config, loaded_field, register_field
from .chain import ClipChain
from .control_nodes import ControlNodes
from .frames import FrameField
from .hexplane import HexPlane
from .mlp import DeformationMLP
from .time_gated import TimeGatedMLP
from .wrappers import ClosedLoop, Faded, Parts, Placed, TimeMap

__all__ = [
    "ClipChain",
    "ClosedLoop",
    "ControlNodes",
    "DeformationField",
    "DeformationMLP",
    "Faded",
    "FrameField",
    "HexPlane",
    "Parts",
    "Placed",
    "TimeGatedMLP",
    "TimeMap",
    "field_from_config",
    "loaded_field",
    "register_field",
]
