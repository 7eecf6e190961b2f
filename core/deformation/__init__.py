"""Deformation fields: (canonical Gaussians, times) to moved Gaussians."""

from .base import DeformationField, field_from_config, register_field
from .control_nodes import ControlNodes
from .frames import FrameField
from .hexplane import HexPlane
from .mlp import DeformationMLP
from .time_gated import TimeGatedMLP

__all__ = [
    "ControlNodes",
    "DeformationField",
    "DeformationMLP",
    "FrameField",
    "HexPlane",
    "TimeGatedMLP",
    "field_from_config",
    "register_field",
]
