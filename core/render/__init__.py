"""Rendering of Gaussians, with interchangeable backends."""

from __future__ import annotations

from .rasterize import Render, ScreenStatistics, available_backends, rasterize, resolve_backend, slow_renderer

__all__ = ["Render", "ScreenStatistics", "available_backends", "rasterize", "resolve_backend", "slow_renderer"]
