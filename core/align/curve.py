"""What a search looked at, and a picture of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AlignmentCurve:
    """The error of every candidate of a one-parameter search.

    Args:
        name: what was searched, for a title.
        x_label: the parameter and its unit.
        x: candidates, rising, (M,).
        y: their errors, lower = better, (M,).
        chosen: the parameter that won; it may lie between candidates.
    """

    name: str
    x_label: str
    x: Tensor  # (M,)
    y: Tensor  # (M,)
    chosen: float


def draw_curve(curve: AlignmentCurve, width: int = 640, height: int = 400) -> Tensor:  # (height, width, 3)
    """The curve on white with the chosen point marked, float RGB in [0, 1]."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    scale = 2  # drawn large and reduced: PIL's lines are not antialiased
    image = Image.new("RGB", (width * scale, height * scale), "white")
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(15 * scale), ImageFont.load_default(11 * scale)
    ink, grey, line, mark = (40, 44, 52), (205, 209, 216), (46, 110, 190), (220, 75, 50)
    left, right, top, bottom = (v * scale for v in (66, width - 20, 44, height - 50))

    x, y = curve.x.double().cpu(), curve.y.double().cpu()
    x0, x1 = min(float(x.min()), curve.chosen), max(float(x.max()), curve.chosen)
    y0, y1 = float(y.min()), float(y.max())
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + max(abs(y0), 1e-6))
    pad = 0.06 * (y1 - y0)
    y0, y1 = y0 - pad, y1 + pad

    def place(px: float, py: float) -> tuple[float, float]:
        return left + (px - x0) / (x1 - x0) * (right - left), bottom - (py - y0) / (y1 - y0) * (bottom - top)

    for tick in _ticks(x0, x1):
        tx, _ = place(tick, y0)
        draw.line([(tx, top), (tx, bottom)], fill=grey, width=scale)
        draw.text((tx, bottom + 6 * scale), f"{tick:g}", fill=ink, font=small, anchor="mt")
    for tick in _ticks(y0, y1):
        _, ty = place(x0, tick)
        draw.line([(left, ty), (right, ty)], fill=grey, width=scale)
        draw.text((left - 6 * scale, ty), f"{tick:.3g}", fill=ink, font=small, anchor="rm")
    draw.rectangle([left, top, right, bottom], outline=ink, width=scale)
    draw.line([place(float(a), float(b)) for a, b in zip(x, y)], fill=line, width=2 * scale, joint="curve")

    cx, cy = place(curve.chosen, float(np.interp(curve.chosen, x.numpy(), y.numpy())))
    draw.line([(cx, top), (cx, bottom)], fill=mark, width=scale)
    draw.ellipse([cx - 5 * scale, cy - 5 * scale, cx + 5 * scale, cy + 5 * scale], fill=mark, outline="white", width=scale)
    anchor, shift = ("lt", 6) if cx < (left + right) / 2 else ("rt", -6)
    draw.text((cx + shift * scale, top + 6 * scale), f"{curve.chosen:.4g}", fill=mark, font=font, anchor=anchor)
    draw.text((left, 14 * scale), curve.name, fill=ink, font=font, anchor="lt")
    draw.text(((left + right) / 2, height * scale - 8 * scale), curve.x_label, fill=ink, font=small, anchor="mb")
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers between the two."""
    import math

    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (step * k) < 8)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
