"""The numba kernels of the rasteriser.

How it is fast. A tile is 8 pixels wide and 32 high, and two of its rows are one vector of 16 lanes, so that a lane's column is
the same in every vector: along a column the exponent is a quadratic in y, two operations a vector, and the backward pass
needs only the sums of h, h u and h u^2 of each lane, weighted by functions of dx once a Gaussian. A Gaussian visits exactly
the row pairs of a tile that its ellipse alpha >= 1/255 touches. The backward pass walks front to back like the forward pass:
with R the gradient's dot product with what is still to be composited, dL/dalpha = T v - R / (1 - alpha), so no per-pixel
history is kept. Gradients go to one slot of 16 numbers for each (Gaussian, tile) and are added up in a fixed order: no atomic
additions, the same bits every time.
"""

from __future__ import annotations

from .common import LANE_X, LANE_Y
from .drawing import draw
from .gradients import backward
from .projection import project

__all__ = ["LANE_X", "LANE_Y", "backward", "draw", "project"]
