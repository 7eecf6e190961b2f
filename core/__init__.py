"""The library: tensors and dataclasses in, tensors and dataclasses out. Knows nothing of ComfyUI."""

from .former import install

install()
