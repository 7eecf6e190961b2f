"""Anchor4D: moving objects made of Gaussians, as a ComfyUI node pack, a library and a command line.

Imports nothing heavy and works without a host: the nodes load only when ComfyUI asks for them.
"""

import os
import sys
from typing import Any

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"

# OpenMP threads that wait by spinning keep the cores from the threads they wait for: on a busy machine a fit then takes ten
# times as long. OpenMP reads this when PyTorch loads it, so in a host, where PyTorch is there already, nothing changes.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


async def comfy_entrypoint() -> Any:
    """ComfyUI's V3 entry point."""
    from .nodes import Anchor4DExtension

    return Anchor4DExtension()
