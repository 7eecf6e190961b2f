"""ComfyUI nodes: one file a pipeline step. They convert, report and cache; everything else is in ``core``."""

from comfy_api.latest import ComfyExtension, io

from . import (
    align,
    ayg,
    edit,
    export,
    fit,
    generate,
    measure,
    objectives,
    player,
    prepare,
    priors,
    several,
    signals,
    stag4d,
    trajectory,
    view,
    x4d,
)


class Anchor4DExtension(ComfyExtension):
    """All nodes of the pack, in the order of the pipeline."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        first = (prepare, align, objectives, signals, fit, several, stag4d, ayg, priors, generate)
        parts = (*first, view, edit, trajectory, player, export, x4d, measure)
        return [node for part in parts for node in part.NODES]
