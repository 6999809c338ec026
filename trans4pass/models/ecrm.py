"""The Exterior Contextual-Relation Module, ECRM: pixels attend to the class prototypes of past training images.

On purpose different from the published listing: the softmax runs over the bank's entries (there over the batch),
evaluation reads the bank as training left it (there the image's own prototype), each image is one entry of K vectors,
all of which are keys and values, and a batch that does not fit behind the bank's last entry goes on at its start (there
the rest of the batch is dropped).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn

from trans4pass import dist
from trans4pass.settings import Positive

from .attention import conv_bn_relu, unscaled_attention


class PrototypeRing(nn.Module):
    """The last `size` entries [width, num_classes] written, without gradient; a part of the model's state.

    `written` counts the entries ever written, so that the ring holds min(written, size) of them and the next one goes
    to position written % size.
    """

    bank: Tensor
    written: Tensor

    def __init__(self, size: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(size, width, num_classes))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self._full = False  # known to be full, which it stays: only another state may hold less

    @torch.no_grad()
    def write(self, entries: Tensor) -> None:
        """Append [B, width, num_classes] of every rank, in the ranks' order, so that all ranks hold the same ring.

        Entries that are not finite are left out: they would stay long after the step that made them is skipped.
        """
        entries = entries.to(self.bank)
        if dist.active():
            parts = [torch.empty_like(entries) for _ in range(dist.world_size())]
            td.all_gather(parts, entries.contiguous())
            entries = torch.cat(parts)  # [B, width, K] -> [ranks * B, width, K]
        finite = entries.isfinite().all(1).all(1)
        # No sizes that only the device knows, for which a host would wait: each place looks for its last entry.
        places = (self.written + finite.cumsum(0) - 1) % len(self.bank)
        here = finite[:, None] & (places[:, None] == torch.arange(len(self.bank), device=places.device))  # [B, S]
        last = (here * torch.arange(1, len(entries) + 1, device=places.device)[:, None]).amax(0)  # 0: none
        self.bank.copy_(entries[(last - 1).clamp_min(0)].where((last > 0)[:, None, None], self.bank))
        self.written += finite.sum()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._full = False

    def read(self) -> Tensor:
        """The filled entries as one list of vectors [width, entries * num_classes]; a copy, safe from later writes."""
        filled = self.bank[: self.filled()].clone()
        return filled.transpose(0, 1).flatten(1)  # [S, width, K] -> [width, S * K]

    def filled(self) -> int:
        """The number of filled entries, for which the host waits for as long as the ring is not full."""
        size = len(self.bank)
        filled = size if self._full else min(int(self.written), size)
        self._full = filled == size
        return filled


class ECRM(nn.Module):
    """Enhance the encoder's last map with what other images' classes look like; fits between any encoder and head.

    Takes the encoder's list of maps, of widths `channels`; returns the list with the last map replaced by one of
    `width` channels at the same size, and the auxiliary map `coarse`: the class logits [B, K, h, w] that weigh the
    pixels into prototypes. They have no other gradient than from their own loss. `channels` are the new widths,
    for the head.

    Each training forward writes one entry per image (of all ranks) into a ring of `bank_size` before it reads it;
    evaluation writes nothing. Where nothing was ever written, the context is zero. Activation checkpointing must not
    wrap this module: a forward that is computed twice writes twice. Raises ConfigError for a width or a
    bank without room.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        width: Positive = 512,
        attention_width: Positive = 256,
        bank_size: Positive = 20,
    ) -> None:
        super().__init__()
        self.channels = (*channels[:-1], width)
        self.coarse = nn.Conv2d(channels[-1], num_classes, 1)
        self.project = conv_bn_relu(channels[-1], width, 3)
        self.ring = PrototypeRing(bank_size, width, num_classes)
        self.psi = conv_bn_relu(width, attention_width, 1)
        self.phi = conv_bn_relu(width, attention_width, 1)
        self.delta = conv_bn_relu(width, attention_width, 1)
        self.rho = conv_bn_relu(attention_width, width, 1)
        self.fuse = conv_bn_relu(2 * width, width, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        coarse, x = self.coarse(maps[-1]), self.project(maps[-1])
        if self.training:
            self.ring.write(prototypes(x, coarse))
        enhanced = self.fuse(torch.cat((x, self.context(x)), 1))
        return [*maps[:-1], enhanced], {"coarse": coarse}

    def context(self, x: Tensor) -> Tensor:
        """What the pixels of [B, width, h, w] gather from the ring, in the same shape."""
        vectors = self.ring.read()
        if not vectors.shape[1]:
            return torch.zeros_like(x)
        entries = vectors.to(x.dtype)[None, :, :, None]  # [width, S * K] -> [1, width, S * K, 1]
        query = self.psi(x).flatten(2)  # [B, width, h, w] -> [B, 256, N]
        key = self.phi(entries).flatten(2).expand(len(x), -1, -1)  # -> [B, 256, S * K], one for all images
        value = self.delta(entries).flatten(2).expand(len(x), -1, -1)  # -> [B, 256, S * K]
        mixed = unscaled_attention(query, key, value)
        return self.rho(mixed.unflatten(2, x.shape[-2:]))  # [B, 256, N] -> [B, 256, h, w]


@torch.no_grad()
def prototypes(x: Tensor, coarse: Tensor) -> Tensor:
    """Mean vectors of [B, C, h, w], weighted by softmax over pixels of the logits [B, K, h, w]: [B, C, K]."""
    # Weights of one in thousands of pixels and their sums want single precision.
    with torch.autocast(x.device.type, enabled=False):
        work = torch.promote_types(x.dtype, torch.float32)
        weights = coarse.to(work).flatten(2).softmax(-1)  # [B, K, h, w] -> [B, K, N]
        return x.to(work).flatten(2) @ weights.transpose(1, 2)  # [B, C, N] x [B, N, K] -> [B, C, K]
