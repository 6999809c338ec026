import pytest
import torch
from torch import Tensor, nn

from trans4pass.models.heads.danet import ChannelAttention, DANetHead, PositionAttention, classifier


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def position_attention(module: PositionAttention, x: Tensor) -> Tensor:
    """The formula, position by position."""
    weight = {name: getattr(module, name).weight[:, :, 0, 0] for name in ("query", "key", "value")}
    bias = {name: getattr(module, name).bias[:, None] for name in weight}
    out = []
    for image in x.flatten(2):
        query, key, value = (weight[name] @ image + bias[name] for name in ("query", "key", "value"))
        columns = [value @ torch.softmax(key.T @ query[:, i], 0) for i in range(image.shape[1])]
        out.append(module.gamma * torch.stack(columns, 1) + image)
    return torch.stack(out).view_as(x)


def channel_attention(gamma: Tensor, x: Tensor) -> Tensor:
    """The formula, channel by channel."""
    out = []
    for image in x.flatten(2):
        energy = image @ image.T
        rows = [torch.softmax(row.max() - row, 0) @ image for row in energy]
        out.append(gamma * torch.stack(rows) + image)
    return torch.stack(out).view_as(x)


def with_gamma(module: nn.Module) -> nn.Module:
    """`module` in float64 with the attentions' weights away from 0."""
    for child in module.modules():
        if hasattr(child, "gamma"):
            nn.init.constant_(child.gamma, 0.7)
    return module.double()


@pytest.mark.parametrize("training", [True, False])
def test_position_attention_is_the_formula(training: bool) -> None:
    torch.manual_seed(0)
    module, x = with_gamma(PositionAttention(16)).train(training), random_map(2, 16, 5, 7).requires_grad_()
    ours, formula = module(x), position_attention(module, x)
    inputs = (x, *module.parameters())
    grads, expected = (torch.autograd.grad(y.square().sum(), inputs) for y in (ours, formula))
    assert (ours - formula).abs().max() < 1e-10
    assert max((a - b).abs().max() for a, b in zip(grads, expected)) < 1e-10


def test_position_attention_is_the_formula_in_single_precision() -> None:
    torch.manual_seed(0)
    module, x = PositionAttention(64), random_map(2, 64, 9, 13).float()
    nn.init.ones_(module.gamma)
    assert (module(x) - position_attention(module, x)).abs().max() < 1e-5


def test_channel_attention_is_the_formula() -> None:
    module, x = with_gamma(ChannelAttention()), random_map(2, 6, 5, 7)
    assert (module(x) - channel_attention(module.gamma, x)).abs().max() < 1e-10


def test_channel_attention_survives_half_precision() -> None:
    # The sum of 400 products of 20 x 20 is beyond the largest half, 65504.
    module, x = ChannelAttention(), torch.full((1, 4, 20, 20), 20.0, dtype=torch.float16)
    nn.init.ones_(module.gamma)
    with torch.autocast("cpu", torch.float16):
        assert (module(x) == 40).all()


@pytest.mark.parametrize("module", [PositionAttention(8), ChannelAttention()])
def test_attention_starts_as_the_identity(module: nn.Module) -> None:
    x = random_map(1, 8, 3, 5).float()
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("grad", [True, False])
def test_position_attention_takes_the_fused_kernel(grad: bool) -> None:
    """Whose memory grows with the number of positions and not its square, as the name of the kernel says."""
    module, x = PositionAttention(64), random_map(1, 64, 8, 8).float()
    with torch.set_grad_enabled(grad), torch.profiler.profile(acc_events=True) as profile:
        module(x)
    names = {event.name for event in profile.events()}
    assert any("flash_attention" in name for name in names), names


def test_head_gives_three_outputs_at_the_last_maps_size() -> None:
    maps = [random_map(2, 8, 9, 11).float(), random_map(2, 64, 3, 5).float()]
    head = DANetHead((8, 64), 7)
    features, logits, aux = head(maps)
    assert (head.num_classes, head.feature_dim) == (7, 16)
    assert features.shape == (2, 16, 3, 5)
    assert logits.shape == (2, 7, 3, 5)
    assert {name: tuple(x.shape) for name, x in aux.items()} == {"position": (2, 7, 3, 5), "channel": (2, 7, 3, 5)}


def test_head_sums_its_branches() -> None:
    torch.manual_seed(0)
    head, x = with_gamma(DANetHead((64,), 5)).eval(), random_map(2, 64, 3, 5)
    position = head.position.conv_out(position_attention(head.position.attention, head.position.conv_in(x)))
    channel = head.channel.conv_out(channel_attention(head.channel.attention.gamma, head.channel.conv_in(x)))
    features, logits, aux = head([x])
    assert (features - (position + channel)).abs().max() < 1e-10
    assert (logits - head.pred[1](position + channel)).abs().max() < 1e-10
    assert (aux["position"] - head.pred_position[1](position)).abs().max() < 1e-10
    assert (aux["channel"] - head.pred_channel[1](channel)).abs().max() < 1e-10


def test_dropout_leaves_out_whole_channels() -> None:
    torch.manual_seed(0)
    (dropout, conv), x = classifier(64, 5), torch.ones(8, 64, 3, 5)
    kept = dropout(x).flatten(2)
    assert conv.kernel_size == (1, 1)
    assert ((kept == kept[:, :, :1]).all(2)).all()
    assert 0.02 < (kept == 0).float().mean() < 0.25
    assert torch.equal(dropout.eval()(x), x)


def test_gradient_reaches_every_parameter() -> None:
    head = with_gamma(DANetHead((64,), 5))
    _, logits, aux = head([random_map(2, 64, 3, 5)])
    sum(x.square().sum() for x in (logits, *aux.values())).backward()
    # The key's bias shifts all of a query's scores alike, which softmax takes no notice of.
    missing = {name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()}
    assert missing <= {"position.attention.key.bias"}


def test_one_position_at_batch_1_trains() -> None:
    assert DANetHead((64,), 5)([random_map(1, 64, 1, 1).float()]).logits.isfinite().all()


@pytest.mark.parametrize(("last", "dim"), [(256, 64), (40, 16), (8, 8)])
def test_any_width_gives_branches_of_a_quarter_rounded_up_to_whole_queries(last: int, dim: int) -> None:
    """Timm's encoders have widths of all kinds; those of the paper's ResNets and of the pyramid give their quarter."""
    head = DANetHead((16, last), 5).eval()
    assert head.feature_dim == dim
    assert head([None, random_map(1, last, 2, 3).float()]).features.shape == (1, dim, 2, 3)
