from types import SimpleNamespace

import torch
from torch import nn

from trans4pass.losses import CrossEntropy
from trans4pass.methods import Adaptation, Discriminator, Supervised
from trans4pass.models import SegOutput

K, E = 3, 4


class Network(nn.Module):
    """The smallest thing with a segmentor's output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, E, 3, stride=4, padding=1)
        self.classify = nn.Conv2d(E, K, 1)
        self.feature_stride, self.has_edges, self.wrap = 4, False, False
        self.head = SimpleNamespace(num_classes=K, feature_dim=E)

    def forward(self, images: torch.Tensor) -> SegOutput:
        features = self.body(images.float() / 255 if images.dtype == torch.uint8 else images)
        logits = nn.functional.interpolate(self.classify(features), images.shape[2:], mode="bilinear")
        return SegOutput(logits, features, {})


def batch(labelled: bool = True) -> dict:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, K, (2, 64, 64), generator=generator)
    domain = {"image": images, "label": labels if labelled else torch.full_like(labels, 255), "name": ["a", "b"]}
    return {"source": {**domain, "label": labels}, "target": domain}


def phase(method: Adaptation, name: str, data: dict) -> tuple[dict, dict]:
    return method(name, data, method.normalisers(name, data))


def grads(module: nn.Module) -> list[bool]:
    return [p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters()]


def test_terms_of_each_stage() -> None:
    data = batch()
    names = {}
    for stage, weights in {
        "warmup": {"lambda_adv": 0.1},
        "ssl": {"lambda_target": 1.0},
        "mpa": {"lambda_adv": 0.1, "lambda_target": 1.0, "lambda_proto": 0.1},
    }.items():
        method = Adaptation(Network(), CrossEntropy(), **weights)
        if method.bank is not None:
            method.bank.prototypes.normal_()
        names[stage] = {f"{p}/{n}" for p in method.phases for n in phase(method, p, data)[0]}
    warmup = {"source/seg", "source/disc", "target/disc", "target/adv"}
    assert names["warmup"] == warmup
    assert names["ssl"] == {"source/seg", "target/seg"}
    assert names["mpa"] == warmup | {"target/seg", "source/proto", "target/proto"}


def test_the_adversarial_term_teaches_the_network_and_not_the_discriminator() -> None:
    method = Adaptation(Network(), CrossEntropy(), lambda_adv=1.0)
    losses, _ = phase(method, "target", batch(labelled=False))
    losses["adv"].backward()
    assert all(grads(method.network))
    assert not any(grads(method.discriminator))


def test_the_discriminators_term_teaches_the_discriminator_and_not_the_network() -> None:
    method = Adaptation(Network(), CrossEntropy(), lambda_adv=1.0)
    losses, _ = phase(method, "source", batch())
    losses["disc"].backward()
    assert all(grads(method.discriminator))
    assert not any(grads(method.network))


def test_unlabelled_target_gives_the_network_nothing_without_an_adversary() -> None:
    method = Adaptation(Network(), CrossEntropy(), lambda_target=1.0)
    losses, _ = phase(method, "target", batch(labelled=False))
    sum(losses.values()).backward()
    assert not any(grads(method.network))


def test_discriminator_has_five_halvings() -> None:
    assert Discriminator(K)(torch.rand(2, K, 64, 96)).shape == (2, 1, 2, 3)
    assert [m.out_channels for m in Discriminator(K) if isinstance(m, nn.Conv2d)] == [64, 128, 256, 512, 1]


def test_prepare_uses_correct_pixels_only() -> None:
    """Prototypes start from pixels whose prediction equals the label: here only class 0 can be right."""
    network = Network()
    with torch.no_grad():
        network.classify.weight.zero_()
        network.classify.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    method = Adaptation(network, CrossEntropy(), lambda_proto=1.0)
    data = batch()
    method.prepare({domain: [data[domain]] for domain in method.domains})
    assert method.bank.prototypes[0].isfinite().all()
    assert method.bank.prototypes[1:].isnan().all()
    features = network(data["source"]["image"]).features.permute(0, 2, 3, 1)
    small = data["source"]["label"][:, ::4, ::4]
    assert torch.allclose(method.bank.prototypes[0], features[small == 0].mean(0), atol=1e-6)


def test_multi_scale_bank_averages_features_over_scales() -> None:
    single = Adaptation(Network(), CrossEntropy(), lambda_proto=1.0)
    double = Adaptation(Network(), CrossEntropy(), lambda_proto=1.0, bank_scales=(0.5, 1.0))
    images = batch()["source"]["image"]
    features = single.network(images).features
    assert torch.equal(single._bank_features(images, features), features)
    half = nn.functional.interpolate(images / 255, (32, 32), mode="bilinear")
    half = nn.functional.interpolate(single.network(half).features, (16, 16), mode="bilinear", align_corners=True)
    assert torch.allclose(double._bank_features(images, features), (features + half) / 2, atol=1e-5)


def test_supervised_reads_the_source_only() -> None:
    method = Supervised(Network(), CrossEntropy())
    data = {"source": batch()["source"]}
    losses, _ = phase(method, "source", data)
    assert set(losses) == {"seg"}
    assert method.phases == method.domains == ("source",)
