"""The graphics card's Adam takes the plain one's steps; it runs on the CPU as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anchor4d.core.fit.device_adam import DeviceAdam
from anchor4d.core.optimiser import Adam, Group


def groups(smooth_time: bool, device: str, dtype: torch.dtype = torch.float32) -> list[Group]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    space, time = drawn(7, 7), drawn(5, 5)

    def smooth(x: Tensor) -> Tensor:  # (rows, 7, ...)
        y = torch.einsum("mn,tn...->tm...", space + space.T, x)
        return torch.einsum("st,tm...->sm...", time + time.T, y) if smooth_time else y

    made = [
        Group("translations", drawn(5, 7, 3), 1e-2, smooth), Group("rotations", drawn(5, 7, 3), 2e-2, smooth),
        Group("opacity", drawn(5, 7), 5e-2, smooth), Group("rest", drawn(5, 2), 1e-3, None, 0.1, 0.5),
        Group("bias", drawn(5), 1e-3),
    ]  # fmt: skip
    for group in made:
        group.parameter.requires_grad_()
    return made


@pytest.mark.parametrize("tracked", [False, True])
def test_its_steps_are_the_plain_ones(device: str, tracked: bool) -> None:
    plain, ours = Adam(groups(not tracked, device)), DeviceAdam(groups(not tracked, device))
    # In double precision: what both are rounded from. A card's products round elsewhere than a CPU's.
    exact = Adam(groups(not tracked, device, torch.float64))
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        for a, b, c in zip(plain.groups, ours.groups, exact.groups, strict=True):
            a.parameter.grad = torch.randn(a.parameter.shape, generator=generator).to(device)
            b.parameter.grad = a.parameter.grad.clone()
            c.parameter.grad = a.parameter.grad.double()
        rows = torch.tensor([step // 2]) if tracked else None
        if step == 4:  # as from a checkpoint
            state = {name: tensor.clone() for name, tensor in ours.state().items()}
            ours = DeviceAdam(ours.groups)
            ours.load(state)
        for adam in (plain, ours, exact):
            adam.step(0.7, rows, step / 6)
    for a, b, c in zip(plain.groups, ours.groups, exact.groups, strict=True):
        pairs = (a.parameter, b.parameter, c.parameter), *((x.first[a.name] for x in (plain, ours, exact)),)
        for usual, fast, true in pairs:
            largest = max(true.abs().max().item(), 1.0)
            assert (usual - true).abs().max().item() <= 2e-6 * largest, a.name
            assert (fast - true).abs().max().item() <= 2e-6 * largest, a.name
        assert b.parameter.grad is None
