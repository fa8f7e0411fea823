"""Modulated deformable convolution: *Deformable ConvNets v2* (Zhu et al. 2019), section 3.2."""

import torch
from torch import Tensor, nn

DEFORM_CONV_OPSET = 19
"""First opset with the ONNX operator ``DeformConv``."""


def deform_conv2d(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve ``x`` with sampling points shifted by ``offsets`` and weighted by ``mask``.

    Stride 1, and padding that keeps the size. ``x`` is float (N, C, H, W), ``weight`` (O, C, k, k)
    with k odd, ``bias`` (O,). ``offsets`` (N, groups * k*k * 2, H, W) holds, per group of
    channels and per tap in row-major order, the shift down and then right, in cells; ``mask``
    (N, groups * k*k, H, W) the factor of each tap. Values between cells are interpolated
    bilinearly; outside of the map they are 0. Returns (N, O, H, W).

    This implementation runs in PyTorch; an exported file has one ``DeformConv`` operator instead.
    """
    if torch.onnx.is_in_onnx_export():
        return _onnx_deform_conv(x, offsets, mask, weight, bias)
    batch, channels, height, width = x.shape
    taps = weight.shape[2] * weight.shape[3]
    groups = mask.shape[1] // taps
    rows, columns = _sampling_points(offsets, weight.shape[2], groups)
    x = x.reshape(batch, groups, channels // groups, height * width)
    samples = _bilinear(x, rows, columns, height, width)  # (N, groups, C/groups, taps, H*W)
    samples = samples * mask.reshape(batch, groups, 1, taps, height * width)
    samples = samples.reshape(batch, channels * taps, height * width)
    output = weight.flatten(1) @ samples + bias[:, None]
    return output.reshape(batch, -1, height, width)


def _sampling_points(offsets: Tensor, kernel: int, groups: int) -> tuple[Tensor, Tensor]:
    """Return row and column of every tap at every output cell: two (N, groups, taps, H*W)."""
    batch, _, height, width = offsets.shape
    taps = kernel * kernel
    reach = torch.arange(kernel, dtype=offsets.dtype, device=offsets.device) - kernel // 2
    rows = torch.arange(height, dtype=offsets.dtype, device=offsets.device)
    columns = torch.arange(width, dtype=offsets.dtype, device=offsets.device)
    offsets = offsets.reshape(batch, groups, taps, 2, height, width)
    tap_rows = reach.repeat_interleave(kernel)[:, None, None] + rows[:, None]
    tap_columns = reach.repeat(kernel)[:, None, None] + columns
    return (
        (offsets[:, :, :, 0] + tap_rows).flatten(3),
        (offsets[:, :, :, 1] + tap_columns).flatten(3),
    )


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Sample ``x`` (N, G, C, H*W) bilinearly at (N, G, taps, P): (N, G, C, taps, P)."""
    batch, groups, channels, _ = x.shape
    samples = x.new_zeros(batch, groups, channels, rows.shape[2] * rows.shape[3])
    top, left = rows.floor(), columns.floor()
    for row in (top, top + 1):
        for column in (left, left + 1):
            factor = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            factor = torch.where(inside, factor, 0.0).flatten(2)
            cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = cell.long().flatten(2).unsqueeze(2).expand(-1, -1, channels, -1)
            samples = samples + x.gather(3, index) * factor.unsqueeze(2)
    return samples.reshape(batch, groups, channels, *rows.shape[2:])


def _onnx_deform_conv(
    x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    batch, _, height, width = x.shape
    out_channels, _, *kernel = weight.shape
    return torch.onnx.ops.symbolic(
        "DeformConv",
        (x, weight, offsets, bias, mask),
        {
            "kernel_shape": kernel,
            "pads": [kernel[0] // 2, kernel[1] // 2] * 2,
            "offset_group": mask.shape[1] // (kernel[0] * kernel[1]),
        },
        dtype=x.dtype,
        shape=(batch, out_channels, height, width),
        version=DEFORM_CONV_OPSET,
    )


class DeformableConvolution(nn.Module):
    """3x3 deformable convolution that predicts offsets and mask of its taps from its input.

    float (N, in_channels, H, W) to (N, out_channels, H, W). It samples in the type of ``weight``,
    which stays float32 in fp16 networks: fp16 cannot resolve sampling points between the cells of
    a wide map. Without ``bias`` the network has no such parameter.
    """

    bias: Tensor
    _TAPS = 9

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        zeros = torch.zeros(out_channels)
        if bias:
            self.bias = nn.Parameter(zeros)
        else:
            self.register_buffer("bias", zeros, persistent=False)
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.offsets_and_mask = nn.Conv2d(in_channels, 3 * self._TAPS, 3, padding=1)
        # Training starts as an ordinary convolution with a factor of 0.5, as in the paper.
        nn.init.zeros_(self.offsets_and_mask.weight)
        assert self.offsets_and_mask.bias is not None
        nn.init.zeros_(self.offsets_and_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.weight.dtype
        predicted = self.offsets_and_mask(x).to(dtype)
        offsets, mask = predicted.split((2 * self._TAPS, self._TAPS), dim=1)
        mask = torch.sigmoid(mask)
        return deform_conv2d(x.to(dtype), offsets, mask, self.weight, self.bias).to(x.dtype)
