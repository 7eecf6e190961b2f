"""Anchor4D: moving objects made of Gaussians, as a ComfyUI node pack, a library and a command line.

Imports nothing heavy and works without a host: the nodes load only when ComfyUI asks for them.
"""

from typing import Any

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """ComfyUI's V3 entry point."""
    from .nodes import Anchor4DExtension

    return Anchor4DExtension()
