"""Bilinear sampling in pixel units: where the neighbours of a sample lie, and how to read them fast.

The work is cut into blocks (some images, or some output positions of one; a block is one matrix product) and these into
tiles (some offset groups of a block), so that a tile's temporaries stay in the processor's cache.

Sizes in the shapes below: n images and P output positions of a block, g offset groups of a tile, K = k*k taps, C
channels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER = 2  # pixels around the map: positions are clamped to [-2, size], where all four neighbours exist
TILE_SAMPLES = 1 << 17  # 512 KiB for each float32 temporary
BLOCK_TILES = 4  # at most: a block's memory is written again and again, and cheap only while the cache holds it
BLOCK_POSITIONS = 512  # at least, for matrix products worth their overhead
ROW_CHANNELS = 8  # from which on rows are faster than planes

Gradients = tuple[Tensor, Tensor]  # a tile's offset's [n, g, K, 2, P] and mask's [n, g, K, P], to be set


class Placing(NamedTuple):
    """Where a kernel comes to lie."""

    stride: int
    padding: int
    wrap: bool  # whether the map's left and right borders meet, as a full panorama's do


class Corners(NamedTuple):
    """Where the samples of a tile lie, and how much each counts."""

    upper_left: Tensor  # [n, g, K, P], index of that neighbour in the flattened, bordered map
    fraction: Tensor  # [n, g, K, 2, P] of a pixel, below and right of it
    mask: Tensor  # [n, g, K, P]

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights [n, g, K, P] of the upper left, upper right, lower left and lower right neighbours, mask included."""
        fy, fx = self.fraction.unbind(3)
        lower = fy * self.mask
        upper = self.mask - lower
        upper_right, lower_right = upper * fx, lower * fx
        return upper.sub_(upper_right), upper_right, lower - lower_right, lower_right

    def backward(self, dots: list[Tensor], grad_offset: Tensor, grad_mask: Tensor) -> None:
        """Set the gradients.

        `dots` holds, for each neighbour, the dot product over channels of its values and the samples' gradient; it is
        overwritten.
        """
        fy, fx = self.fraction.unbind(3)
        dy, dx = grad_offset.unbind(3)
        upper, lower = torch.lerp(dots[0], dots[1], fx), torch.lerp(dots[2], dots[3], fx)
        dy.copy_(lower - upper)  # `out=` of a strided view would break compiled graphs
        dx.copy_(torch.lerp(dots[1].sub_(dots[0]), dots[3].sub_(dots[2]), fy))
        grad_offset.mul_(self.mask.unsqueeze(3))
        grad_mask.copy_(torch.lerp(upper, lower, fy))


class Sampler:
    """The sizes of one deformable convolution, and what follows from them.

    Samples are kept in the order in which they are read and written fastest: here as [n, g, C/G, K*P], a plane per
    channel, which is fast for few channels per offset group; subclasses lay them otherwise. `lay` brings one number per
    sample, [n, g, K, P], into that order, ready to be multiplied with samples; `unlay` brings it back.

    `tiled` says whether the work is cut, as a CPU's caches want it.
    """

    def __init__(self, input: Tensor, offset: Tensor, kernel: int, groups: int, placing: Placing, tiled: bool) -> None:
        self.batch, self.channels, self.height, self.width = input.shape
        self.out_height, self.out_width = offset.shape[2:]
        self.kernel, self.taps = kernel, kernel**2
        self.stride, self.padding, self.wrap = placing
        self.groups, self.depth = groups, self.channels // groups  # offset groups, channels of each
        self.tiled, self.count = tiled, self.out_height * self.out_width
        self.positions = self.batch * self.count  # output positions of a block, at most
        if tiled:
            samples = TILE_SAMPLES * min(groups, BLOCK_TILES)
            self.positions = max(BLOCK_POSITIONS, samples // (self.channels * self.taps))
        self.images = max(1, min(self.positions // self.count, self.batch))  # of a block, at most
        self.row = self.width + 2 * BORDER  # pixels in a row of the bordered map
        self.shifts = 0, 1, self.row, self.row + 1  # how far each neighbour lies behind the upper left one

    def blocks(self) -> Iterator[tuple[slice, list[slice]]]:
        """Slices of the batch, each with the slices of the flattened output positions that cover it."""
        parts = [slice(i, min(i + self.positions, self.count)) for i in range(0, self.count, self.positions)]
        return ((slice(i, i + self.images), parts) for i in range(0, self.batch, self.images))

    def grid(self, positions: slice, like: Tensor) -> Tensor:
        """Where the samples of some flattened output positions lie at zero offset: [K, 2, P], (y, x)."""
        kind = {"device": like.device, "dtype": like.dtype}
        tap = torch.arange(self.kernel, **kind) - self.padding
        flat = torch.arange(positions.start, positions.stop, device=like.device)
        grid = torch.stack([flat // self.out_width, flat % self.out_width]).to(like.dtype) * self.stride
        return torch.cartesian_prod(tap, tap).unsqueeze(2) + grid

    def corners(self, offset: Tensor, mask: Tensor, grid: Tensor) -> Corners:
        """Corners at `offset` [n, g, K, 2, P] from `grid` [K, 2, P]."""
        point = offset + grid
        point[:, :, :, 0].clamp_(-BORDER, self.height)
        if self.wrap:
            point[:, :, :, 1].remainder_(self.width)
        else:
            point[:, :, :, 1].clamp_(-BORDER, self.width)
        corner = point.floor()
        top, left = corner.int().unbind(3)
        index = torch.add(left, top, alpha=self.row).add_(BORDER * self.row + BORDER)
        # A NaN position gets an arbitrary index; its fraction, and so its sample, is NaN.
        index.clamp_(0, (self.height + BORDER) * self.row + self.width + BORDER)
        return Corners(index.long(), point.sub_(corner), mask)

    def new_maps(self, like: Tensor) -> Tensor:
        """Laid zeros for the bordered maps [n, C, H+4, W+4] of a block: made once, since fresh memory is slow."""
        return self.lay_map(like.new_zeros(self.images, self.channels, self.height + 2 * BORDER, self.row))

    def fill_maps(self, maps: Tensor, x: Tensor) -> Tensor:
        """Write `x` [n, C, H, W], its sides joined or not, into as many of the laid `maps` as it needs: these."""
        maps = maps[: len(maps) // self.images * len(x)]
        inner = self.unlay_map(maps)[:, :, BORDER:-BORDER]
        if self.wrap:
            inner.copy_(x[..., self._wrapped_columns(x.device)])
        else:
            inner[..., BORDER:-BORDER] = x
        return maps

    def unbordered(self, maps: Tensor) -> Tensor:
        """The gradient [n, C, H, W] of what `fill_maps` was given, from that of the laid maps."""
        x = self.unlay_map(maps)[:, :, BORDER:-BORDER]
        if self.wrap:
            zeros = x.new_zeros(*x.shape[:3], self.width)
            return zeros.index_add_(3, self._wrapped_columns(x.device), x)
        return x[..., BORDER:-BORDER]

    def _wrapped_columns(self, device: torch.device) -> Tensor:
        return torch.arange(-BORDER, self.width + BORDER, device=device) % self.width

    def sample_block(self, block: Tensor, source: Tensor, offset: Tensor, mask: Tensor, grid: Tensor) -> Tensor:
        """All samples for a `block` [n, O, P] of the result from the laid map; `offset` and `mask` are the block's."""
        samples = self.new_samples(block)
        for groups in self.tiles(block):
            corners = self.corners(offset[:, groups], mask[:, groups], grid)
            self.sample(corners, source[:, groups], samples[:, groups])
        return samples

    def sample(self, corners: Corners, source: Tensor, samples: Tensor) -> None:
        """Fill `samples` of a tile from the laid map."""
        index = self.lay_index(corners.upper_left)
        samples.zero_()
        for shift, weight in zip(self.shifts, corners.weights()):
            samples.addcmul_(self.gather(source, shift, index), self.lay(weight))

    def sample_backward(
        self, corners: Corners, source: Tensor, samples: Tensor, grad: Tensor, target: Tensor | None, to: Gradients
    ) -> None:
        """Fill `samples`, whose gradient is `grad`, again; add the map's gradient to `target`; set those of `to`."""
        index, dots = self.lay_index(corners.upper_left), []
        samples.zero_()
        for shift, weight in zip(self.shifts, corners.weights()):
            neighbour, weight = self.gather(source, shift, index), self.lay(weight)
            samples.addcmul_(neighbour, weight)
            dots.append(self.unlay(self.sum_channels(neighbour.mul_(grad)), corners.upper_left.shape))
            if target is not None:
                self.scatter_add(target, shift, index, torch.mul(grad, weight, out=neighbour))
        corners.backward(dots, *to)

    def tiles(self, block: Tensor) -> list[slice]:
        """Slices of the offset groups for a `block` [n, O, P] of the result."""
        if not self.tiled or self.groups == 1:  # rows, which are of one group, have no dimension for it
            return [slice(None)]
        step = max(1, TILE_SAMPLES // (len(block) * self.depth * self.taps * block.shape[2]))
        return [slice(i, i + step) for i in range(0, self.groups, step)]

    def new_samples(self, block: Tensor) -> Tensor:
        return block.new_empty(len(block), self.groups, self.depth, self.taps * block.shape[2])

    def lay_map(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.groups, self.depth, -1)  # [n, C, h, w] -> [n, G, C/G, h*w]

    def unlay_map(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.channels, -1, self.row)  # [n, G, C/G, h*w] -> [n, C, h, w]

    def lay(self, x: Tensor) -> Tensor:
        return x.flatten(2).unsqueeze(2)  # [n, g, K, P] -> [n, g, 1, K*P]

    def unlay(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x.reshape(shape)  # [n, g, 1, K*P] -> [n, g, K, P]

    def lay_index(self, index: Tensor) -> Tensor:
        return self.lay(index).expand(-1, -1, self.depth, -1)

    def gather(self, source: Tensor, shift: int, index: Tensor) -> Tensor:
        return source[..., shift:].gather(3, index)

    def scatter_add(self, target: Tensor, shift: int, index: Tensor, samples: Tensor) -> None:
        target[..., shift:].scatter_add_(3, index, samples)

    def sum_channels(self, samples: Tensor) -> Tensor:
        return samples.sum(2, keepdim=True)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)  # [O, C, k, k] -> [O, C*K]

    def unmatrix(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(-1, self.channels, self.kernel, self.kernel)  # [O, C*K] -> [O, C, k, k]

    def columns(self, samples: Tensor, block: Tensor) -> Tensor:
        return samples.reshape(len(samples), -1, block.shape[2])  # [n, G, C/G, K*P] -> [n, C*K, P]

    def grad_samples(self, matrix: Tensor, block: Tensor) -> Tensor:
        """The gradient of a block's samples from that of the result, [n, O, P]."""
        columns = torch.bmm(matrix.t().expand(len(block), -1, -1), block)
        return columns.reshape(len(block), self.groups, self.depth, -1)  # [n, C*K, P] -> [n, G, C/G, K*P]


class PointSampler(Sampler):
    """Planes with an offset for every channel: interpolated row by row, with half of the general way's products."""

    def sample(self, corners: Corners, source: Tensor, samples: Tensor) -> None:
        index, fy, fx, mask = self._lay_corners(corners)
        upper, upper_right, lower, lower_right = (self.gather(source, shift, index) for shift in self.shifts)
        torch.lerp(upper.lerp_(upper_right, fx), lower.lerp_(lower_right, fx), fy, out=samples)
        samples.mul_(mask)

    def sample_backward(
        self, corners: Corners, source: Tensor, samples: Tensor, grad: Tensor, target: Tensor | None, to: Gradients
    ) -> None:
        (index, fy, fx, mask), shape = self._lay_corners(corners), corners.upper_left.shape
        upper, upper_right, lower, lower_right = (self.gather(source, shift, index) for shift in self.shifts)
        dx = torch.lerp(upper_right - upper, lower_right - lower, fy)
        upper, lower = upper.lerp_(upper_right, fx), lower.lerp_(lower_right, fx)
        torch.lerp(upper, lower, fy, out=samples)
        dy = lower.sub_(upper)
        grad_offset, grad_mask = to
        grad_mask.copy_(self.unlay(grad, shape) * self.unlay(samples, shape))
        samples.mul_(mask)
        grad = grad * mask
        for slope, out in zip((dy, dx), grad_offset.unbind(3)):
            out.copy_(self.unlay(grad, shape) * self.unlay(slope, shape))
        if target is not None:
            below = grad * fy
            above = grad - below
            above_right, below_right = above * fx, below * fx
            parts = above.sub_(above_right), above_right, below.sub_(below_right), below_right
            for shift, part in zip(self.shifts, parts):
                self.scatter_add(target, shift, index, part)

    def _lay_corners(self, corners: Corners) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fy, fx = (self.lay(x) for x in corners.fraction.unbind(3))
        return self.lay_index(corners.upper_left), fy, fx, self.lay(corners.mask)


class RowSampler(Sampler):
    """Samples as [n*P*K, C], a row of channels per sample: fast for many channels and one offset group."""

    def new_samples(self, block: Tensor) -> Tensor:
        return block.new_empty(len(block) * block.shape[2] * self.taps, self.channels)

    def sample_block(self, block: Tensor, source: Tensor, offset: Tensor, mask: Tensor, grid: Tensor) -> Tensor:
        corners, step = self.corners(offset, mask, grid), torch.arange(2, device=source.device)
        neighbours = self.lay_index(corners.upper_left).unsqueeze(1) + (step[:, None] * self.row + step).flatten()
        weights = torch.cat([self.lay(weight) for weight in corners.weights()], 1)  # both [n*P*K, 4]
        return F.embedding_bag(neighbours, source, per_sample_weights=weights, mode="sum")  # one pass over the rows

    def lay_map(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous().view(-1, self.channels)  # [n, C, h, w] -> [n*h*w, C]

    def unlay_map(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.height + 2 * BORDER, self.row, self.channels)  # [n*h*w, C] -> [n, h, w, C]
        return x.permute(0, 3, 1, 2)  # -> [n, C, h, w]

    def lay(self, x: Tensor) -> Tensor:
        return x.transpose(1, 3).reshape(-1, 1)  # [n, 1, K, P] -> [n*P*K, 1]

    def lay_index(self, index: Tensor) -> Tensor:
        start = torch.arange(len(index), device=index.device) * ((self.height + 2 * BORDER) * self.row)
        return self.lay(index + start.view(-1, 1, 1, 1)).squeeze(1)

    def unlay(self, x: Tensor, shape: torch.Size) -> Tensor:
        n, groups, taps, positions = shape
        return x.reshape(n, positions, taps, groups).transpose(1, 3)  # [n*P*K, 1] -> [n, 1, K, P]

    def gather(self, source: Tensor, shift: int, index: Tensor) -> Tensor:
        return source[shift:].index_select(0, index)

    def scatter_add(self, target: Tensor, shift: int, index: Tensor, samples: Tensor) -> None:
        target[shift:].index_add_(0, index, samples)

    def sum_channels(self, samples: Tensor) -> Tensor:
        return samples.sum(1)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.permute(0, 2, 3, 1).flatten(1)  # [O, C, k, k] -> [O, K*C]

    def unmatrix(self, matrix: Tensor) -> Tensor:
        matrix = matrix.reshape(-1, self.kernel, self.kernel, self.channels)  # [O, K*C] -> [O, k, k, C]
        return matrix.permute(0, 3, 1, 2)  # -> [O, C, k, k]

    def columns(self, samples: Tensor, block: Tensor) -> Tensor:
        return samples.reshape(len(block), block.shape[2], -1).transpose(1, 2)  # [n*P*K, C] -> [n, K*C, P]

    def grad_samples(self, matrix: Tensor, block: Tensor) -> Tensor:
        rows = torch.bmm(block.transpose(1, 2), matrix.expand(len(block), -1, -1))
        return rows.reshape(-1, self.channels)  # [n, P, K*C] -> [n*P*K, C]


def choose_layout(channels: int, groups: int) -> type[Sampler]:
    """The fastest layout, as measured on a CPU."""
    if channels == groups:
        return PointSampler
    return RowSampler if groups == 1 and channels >= ROW_CHANNELS else Sampler
