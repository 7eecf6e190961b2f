"""How a frozen network lies in a card's memory: channels last, as its convolutions compute, with group norms that keep to it.

PyTorch hands cuDNN rows of channels, which it turns around before each convolution and back behind it. Channels-last weights
make convolutions return channels-last activations; what stands between them keeps the layout, but for the group norms (see
:mod:`.norms`) and the end of diffusers' transformer blocks. Layers are exchanged in place by subclasses without state of their
own: parameters and their names stay, and on the CPU each layer computes what it did, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from .norms import available, channels_last, fitting, group_norm, group_norm_beside, residual_sum

#: The oldest cards whose matrix units take channels-last convolutions.
CAPABILITY = (7, 0)
#: Samples from which diffusers copies activations to rows of channels before it upsamples them.
MANY = 64


def arrange(module: nn.Module) -> None:
    """Lay a network out as its device prefers: channels last on a card, rows of channels elsewhere.

    Channels last: networks in 16 bits with group norms, two-dimensional convolutions only, frozen, on NVIDIA cards with matrix
    units and the run-time compiler. (On AMD's, PyTorch's convolutions return rows of channels by default.) Others stay as they
    are, and come back to rows of channels where they were channels last.
    """
    parts = list(module.modules())
    flat = any(isinstance(part, nn.GroupNorm) for part in parts) and not any(isinstance(part, nn.Conv3d) for part in parts)
    parameters = list(module.parameters())
    frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
    if flat and frozen and _prefers_channels_last(parameters[0]):
        exchange_layers(module)
    elif any(isinstance(part, Norm) for part in parts):
        module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def _prefers_channels_last(parameter: Tensor) -> bool:
    device = parameter.device
    if device.type != "cuda" or torch.version.hip is not None or parameter.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(device) >= CAPABILITY and available(device, parameter.dtype)


def exchange_layers(module: nn.Module) -> None:
    """A network's weights channels last, and its layers exchanged for those that keep to it. Any device."""
    for part in module.modules():
        kind: Any = type(part)
        if kind is nn.GroupNorm:
            part.__class__ = Norm
        elif kind is ResnetBlock2D and _is_plain(part):
            part.__class__ = Residual
        elif kind is Transformer2DModel:
            part.__class__ = Transformer
        elif kind is Upsample2D and _doubles(part):
            part.__class__ = Upsample
        elif kind is nn.Sequential and any(type(layer) is nn.GroupNorm for layer in part.children()):
            part.__class__ = Layers
    for part in module.modules():
        # The output layers of diffusers' UNets and autoencoders.
        norm, activation = getattr(part, "conv_norm_out", None), getattr(part, "conv_act", None)
        if type(norm) is Norm and type(activation) is nn.SiLU:
            norm.__class__, part.conv_act = NormSiLU, nn.Identity()
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _is_plain(block: Any) -> bool:
    """Whether a residual block is what :class:`Residual` computes."""
    convolutions = [block.conv1, block.conv2] + ([] if block.conv_shortcut is None else [block.conv_shortcut])
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and isinstance(block.nonlinearity, nn.SiLU)
        and all(type(conv) is nn.Conv2d and conv.bias is not None for conv in convolutions)
    )


def _doubles(layer: Any) -> bool:
    """Whether an upsampling layer is what :class:`Upsample` computes."""
    return type(getattr(layer, "conv", None)) is nn.Conv2d and layer.interpolate and layer.norm is None


class Norm(nn.GroupNorm):
    """A group norm by the kernels where they fit."""

    silu = False

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self, silu=self.silu)


class NormSiLU(Norm):
    """With SiLU behind it."""

    silu = True


class Layers(nn.Sequential):
    """Layers in their order, a group norm and SiLU behind it in one."""

    def forward(self, input: Tensor) -> Tensor:
        layers, taken = list(self), False
        for layer, following in zip(layers, [*layers[1:], None]):
            joined = type(layer) is Norm and type(following) is nn.SiLU
            if isinstance(layer, Norm):
                input = group_norm(input, layer, silu=joined)
            elif not taken:
                input = layer(input)
            taken = joined
        return input


class Residual(ResnetBlock2D):
    """A residual block in which norms take SiLU, the first convolution's bias and the time with them.

    The other biases are added with the input: activations are read and written half as often.
    """

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        timed = self.time_emb_proj
        if self.training or (timed is None) != (temb is None) or not fitting(input_tensor, self.norm1):
            return super().forward(input_tensor, temb, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        bias: Any = self.conv1.bias
        shift = bias[None]
        if timed is not None:
            shift = shift + timed(temb if self.skip_time_act else self.nonlinearity(temb))
        hidden, x = group_norm_beside(input_tensor, self.norm1, silu=True)
        hidden = group_norm(_without_bias(self.conv1, hidden), self.norm2, silu=True, shift=shift)
        bias = self.conv2.bias
        if self.conv_shortcut is not None:
            x = _without_bias(self.conv_shortcut, x)
            bias = bias + self.conv_shortcut.bias
        return residual_sum(x, _without_bias(self.conv2, hidden), bias, 1 / self.output_scale_factor)


def _without_bias(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(
        x, convolution.weight, None, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    )


class Upsample(Upsample2D):
    """Twice the cells and a convolution, in large batches too, of which diffusers makes rows of channels."""

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        if len(hidden_states) < MANY or output_size is not None or not channels_last(hidden_states):
            return super().forward(hidden_states, output_size, *args, **kwargs)
        count, _, height, width = hidden_states.shape
        rows = hidden_states.permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
        convolution: Any = self.conv
        return convolution(rows.reshape(count, 2 * height, 2 * width, -1).permute(0, 3, 1, 2))


class Transformer(Transformer2DModel):
    """A transformer block over cells whose tokens are the activations as they lie, and come back as such."""

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        if not fitting(hidden_states, self.norm):
            return super()._operate_on_continuous_inputs(hidden_states)
        tokens = _projected(self.proj_in, self.norm(hidden_states).permute(0, 2, 3, 1).flatten(1, 2))
        return tokens, tokens.shape[-1]

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if not fitting(residual, self.norm):
            return super()._get_output_for_continuous_inputs(hidden_states, residual, batch_size, height, width, inner_dim)
        tokens = _projected(self.proj_out, hidden_states)
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2) + residual


def _projected(layer: Any, tokens: Tensor) -> Tensor:  # (N, cells, c)
    """A linear layer, or a convolution over single cells, of tokens."""
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)
