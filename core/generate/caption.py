"""Texts of pictures and films, by any captioner of transformers: BLIP, GIT, or a model that chats about pictures."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..files import InputError
from ..io.film import to_uint8
from ..packages import problems
from ..priors.checkpoints import precision_dtypes, quiet, readable
from ..priors.models import model_named
from .pipelines import located

#: What a model that chats is asked, and how many frames of the film it sees; one that only captions sees the first.
ASK = (
    "These are pictures of one moving object, in order. Say in one short sentence what the object is, how it looks and what it "
    "does. Do not mention pictures, frames or the background."
)
FRAMES = 4
#: The longest text, in the model's own tokens.
TOKENS = 64


class Captioner:
    """A captioner of transformers, from a folder.

    One whose processor has a chat template is asked a question about some frames; any other captions the first frame. Words
    are chosen greedily: the same picture has the same text.

    Args:
        source: a folder, or the name or Hub id of a model that is on this machine.
        device: where it runs.
        ask: the question to one that chats.

    Raises:
        InputError: where it is not here, transformers is not, or the folder is no captioner.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu", ask: str = ASK) -> None:
        if lacking := problems("transformers"):
            raise InputError(f"captioner {source}: {lacking}")
        from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        checkpoint = located(source)
        folder, self.ask, self.device = checkpoint.folder, ask, torch.device(device)
        self.name = checkpoint.name if Path(source).exists() else source
        known = model_named(source)
        self.licence = "" if known is None else known.licence
        local = {"local_files_only": True, "trust_remote_code": False}
        with quiet(), readable(folder, "a captioner of transformers"):
            config = AutoConfig.from_pretrained(folder, **local)
        kinds: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if type(config) not in kinds:
            raise InputError(f"{folder}: a {config.model_type}, which says no texts of pictures; choose a captioner")
        # The class itself: transformers' automatic one would offer to run code that lies in the folder.
        self.checkpoint, self.kind = checkpoint, kinds[type(config)]
        checkpoint.weights(".")
        with quiet(), readable(folder, "a processor of transformers"):
            self.processor: Any = AutoProcessor.from_pretrained(folder, **local)
            # Older captioners have their parts side by side, without a processor that holds both.
            self.pictures: Any = getattr(self.processor, "image_processor", None) or AutoImageProcessor.from_pretrained(
                folder, **local
            )
            self.tokenizer: Any = getattr(self.processor, "tokenizer", None) or AutoTokenizer.from_pretrained(folder, **local)
        self.chats = bool(getattr(self.processor, "chat_template", None))
        self.identity = f"{self.name} {checkpoint.identity}" + (f" {ask}" if self.chats else "")

    @cached_property
    def model(self) -> Any:
        """The network, loaded when the first text is asked for: until then the device is for others."""
        return self.checkpoint.load(self.kind, ".", dtype=precision_dtypes("auto", self.device)[0], device=self.device)

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> str:  # (T, H, W, 3) in [0, 1] or uint8
        """The text of a film, or of a single picture.

        Raises:
            InputError: where the model says nothing.
        """
        count = min(len(frames), FRAMES if self.chats else 1)
        chosen = [round(i * (len(frames) - 1) / max(1, count - 1)) for i in range(count)]
        pictures = [Image.fromarray(to_uint8(frames[index])) for index in chosen]
        if self.chats:
            content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": self.ask}]
            given = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
        else:
            given = self.pictures(images=pictures[0], return_tensors="pt")
        given = {name: self._sent(value) for name, value in given.items()}
        said = self.model.generate(**given, max_new_tokens=TOKENS, do_sample=False)[0]
        if self.chats:
            said = said[given["input_ids"].shape[1] :]
        text = " ".join(self.tokenizer.decode(said, skip_special_tokens=True).split())
        if not text:
            raise InputError(f"captioner {self.name}: says nothing of the picture; give a caption, or choose another model")
        return text

    def _sent(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.model.dtype) if value.is_floating_point() else value.to(self.device)
