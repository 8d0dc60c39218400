"""LKCA: one learned kernel as large as the map stands in for the attention matrix.

LKCA: Large Kernel Convolutional Attention (arXiv 2401.05738, section 3). Authors' code:
github.com/CatworldLee/LKCA-MiniViTsTrainer-Pytorch-CIFAR-TinyImageNet (no licence file; this follows the paper and
recorded results).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer

#: up to so many positions the kernel is written out as a matrix, beyond it is applied by Fourier transforms
MATRIX_POSITIONS = 1024


@register_mixer(name="lkca")
class LargeKernelAttention(Mixer):
    """Values are weighed by a kernel over all offsets, the same for every channel and head; there is no softmax.

    The paper's two views, a convolution and an attention whose matrix depends on offsets only, are the same function.

    Args:
        dim: channels C.
        num_heads: of no effect (all heads share the kernel); must divide ``dim``.
        input_size: map (H, W) that the kernel covers, ``[2H-1, 2W-1]``. On other maps it keeps its scale: what lies
            further than it reaches is not seen.
        value_dim: channels of the values; ``dim`` by default.
        proj: whether a linear layer follows.
        init_std: spread of the kernel's initial values; the authors start at 0, where positions ignore each other.

    Raises:
        ValueError: ``proj=False`` with other than ``dim`` channels of values.
    """

    growth = "n log n"
    normalised_rows = False

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        input_size: int | tuple[int, int] = (14, 14),
        value_dim: int | None = None,
        proj: bool = True,
        init_std: float = 0.0,
    ):
        super().__init__(dim, num_heads)
        height, width = to_pair(input_size, "input_size")
        value_dim = value_dim or dim
        if not proj and value_dim != dim:
            raise ValueError(f"value_dim={value_dim}: accepted is dim={dim} where proj=False")
        self.v = TokenLinear(dim, value_dim, bias=False)
        self.kernel = nn.Parameter(torch.zeros(2 * height - 1, 2 * width - 1))
        self.no_decay = ("kernel",)
        self.proj = TokenLinear(value_dim, dim) if proj else nn.Identity()
        if init_std > 0:
            nn.init.trunc_normal_(self.kernel, std=init_std)

    def kernel_for(self, height: int, width: int) -> Tensor:
        """``[2H-1, 2W-1]``: entry (dy + H-1, dx + W-1) weighs what lies at offset (dy, dx); zero beyond the table."""
        (kh, kw), kernel = self.kernel.shape, self.kernel
        dy, dx = height - (kh + 1) // 2, width - (kw + 1) // 2  # rows and columns to add on each side, or to take off
        return F.pad(kernel, (dx, dx, dy, dy)) if dy or dx else kernel

    def matrix(self, height: int, width: int) -> Tensor:
        """The attention ``[H*W, H*W]`` of a map of this size."""
        rows, columns = (torch.arange(n, device=self.kernel.device) for n in (height, width))
        dy, dx = rows - rows[:, None] + height - 1, columns - columns[:, None] + width - 1  # [query, key]
        matrix = self.kernel_for(height, width)[dy[:, None, :, None], dx[None, :, None, :]]  # [H, W, H, W]
        return matrix.reshape(height * width, height * width)

    def _convolve(self, v: Tensor) -> Tensor:
        """The same by Fourier transforms, ``[B, H, W, D]``: a correlation in a plane where offsets do not wrap."""
        H, W = v.shape[1:3]
        wide = torch.promote_types(v.dtype, torch.float32)
        kernel = torch.roll(self.kernel_for(H, W).to(wide), (1 - H, 1 - W), (0, 1))  # offset 0 at (0, 0)
        plane = kernel.shape
        spectrum = torch.fft.rfft2(kernel).conj()[..., None]
        out = torch.fft.irfft2(torch.fft.rfft2(v.to(wide), s=plane, dim=(1, 2)) * spectrum, s=plane, dim=(1, 2))
        return out[:, :H, :W].to(v.dtype)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        H, W = x.shape[1:3]
        v = self.v(x)
        if H * W > MATRIX_POSITIONS:
            return self.proj(self._convolve(v))
        out = self.matrix(H, W) @ v.flatten(1, 2)  # [N, N] @ [B, N, D]
        return self.proj(out.unflatten(1, (H, W)))

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, 1, H*W, H*W]``, the same for every image; neither positive nor normalised."""
        self._check(x)
        return self.matrix(x.shape[1], x.shape[2]).expand(x.shape[0], 1, -1, -1)

    def flops(self, height: int, width: int) -> int:
        N, D = height * width, self.v.out_features
        projections = linear_flops(N, self.v, self.proj)
        if N <= MATRIX_POSITIONS:
            return projections + N * N * D
        plane = (2 * height - 1) * (2 * width - 1)
        # Two transforms a channel and one of the kernel, at 2.5 P log2 P operations for a real plane of P numbers.
        return projections + (2 * D + 1) * 5 * plane * plane.bit_length() // 4 + 2 * plane * D

    def extra_repr(self) -> str:
        return f"dim={self.dim}, kernel={tuple(self.kernel.shape)}"
