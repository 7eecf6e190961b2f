"""Diffusion priors behind one interface: see :class:`Prior`, and :func:`load_prior` for the models there are."""

from .base import Condition, NoiseSchedule, Prediction, Prior, Role, Viewpoints
from .distill import Annealed, Distillation, Term, UniformWindow, composed
from .load import load_prior

__all__ = [
    "Annealed",
    "Condition",
    "Distillation",
    "NoiseSchedule",
    "Prediction",
    "Prior",
    "Role",
    "Term",
    "UniformWindow",
    "Viewpoints",
    "composed",
    "load_prior",
]
