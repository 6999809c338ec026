"""What the heads and modules with attention share."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import Conv2dNormActivation

from .layers import BatchNorm2d

# (in_dim, out_dim, kernel): convolution without bias at the input's size, BatchNorm, ReLU
conv_bn_relu = partial(Conv2dNormActivation, norm_layer=BatchNorm2d, inplace=None)


def unscaled_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of N queries over M entries, softmax(query^T key) with no factor, without holding the N x M matrix.

    The fused kernels want one width for all three and its numbers side by side, or they fall back to the whole matrix.
    A value wider than the query is therefore cut into heads as wide as the query, which all use the same weights.

    Args:
        query: [B, Q, N], channels first.
        key: [B, Q, M].
        value: [B, V, M]; V a multiple of Q.
    Returns:
        [B, V, N].
    """
    width = query.shape[1]
    heads = value.shape[1] // width
    query = query.transpose(1, 2).contiguous()[:, None].expand(-1, heads, -1, -1)  # [B, Q, N] -> [B, heads, N, Q]
    key = key.transpose(1, 2).contiguous()[:, None].expand(-1, heads, -1, -1)  # [B, Q, M] -> [B, heads, M, Q]
    value = value.unflatten(1, (heads, width)).transpose(2, 3).contiguous()  # [B, V, M] -> [B, heads, M, Q]
    mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return mixed.transpose(2, 3).flatten(1, 2)  # [B, heads, N, Q] -> [B, V, N]
