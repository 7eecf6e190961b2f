"""A plug-in metric: how steadily the object keeps its size. `measure` and the node Measure list it with the others."""

import numpy as np

from anchor4d.core.metrics.base import Footage, metric


@metric("steady-size", text="standard deviation of the mask's area over time, of its mean", better="lower", frames=2)
def steady_size(footage: Footage) -> dict[str, float]:
    """By view."""
    areas = {name: images[..., 3].sum((1, 2)) for name, images in footage.views.items()}
    return {name: float(np.std(area) / max(1e-9, area.mean())) for name, area in areas.items()}
