"""Freezing, low-rank adapters, and how far from the head a parameter lies."""

import pytest
import torch
from torch import nn

from tests.models import tiny_encoders
from trans4pass import create_model
from trans4pass.errors import ConfigError
from trans4pass.models import ENCODERS, Segmentor, Weights, load_weights, merge_adapters
from trans4pass.models.encoders.mix_transformer import MixTransformer
from trans4pass.models.encoders.timm import TimmEncoder
from trans4pass.models.tuning import distances, stages

VIT = "timm/tiny_vit_patch14_dinov2"


def model_of(name: str, **settings) -> Segmentor:
    torch.manual_seed(0)
    return create_model(name, 5, head="linear", **settings)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def step(model: Segmentor) -> None:
    """One training step at rate 1."""
    model.zero_grad()
    model.train()(torch.rand(2, 3, 64, 64)).logits.square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad


# ---------------------------------------------------------------------------------------------------- where layers lie


def test_blocks_are_counted_from_the_head() -> None:
    """Three blocks."""
    found = distances(TimmEncoder("tiny_vit_patch14_dinov2"))
    assert found["body.model.norm.weight"] == found["body.model.blocks.2.attn.qkv.weight"] == 1
    assert [found[f"body.model.blocks.{i}.norm1.weight"] for i in range(3)] == [3, 2, 1]
    assert found["body.model.cls_token"] == found["body.model.patch_embed.proj.weight"] == 4
    assert found["pyramid.to_stride8.weight"] == 0


def test_a_mix_transformers_embeddings_belong_to_the_block_behind_them() -> None:
    """Four stages of two blocks."""
    found = distances(MixTransformer("micro"))
    assert [found[f"block{s}.{i}.norm1.weight"] for s in range(1, 5) for i in range(2)] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert [found[f"patch_embed{s}.proj.weight"] for s in range(1, 5)] == [9, 6, 4, 2]
    assert found["norm4.weight"] == 1


@pytest.mark.parametrize("family", tiny_encoders.NAMES)
def test_every_architecture_has_blocks(family: str) -> None:
    found = distances(TimmEncoder(tiny_encoders.NAMES[family]))
    assert max(found.values()) >= 4
    assert {1, 2, 3, 4} <= {*found.values()}


@pytest.mark.parametrize("family", ["resnet", "convnext", "swin", "sam2_hiera", "efficientnet_lite"])
def test_a_stage_is_what_the_map_of_that_number_reads_first(family: str) -> None:
    """A changed parameter of stage s changes map s, and none before it."""
    torch.manual_seed(0)
    encoder, image = TimmEncoder(tiny_encoders.NAMES[family], drop_path=0.0).eval(), torch.rand(1, 3, 64, 64)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    found, parameters = stages(encoder), dict(encoder.named_parameters())
    assert found.keys() == parameters.keys() and {*found.values()} == {1, 2, 3, 4}
    with torch.no_grad():
        before = encoder(image)
        for stage in (1, 2, 3, 4):
            name = [name for name, s in found.items() if s == stage][-1]
            kept = parameters[name].clone()
            parameters[name] += 0.5
            changed = [not torch.equal(a, b) for a, b in zip(before, encoder(image), strict=True)]
            parameters[name].copy_(kept)
            assert changed.index(True) == stage - 1, name


def test_a_mix_transformers_stages() -> None:
    """With a deformable patch embedding; on the meta device, too; and nothing is drawn that a run would miss."""
    encoder, state = MixTransformer("micro", drop_path=0.5), torch.get_rng_state()
    found = stages(encoder)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.keys() == dict(encoder.named_parameters()).keys()
    with torch.device("meta"):
        assert found == stages(MixTransformer("micro"))
    names = ("patch_embed1.proj.weight", "block2.1.attn.q.weight", "patch_embed3.norm.bias", "norm4.weight")
    assert [found[name] for name in names] == [1, 2, 3, 4]


# -------------------------------------------------------------------------------------------------------------- frozen


@pytest.mark.parametrize("name", ["timm/tiny_resnet", "trans4pass_micro", VIT])
def test_a_frozen_encoder_stands_still(name: str) -> None:
    """Its parameters and its statistics; what no published weights hold, a pyramid, and the head learn."""
    model = model_of(name, freeze=["encoder"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step(model)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    learns = ("head.", "encoder.pyramid.")
    assert moved and all(key.startswith(learns) for key in moved)
    assert trained(model) == {key for key, _ in model.named_parameters() if key.startswith(learns)}
    norms = [m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms) and model.head.norm.training


def test_first_stages_and_norms_are_frozen() -> None:
    model = model_of("timm/tiny_resnet", freeze=[2])
    frozen = {key.split(".")[2] for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1", "layer2"}
    assert not model.encoder.body.layer2[0].bn1.training and model.encoder.body.layer3[0].bn1.training
    norms = model_of("timm/tiny_resnet", freeze=["norms"])
    frozen = {key for key, p in norms.named_parameters() if not p.requires_grad}
    assert frozen == {k for k, _ in norms.named_parameters() if ".bn" in k or ".downsample.1." in k}
    assert not any(m.training for m in norms.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    both = model_of("timm/tiny_resnet", freeze=[1, "norms"])
    assert trained(both) == trained(norms) - {k for k in trained(norms) if ".conv1." in k and ".layer" not in k} - {
        k for k in trained(norms) if ".layer1." in k
    }


def test_quarters_of_a_plain_transformers_blocks_are_frozen() -> None:
    """Of three blocks the first two are in the first three quarters."""
    model = model_of(VIT, freeze=[3])
    still = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert {key.split(".")[4] for key in still if ".blocks." in key} == {"0", "1"}
    assert "encoder.body.model.patch_embed.proj.weight" in still
    assert "encoder.body.model.norm.weight" in trained(model)


@pytest.mark.parametrize("what", [["head"], [5], [0], "encoder"])
def test_other_parts_cannot_be_frozen(what) -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze"):
        model_of("trans4pass_micro", freeze=what)


# ------------------------------------------------------------------------------------------------------------ adapters


@pytest.mark.parametrize("name", [VIT, "timm/tiny_vit_patch16_dinov3", "timm/tiny_swin", "trans4pass_micro"])
def test_adapters_start_as_the_layer_and_alone_learn(name: str) -> None:
    base = model_of(name)
    model = model_of(name, lora={"rank": 2, "alpha": 4.0}, drop_path=0.0)  # no block may be left out
    load_weights_of(base, model)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model.eval()(image).logits, base.eval()(image).logits, atol=1e-6)
    assert all("parametrizations" in k or k.startswith(("head.", "encoder.pyramid.")) for k in trained(model))
    step(model)
    step(model)
    still = [k for k, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not still
    with torch.no_grad():
        learned = model.eval()(image).logits
        assert not torch.allclose(learned, base(image).logits, atol=1e-3)
        merge_adapters(model)
        assert torch.equal(model(image).logits, learned)
    assert model.state_dict().keys() == base.state_dict().keys()


def load_weights_of(source: nn.Module, target: nn.Module) -> None:
    state = {key: value.clone() for key, value in source.state_dict().items()}
    load_weights(target, Weights("other.pth", "Trans4PASS", state, []))


def test_files_with_and_without_adapters_fit_either_model() -> None:
    """By hand: a weight of 1, up 2 and down 3 of rank 1 at alpha 0.5 make 1 + 0.5 * 6 = 4."""
    adapted, base = model_of(VIT, lora={"rank": 1, "alpha": 0.5}), model_of(VIT)
    layer = adapted.encoder.body.model.blocks[0].attn.qkv.parametrizations.weight
    with torch.no_grad():
        for tensor, value in ((layer.original, 1.0), (layer[0].up, 2.0), (layer[0].down, 3.0)):
            tensor.fill_(value)
    load_weights_of(adapted, base)
    assert base.encoder.body.model.blocks[0].attn.qkv.weight.eq(4).all()
    fresh = model_of(VIT, lora=True)
    load_weights_of(base, fresh)
    layer = fresh.encoder.body.model.blocks[0].attn.qkv.parametrizations.weight
    assert layer.original.eq(4).all() and not layer[0].up.any() and layer[0].scale == 2


def test_adapters_need_attention_and_an_encoder_that_is_not_frozen() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora: .*no attention"):
        model_of("timm/tiny_resnet", lora=True)
    with pytest.raises(ConfigError, match=r"model\.lora\.rank is 0"):
        model_of(VIT, lora={"rank": 0})
    with pytest.raises(ConfigError, match=r"leave model\.freeze empty"):
        model_of(VIT, lora=True, freeze=[1])


# ----------------------------------------------------------------------------------------------- heads that need levels


def test_a_head_that_needs_more_levels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoMaps(nn.Module):
        channels, strides = (8, 16), (4, 8)

    monkeypatch.setitem(ENCODERS, "two", TwoMaps)
    with pytest.raises(ConfigError, match=r"head=fpn reads four maps, and the encoder has 2.*take head=dmlp, linear"):
        create_model("two", 5, head="fpn")
    create_model("two", 5, head="segformer")


def test_an_encoder_that_cannot_recompute_says_so() -> None:
    model = model_of("timm/tiny_resnet")
    model.encoder = nn.Identity()
    with pytest.raises(ConfigError, match="Identity has no set_grad_checkpointing"):
        model.recompute_activations()
