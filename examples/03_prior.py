"""A plug-in kind of prior: its checkpoint is a folder with colour.json, and it finds every picture of one colour likely."""

import json

from torch import Tensor, nn, tensor, zeros

from anchor4d.core.priors.base import PRIORS, Condition, NoiseSchedule, Prior


@PRIORS.register("one-colour")
class OneColour(Prior):
    """The exact score of pictures of one colour; pictures are their own latents, ``2 x - 1``."""

    conditions, resolution, guidance = frozenset({"image"}), (16, 16), 1.0

    def __init__(self, colour: list[float]) -> None:
        self.name, self.schedule, self.modules = "one-colour", NoiseSchedule.scaled_linear(), {"none": nn.Linear(1, 1)}
        self.colour = tensor(colour).reshape(3, 1, 1) * 2 - 1

    @classmethod
    def matches(cls, checkpoint) -> bool:
        return (checkpoint.folder / "colour.json").is_file()

    @classmethod
    def load(cls, checkpoint, device, precision) -> Prior:
        return cls(json.loads((checkpoint.folder / "colour.json").read_text())).to(device)

    def encode(self, images: Tensor) -> Tensor:  # (B, V, H, W, 3) -> (B, V, 3, H, W)
        return images.movedim(-1, 2) * 2 - 1

    def latent_shape(self):
        return 1, 3, *self.resolution

    def condition(self, image=None, **others) -> Condition:
        return Condition({"none": zeros(1)})

    def _denoise(self, latents, time, inputs, views) -> Tensor:
        alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in self.schedule.coefficients(time / self.schedule.steps))
        return (latents - alpha * self.colour) / sigma
