"""Timm's architectures with random weights and a few thousand parameters, under names of their own: tiny_<family>."""

import sys
from functools import partial
from typing import Any

from timm.layers import LayerNorm
from timm.models import register_model
from timm.models._registry import generate_default_cfgs
from timm.models.convnext import _create_convnext
from timm.models.efficientnet import _gen_efficientnet_lite
from timm.models.eva import _create_eva
from timm.models.fastvit import _create_fastvit
from timm.models.hieradet_sam2 import _create_hiera_det
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, SepConv, _create_metaformer
from timm.models.resnet import BasicBlock, _create_resnet
from timm.models.swin_transformer import _create_swin_transformer
from timm.models.swin_transformer_v2 import _create_swin_transformer_v2
from timm.models.vision_transformer import _create_vision_transformer
from torch import nn

WIDTHS, ONE = (8, 16, 32, 64), (1, 1, 1, 1)
VIT = {"embed_dim": 16, "depth": 3, "num_heads": 2}
DINOV2 = {**VIT, "img_size": 70, "init_values": 0.1, "reg_tokens": 4, "no_embed_class": True}
DINOV3 = {
    **VIT, "patch_size": 16, "dynamic_img_size": True, "qkv_bias": False, "init_values": 0.1, "rope_type": "dinov3",
    "rope_rotate_half": True, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "num_reg_tokens": 4,
    "use_fc_norm": False, "norm_layer": partial(LayerNorm, eps=1e-5),
}  # fmt: skip
CAFORMER = {
    "token_mixers": [SepConv, SepConv, Attention, Attention],
    "norm_layers": [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
}
SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 2)}
SAM2 = {"embed_dim": 8, "stages": (1, 1, 2, 1), "global_att_blocks": (3,), "window_spec": (8, 4, 4, 4)}

FAMILIES = {  # how timm makes each, and with what
    "resnet": (_create_resnet, {"block": BasicBlock, "layers": ONE, "channels": WIDTHS, "stem_width": 8}),
    "convnext": (_create_convnext, {"depths": (1, 1, 2, 1), "dims": WIDTHS, "ls_init_value": 0.1}),
    "caformer": (_create_metaformer, {"depths": ONE, "dims": WIDTHS, **CAFORMER}),
    "fastvit": (_create_fastvit, {"layers": ONE, "embed_dims": WIDTHS, "token_mixers": ("repmixer",) * 4}),
    "efficientnet_lite": (_gen_efficientnet_lite, {"channel_multiplier": 0.1, "pad_type": "same"}),
    "swin": (_create_swin_transformer, SWIN),
    "swinv2": (_create_swin_transformer_v2, SWIN),
    "sam2_hiera": (_create_hiera_det, SAM2),
    "vit_patch16": (_create_vision_transformer, {**VIT, "img_size": 64}),
    "vit_patch14_dinov2": (_create_vision_transformer, {**DINOV2, "patch_size": 14}),
    "vit_patch16_dinov3": (_create_eva, DINOV3),
}
default_cfgs = generate_default_cfgs({f"tiny_{name}": {"mean": (0.5, 0.4, 0.3)} for name in FAMILIES})


def register(family: str) -> str:
    make, settings = FAMILIES[family]

    def tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return make(tiny.__name__, pretrained=pretrained, **{**settings, **kwargs})

    tiny.__name__ = f"tiny_{family}"
    setattr(sys.modules[__name__], tiny.__name__, register_model(tiny))
    return tiny.__name__


NAMES = {family: register(family) for family in FAMILIES}
