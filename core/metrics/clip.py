"""CLIP's similarities: of pictures with true ones, with a picture, with a text; of neighbouring frames and views.

Cosines of unit embeddings, ViT-B/32 as Consistent4D's evaluation has it. Pictures are padded to squares on white, so that
nothing of the object is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import InputError
from ..packages import problems
from ..priors.checkpoints import Checkpoint
from ..priors.pictures import clip_pixels, squared
from .base import ALL, Footage, metric
from .weights import located

MODEL = "clip-vit-b32"
#: Pictures that the network sees at once.
BATCH = 32


@dataclass(frozen=True)
class Clip:
    """A CLIP of transformers: its two towers and its tokenizer."""

    model: Any
    tokenizer: Any
    device: str = "cpu"

    def images(self, pictures: np.ndarray) -> np.ndarray:  # (N, H, W, 3 or 4) on white -> (N, D) of unit length
        """Embeddings of pictures."""
        size, found = self.model.config.vision_config.image_size, []
        for start in range(0, len(pictures), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(pictures[start : start + BATCH, ..., :3])).float()
            pixels = clip_pixels(squared(batch, size, (1.0, 1.0, 1.0)), size, {}).to(self.device)
            with torch.no_grad():
                found.append(_unit(self.model.visual_projection(self.model.vision_model(pixels).pooler_output)))
        return np.concatenate(found)

    def text(self, text: str) -> np.ndarray:  # (D,) of unit length
        """The embedding of a text; what is beyond the model's longest is left out."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([text], truncation=True, max_length=longest, return_tensors="pt").to(self.device)
        with torch.no_grad():
            pooled = self.model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
            return _unit(self.model.text_projection(pooled))[0]


def load_clip(name: str, device: str) -> Clip:
    """The CLIP of a model's name.

    Raises:
        InputError: where it is not on this machine, or transformers is not.
    """
    if lacking := problems("transformers"):
        raise InputError(f"CLIP: {lacking}")
    from transformers import CLIPModel

    checkpoint = Checkpoint(located(name))
    return Clip(checkpoint.load(CLIPModel, ".", device=device), checkpoint.tokenizer("."), device)


def _unit(embeddings: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings.double(), dim=-1).cpu().numpy()


@metric("clip", text="cosine of each frame with the true one", better="higher", needs=["truth"], models=(MODEL,), ideal=1.0)
def _with_truth(footage: Footage) -> dict[str, float]:
    clip = footage.network(MODEL, load_clip)
    return {name: float((clip.images(images) * clip.images(truth)).sum(-1).mean()) for name, images, truth in footage.pairs()}


@metric(
    "clip-image", text="cosine of each frame with a picture of the object", better="higher", needs=["image"], models=(MODEL,)
)
def _with_image(footage: Footage) -> dict[str, float]:
    clip = footage.network(MODEL, load_clip)
    assert footage.image is not None
    wanted = clip.images(footage.image[None])[0]
    return {name: float((clip.images(images) @ wanted).mean()) for name, images in footage.views.items()}


@metric(
    "clip-text", text="cosine of each frame with the text (CLIP-S, CLIP-T)", better="higher", needs=["text"], models=(MODEL,)
)
def _with_text(footage: Footage) -> dict[str, float]:
    clip = footage.network(MODEL, load_clip)
    wanted = clip.text(footage.text)
    return {name: float((clip.images(images) @ wanted).mean()) for name, images in footage.views.items()}


@metric("clip-f", text="cosine of neighbouring frames: consistency over time", better="higher", models=(MODEL,), frames=2)
def _over_time(footage: Footage) -> dict[str, float]:
    clip = footage.network(MODEL, load_clip)
    found = {}
    for name, images in footage.views.items():
        seen = clip.images(images)
        found[name] = float((seen[1:] * seen[:-1]).sum(-1).mean())
    return found


@metric(
    "clip-views",
    text="cosine of neighbouring views at the same moment: consistency over views",
    better="higher",
    needs=["views"],
    models=(MODEL,),
)
def _over_views(footage: Footage) -> dict[str, float]:
    clip = footage.network(MODEL, load_clip)
    seen = [clip.images(footage.views[name]) for name in around(footage)]
    pairs = zip(seen, [*seen[1:], *(seen[:1] if len(seen) > 2 else [])])
    return {ALL: float(np.mean([(a * b).sum(-1).mean() for a, b in pairs]))}


def around(footage: Footage) -> list[str]:
    """The views' names in order of their azimuths, or as they come where a name is no number."""
    try:
        return sorted(footage.views, key=lambda name: float(name) % 360)
    except ValueError:
        return list(footage.views)
