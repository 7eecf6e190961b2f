"""A prior on another device than the fit: what moves between them, and that the result is the same.

PyTorch's lazy device stands in for the second card: it computes on the CPU, and refuses tensors of another device.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from test_fit_devices import FRAMES, FRONT, SIZE, ball, moving_video
from torch import Tensor, nn

from anchor4d.core.deformation import ControlNodes
from anchor4d.core.files import InputError
from anchor4d.core.fit.loop import FitState, Inputs, Schedule, run_fit
from anchor4d.core.objectives.base import Objective
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.multiview import AboutFrame, AboutStatic, MultiViewDistillation
from anchor4d.core.objectives.novel_view import NovelView
from anchor4d.core.objectives.reference import ReferenceRefinement
from anchor4d.core.priors.base import Condition, NoiseSchedule, Prior, Viewpoints
from anchor4d.core.priors.distill import Distillation, Question
from anchor4d.core.priors.load import load_prior
from anchor4d.core.runs.session import Settings, prior_device, resolve_device
from anchor4d.core.scene.scene import Scene4D, frame_times
from anchor4d.core.schedules import constant

TWO_CARDS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two graphics cards")


@pytest.fixture(scope="module")
def second() -> torch.device:
    backend = pytest.importorskip("torch._lazy.ts_backend")
    try:
        backend.init()
        torch.ones(1, device="lazy")
    except RuntimeError as error:
        pytest.skip(f"this PyTorch has no lazy device: {error}")
    return torch.device("lazy")


class Judge(Prior):
    """Linear networks of pictures, conditions and views: PyTorch's lazy device knows their operations."""

    conditions = frozenset({"image", "cameras"})
    one_pass = False  # what the lazy device splits is no longer on it

    def __init__(self) -> None:
        self.name, self.schedule, self.resolution = "judge", NoiseSchedule.scaled_linear(), (16, 16)
        torch.manual_seed(0)
        self.modules = {"net": nn.Conv2d(8, 4, 1).requires_grad_(False), "vae": nn.Conv2d(3, 4, 2, 2).requires_grad_(False)}

    def latent_shape(self) -> tuple[int, int, int, int]:
        return 1, 4, 8, 8

    def encode(self, images: Tensor) -> Tensor:
        pixels = images.flatten(0, 1).movedim(-1, 1).to(self.device)
        return self.modules["vae"](pixels).unflatten(0, images.shape[:2])

    def condition(
        self,
        image: Tensor | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        fps: float | None = None,
    ) -> Condition:
        assert image is not None
        mean = image.to(self.device).mean((1, 2))  # (B, 3)
        return Condition({"mean": mean}, {"mean": mean * 0})

    def _denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor], views: Viewpoints | None) -> Tensor:
        assert views is not None
        told = torch.cat([inputs["mean"], views.azimuth / 360], 1)[..., None, None].expand(-1, 4, 8, 8)
        return self.modules["net"](torch.cat([latents[:, 0], told], 1))[:, None]


def asking(prior: Prior) -> dict[str, Objective]:
    asked = Distillation(prior, encode_batch=2)
    return {
        "multi-view": MultiViewDistillation(asked, views=1, asks=(AboutFrame(), AboutStatic())),
        "novel view": NovelView(asked, constant(0.5), views=2),
        "reference": ReferenceRefinement(asked, constant(0.5), views=2),
    }


def fitted(objectives: list[Objective], device: str, steps: int, backend: str = "torch") -> FitState:
    video, gaussians = moving_video(device), ball().to(device)
    field = ControlNodes.build(Scene4D(gaussians, frames=FRAMES), nodes=8)
    inputs = Inputs(video, frame_times(FRAMES), [FRONT], backend=backend)
    schedule = Schedule(steps, ((1.0, SIZE),), frames=2)
    return run_fit("test", FitState(gaussians, field), objectives, schedule, inputs, train="both", seed=1)


def devices(state: FitState) -> set[str]:
    assert state.field is not None
    tensors = [*state.gaussians.tensors().values(), *state.field.state_dict().values()]
    tensors += [tensor for kept in state.memory.values() for tensor in kept.values()]
    return {tensor.device.type for tensor in tensors}


@pytest.mark.parametrize("name", ["multi-view", "novel view", "reference"])
def test_a_prior_elsewhere_gives_the_same_fit(second: torch.device, name: str) -> None:
    front = ReferenceViewLoss(constant(1.0), perceptual=0.0)
    here = fitted([front, asking(Judge())[name]], "cpu", 3)
    prior = Judge().to(second)
    there = fitted([front, asking(prior)[name]], "cpu", 3)
    assert devices(there) == {"cpu"} and prior.device.type == "lazy"
    for attribute, value in here.gaussians.tensors().items():
        torch.testing.assert_close(there.gaussians.tensors()[attribute], value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.tensor(there.losses[name]), torch.tensor(here.losses[name]), rtol=1e-3, atol=1e-4)


def test_devices_by_name_and_number(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    free = {0: 70_000_000_000, 1: 72_000_000_000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (free[card], 80_000_000_000))
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(InputError, match=r"'cuda:2': no such card here; choose one of auto, cpu, cuda:0, cuda:1"):
        resolve_device("cuda:2")
    with pytest.raises(InputError, match="'cuda:7'"):
        Settings(device="cpu", prior_device="cuda:7").resolved(models=False)
    with caplog.at_level(logging.INFO, "anchor4d"):
        assert prior_device("cuda", what="prior zero123-xl") == "cuda:1"  # the fit's own is not the first choice
    assert caplog.messages == ["prior zero123-xl: on card cuda:1, 72.0 GB free; the fit is on cuda"]
    assert prior_device("cuda:1") == "cuda:0"  # as much, and nobody there
    assert prior_device("cpu") == "cuda:1"
    assert prior_device("cuda:1", small=True) == "cuda:1"
    assert prior_device("cuda", "cuda:0") == "cuda:0"
    free[0] = 20_000_000_000
    assert prior_device("cuda:1") == "cuda:1"  # the other has too little
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert prior_device("cuda") == prior_device("cpu") == "cuda"


@pytest.mark.gpu
@TWO_CARDS
@pytest.mark.parametrize("name", ["multi-view", "novel view", "reference"])
@pytest.mark.parametrize(("device", "other"), [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")])
def test_two_cards_give_the_fit_of_one(name: str, device: str, other: str) -> None:
    front = ReferenceViewLoss(constant(1.0), perceptual=0.0)
    one = fitted([front, asking(load_prior("tiny", device=device))[name]], device, 12, "auto")
    two = fitted([front, asking(load_prior("tiny", device=other))[name]], device, 12, "auto")
    again = fitted([front, asking(load_prior("tiny", device=other))[name]], device, 12, "auto")
    for attribute, value in two.gaussians.tensors().items():
        assert str(value.device) == device
        assert torch.equal(value, again.gaussians.tensors()[attribute])
        torch.testing.assert_close(value, one.gaussians.tensors()[attribute], rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@TWO_CARDS
def test_a_fit_leaves_the_priors_card_to_the_prior() -> None:
    prior = load_prior("tiny", device="cuda:1")
    images = torch.rand(16, 1, 64, 64, 3, device="cuda:0", requires_grad=True)
    cards = ("cuda:0", "cuda:1")
    for card in cards:
        torch.cuda.reset_peak_memory_stats(card)
    before = [torch.cuda.memory_allocated(card) for card in cards]
    asked = Distillation(prior)
    camera = FRONT.centred(prior.resolution[0]).to("cuda:0")
    views = Viewpoints.of(camera, camera).map(lambda v: v.expand(16, 1))
    condition = asked.condition(images.detach()[:, 0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # kernels are chosen and passes captured
        asked(images, condition, 0.5, generator, views).backward()
    torch.cuda.synchronize("cuda:0")
    torch.cuda.synchronize("cuda:1")
    drawn = {k: v.to("cuda:0") for k, v in asked.draws(0.5, 16, generator).items()}
    views = views.map(lambda v: v.to("cuda:1"))
    torch.cuda.set_sync_debug_mode("error")  # a host that waits raises
    try:
        asked.judged(images, [Question(condition, views)], drawn).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert images.grad is not None and str(images.grad.device) == "cuda:0" and float(images.grad.abs().max()) > 0
    grown = [torch.cuda.max_memory_allocated(card) - held for card, held in zip(cards, before)]
    assert grown[0] < grown[1] / 2  # pictures and a library's workspace; the networks' activations are on the other
