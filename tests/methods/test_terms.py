"""Every term of every method on a few pixels: its value, and its gradient by all parameters, against a slow formula."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import slow
from trans4pass.losses import CrossEntropy, Focal
from trans4pass.methods import ForwardPass, Losses, Segmentation, SumOfTerms

from .build import (
    BATCH,
    GRAY_VALUES,
    PROTOTYPES,
    Formula,
    Lookup,
    Numbers,
    adaptation,
    assert_term,
    bank,
    losses,
    seen,
    supervised,
    values,
)

WEIGHTS = [0.5, 2.0, 3.0]
PHASES = ("source", "target")
# A row of 12 pixels of each domain, for what has a neighbourhood or another size.
STRIPS = {
    domain: {
        "image": torch.arange(first, first + 12, dtype=torch.uint8).expand(1, 3, 1, -1),
        "label": torch.tensor([[labels]]),
        "name": ["a"],
    }
    for domain, first, labels in [
        ("source", 0, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 255]),
        ("target", 12, [2, 2, 2, 2, 2, 0, 0, 0, 255, 255, 1, 1]),
    ]
}  # fmt: skip


def probabilities(logits: Tensor, domain: str) -> list[list[float]]:
    return [slow.softmax(scores) for scores in slow.by_pixel(seen(logits, BATCH[domain]["image"]))]


def scores(network: Numbers, discriminator: Numbers, domain: str) -> list[float]:
    """The discriminator's view of the domain's pixels."""
    weight = discriminator["discriminator.weight"].flatten().tolist()
    bias = discriminator["discriminator.bias"].item()
    pixels = probabilities(network["network.logits"], domain)
    return [bias + sum(w * p for w, p in zip(weight, pixel)) for pixel in pixels]


# ---- what labels say ----


@pytest.mark.parametrize("build", [supervised, adaptation])
def test_the_sources_cross_entropy(build: Any) -> None:
    image, label = BATCH["source"]["image"], BATCH["source"]["label"]
    method = build(loss=CrossEntropy(WEIGHTS))
    assert_term(
        method,
        "source",
        "supervised",
        lambda p, _: slow.cross_entropy(seen(p["network.logits"], image), label, WEIGHTS),
    )


@pytest.mark.parametrize("loss", [lambda: CrossEntropy(WEIGHTS), Focal], ids=["weighted", "focal"])
def test_the_targets_cross_entropy_is_unweighted_whatever_the_sources_loss(loss: Callable[[], torch.nn.Module]) -> None:
    image, label = BATCH["target"]["image"], BATCH["target"]["label"]
    assert_term(
        adaptation(loss=loss(), self_training=0.7),
        "target",
        "self_training",
        lambda p, _: 0.7 * slow.cross_entropy(seen(p["network.logits"], image), label),
    )


def edge_formula(domain: str, radius: int, weight: float) -> Formula:
    image, label = STRIPS[domain]["image"], STRIPS[domain]["label"]
    edges, known = slow.edges(label, radius)
    assert edges.any() and (known & (edges == 0)).any()

    def formula(p: Numbers, _: Numbers) -> float:
        fine, coarse = seen(p["network.fine"], image), seen(p["network.coarse"], image, 2)
        coarse = F.interpolate(coarse, (1, 12), mode="bilinear", align_corners=False)
        return weight * sum(slow.dice(torch.sigmoid(level[:, 0]), edges, known) for level in (fine, coarse))

    return formula


def aux_formula(domain: str, class_weights: list[float] | None, weight: float) -> Formula:
    image, label = STRIPS[domain]["image"], STRIPS[domain]["label"]

    def formula(p: Numbers, _: Numbers) -> float:
        logits = F.interpolate(seen(p["network.aux"], image, 2), (1, 12), mode="bilinear", align_corners=True)
        return weight * slow.cross_entropy(logits, label, class_weights)

    return formula


SIDES = {"aux_weight": 0.3, "edge_weight": 0.4, "edge_radius": 1}


@pytest.mark.parametrize("build", [supervised, adaptation])
def test_the_sources_auxiliary_and_edge_maps(build: Any) -> None:
    def made(**settings: Any) -> SumOfTerms:
        return build(Lookup(aux=True, edges=True), CrossEntropy(WEIGHTS), **settings)

    assert set(losses(made(), "source", STRIPS)) == {"supervised", "supervised.pixels", "supervised.edges"}
    assert_term(made(**SIDES), "source", "supervised.pixels", aux_formula("source", WEIGHTS, 0.3), STRIPS)
    assert_term(made(**SIDES), "source", "supervised.edges", edge_formula("source", 1, 0.4), STRIPS)
    assert_term(made(), "source", "supervised.pixels", aux_formula("source", WEIGHTS, 1.0), STRIPS)
    assert_term(made(), "source", "supervised.edges", edge_formula("source", 2, 1.0), STRIPS)
    assert losses(made(aux_weight=0), "source", STRIPS)["supervised.pixels"].item() == 0
    assert losses(made(edge_weight=0), "source", STRIPS)["supervised.edges"].item() == 0


def rolled(batch: dict, pixels: int) -> dict:
    """The batch with both domains' panoramas turned."""
    turn = {"image": lambda x: x.roll(pixels, 3), "label": lambda x: x.roll(pixels, 2)}
    return {domain: {**content, **{key: turn[key](content[key]) for key in turn}} for domain, content in batch.items()}


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("build", [supervised, adaptation])
def test_a_panoramas_auxiliary_and_edge_maps_go_round(build: Any, wrap: bool) -> None:
    method = build(Lookup(aux=True, edges=True, wrap=wrap), **SIDES)
    one, other = losses(method, "source", STRIPS), losses(method, "source", rolled(STRIPS, 4))
    assert other["supervised"].item() == slow.approx(one["supervised"].item())
    for term in ("supervised.pixels", "supervised.edges"):
        assert (other[term].item() == slow.approx(one[term].item())) == wrap


def test_the_targets_auxiliary_and_edge_maps() -> None:
    method = adaptation(Lookup(aux=True, edges=True), CrossEntropy(WEIGHTS), self_training=0.7, **SIDES)
    names = {"self_training", "self_training.pixels", "self_training.edges"}
    assert set(losses(method, "target", STRIPS)) == names
    assert_term(method, "target", "self_training.pixels", aux_formula("target", None, 0.7 * 0.3), STRIPS)
    assert_term(method, "target", "self_training.edges", edge_formula("target", 1, 0.7 * 0.4), STRIPS)


# ---- what the discriminator says ----


@pytest.mark.parametrize(("phase", "label"), [("source", 0.0), ("target", 1.0)])
def test_the_discriminator_learns_each_domain_by_half_and_teaches_nobody(phase: str, label: float) -> None:
    method = adaptation(adversarial=0.3)
    term = "adversarial.discriminator"
    assert_term(method, phase, term, lambda p, still: 0.5 * slow.domain(scores(still, p, phase), label))


def test_the_network_learns_to_pass_the_target_as_source_and_the_discriminator_stays() -> None:
    method = adaptation(adversarial=0.3)
    assert "adversarial" not in losses(method, "source")
    assert_term(method, "target", "adversarial", lambda p, still: 0.3 * slow.domain(scores(p, still, "target"), 0.0))


# ---- what the prototypes say ----

DISTILLATION = {"prototypes": 0.2, "temperature": 3.0, "alpha": 0.6}
FLAVOURS = {"fixed": "labelled", "official": "all", "paper": "all"}


def distillation_formula(phase: str, over: str, weight: float, stride: int = 1, **settings: float) -> Formula:
    image, label = BATCH[phase]["image"], BATCH[phase]["label"]
    label = label if stride == 1 else label[:, :1, :2]  # the nearest of 2 x 3 pixels to 1 x 2

    def formula(p: Numbers, still: Numbers) -> float:
        features = [seen(x["network.features"], image, stride) for x in (p, still)]
        return weight * sum(slow.distillation(features[0], label, PROTOTYPES, over=over, still=features[1], **settings))

    return formula


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("flavour", "over"), FLAVOURS.items())
def test_distillation_in_both_domains(phase: str, flavour: str, over: str) -> None:
    method = adaptation(**DISTILLATION, flavour=flavour, bank_scales=(1.0,))
    assert_term(method, phase, "prototypes", distillation_formula(phase, over, 0.2, temperature=3.0, alpha=0.6))


@pytest.mark.parametrize("phase", PHASES)
def test_distillation_by_itself_is_fixed_at_the_papers_temperature_and_share(phase: str) -> None:
    method = adaptation(prototypes=1.0)
    assert_term(method, phase, "prototypes", distillation_formula(phase, "labelled", 1.0, temperature=20.0, alpha=0.9))


@pytest.mark.parametrize("phase", PHASES)
def test_distillation_has_the_features_size(phase: str) -> None:
    method = adaptation(Lookup(stride=2), **DISTILLATION)
    assert_term(
        method, phase, "prototypes", distillation_formula(phase, "labelled", 0.2, stride=2, temperature=3.0, alpha=0.6)
    )


@pytest.mark.parametrize("phase", PHASES)
def test_distillations_parts_are_logged_before_its_weight(phase: str) -> None:
    method = adaptation(**DISTILLATION)
    image, label = BATCH[phase]["image"], BATCH[phase]["label"]
    kl, ce = slow.distillation(seen(method.network.features.detach(), image), label, PROTOTYPES, 3.0, 0.6)
    assert values(method, phase) == {"prototypes.kl": slow.approx(kl), "prototypes.ce": slow.approx(ce)}


def test_a_single_class_may_be_distilled() -> None:
    method = adaptation(Lookup(classes=1), prototypes=1.0)
    label = torch.zeros(2, 2, 3, dtype=torch.int64)
    label[0, 0] = 255
    assert (
        method.normalisers("source", {"source": {**BATCH["source"], "label": label}})["prototypes.pixels"].item() == 9
    )


def test_half_precision_features_are_distilled_in_single() -> None:
    method = adaptation(**DISTILLATION)
    method.network.features.data = method.network.features.data.half()
    assert losses(method, "source")["prototypes"].dtype == torch.float32


# ---- what they divide by ----


@pytest.mark.parametrize("phase", PHASES)
def test_what_each_term_divides_by_is_given(phase: str) -> None:
    """Twice the number halves what is a mean over labels, and nothing else."""
    method = adaptation(
        Lookup(aux=True, edges=True), CrossEntropy(WEIGHTS), adversarial=0.3, self_training=0.7, **DISTILLATION
    )
    norms = method.normalisers(phase, STRIPS)
    whole, halved = (method(phase, STRIPS, {key: n * norm for key, norm in norms.items()}).losses for n in (1, 2))
    learned = "supervised" if phase == "source" else "self_training"
    assert norms.keys() == {f"{learned}.loss", f"{learned}.edges", "prototypes.pixels"}
    for term in whole:
        factor = 1 if term.startswith("adversarial") else 0.5
        assert halved[term].item() == slow.approx(factor * whole[term].item()), term


def test_normalisers_by_hand() -> None:
    method = adaptation(Lookup(stride=2), CrossEntropy(WEIGHTS), self_training=1.0, prototypes=1.0)
    source, target = (method.normalisers(phase, BATCH) for phase in PHASES)
    label = BATCH["source"]["label"]
    assert source["supervised.loss"].item() == sum(WEIGHTS[k] for k in label[label != 255].tolist())
    assert target["self_training.loss"].item() == int((BATCH["target"]["label"] != 255).sum())
    # The features of an image are 1 x 2; labels 0 1 and 1 1, 255 255 and 1 2; class 1 has no prototype.
    assert (source["prototypes.pixels"].item(), target["prototypes.pixels"].item()) == (1, 1)
    bank(method).prototypes[1] = 0
    assert [method.normalisers(phase, BATCH)["prototypes.pixels"].item() for phase in PHASES] == [4, 2]


def test_a_weight_of_a_pixel_is_no_part_of_what_its_term_divides_by() -> None:
    method = adaptation(Lookup(aux=True, edges=True), **DISTILLATION)
    weighted = {"source": {**STRIPS["source"], "weight": torch.full((1, 1, 12), 0.5, dtype=torch.float64)}}
    assert method.normalisers("source", weighted) == method.normalisers("source", STRIPS)


# ---- pixels' weights ----


def weighted(phase: str, weight: list[float], **content: Any) -> dict:
    return {phase: {**STRIPS[phase], "weight": torch.tensor([[weight]], dtype=torch.float64), **content}}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_constant_weight_is_a_factor_on_every_loss_by_labels(phase: str, flavour: str) -> None:
    """The network's maps of all kinds, and the distillation; not on what the discriminator says."""
    method = adaptation(
        Lookup(aux=True, edges=True), adversarial=0.3, self_training=0.7, flavour=flavour, bank_scales=(1.0,),
        **DISTILLATION,
    )  # fmt: skip
    whole, halved = losses(method, phase, STRIPS), losses(method, phase, weighted(phase, [0.5] * 12))
    assert len(whole) == (5 if phase == "source" else 6)
    for term in whole:
        factor = 1 if term.startswith("adversarial") else 0.5
        assert halved[term].item() == slow.approx(factor * whole[term].item()), term


@pytest.mark.parametrize("phase", PHASES)
def test_a_pixel_of_weight_zero_teaches_as_one_without_label(phase: str) -> None:
    """With the same normalisers: the gradients of all parameters are equal."""
    gradients = []
    label = STRIPS[phase]["label"].clone()
    label[..., :4] = 255
    for batch in (weighted(phase, [0.0] * 4 + [1.0] * 8), {phase: {**STRIPS[phase], "label": label}}):
        method = adaptation(Lookup(aux=True, edges=True), self_training=0.7, **SIDES, **DISTILLATION)
        loss = sum(method(phase, batch, method.normalisers(phase, STRIPS)).losses.values())
        gradients.append(torch.autograd.grad(loss, list(method.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-14


@pytest.mark.parametrize("term", ["supervised.pixels", "prototypes"])
def test_weights_are_those_of_the_pixels_they_stand_at(term: str) -> None:
    """Each pixel by itself, at the full size; the sum of all is the whole loss."""
    method = adaptation(Lookup(aux=True), **DISTILLATION)
    norms = method.normalisers("source", STRIPS)
    parts = [weighted("source", [float(column == number) for column in range(12)]) for number in range(12)]
    alone = [method("source", part, norms).losses[term].item() for part in parts]
    assert sum(alone) == slow.approx(losses(method, "source", STRIPS)[term].item())
    known = [
        label not in (255, 1) if term == "prototypes" else label != 255 for label in STRIPS["source"]["label"][0, 0]
    ]
    assert [loss != 0 for loss in alone] == known


# ---- which terms there are ----

STAGES = {
    "nothing": ({}, {"source/supervised"}),
    "warm-up": (
        {"adversarial": 0.1},
        {"source/supervised", "source/adversarial.discriminator", "target/adversarial.discriminator",
         "target/adversarial"},
    ),
    "SSL": ({"self_training": 1.0}, {"source/supervised", "target/self_training"}),
    "prototypes": ({"prototypes": 0.1}, {"source/supervised", "source/prototypes", "target/prototypes"}),
    "MPA": (
        {"adversarial": 0.1, "self_training": 1.0, "prototypes": 0.1},
        {"source/supervised", "source/adversarial.discriminator", "source/prototypes", "target/self_training",
         "target/adversarial.discriminator", "target/adversarial", "target/prototypes"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_terms_of_each_stage(stage: str) -> None:
    settings, expected = STAGES[stage]
    method = adaptation(**settings)
    assert {f"{phase}/{term}" for phase in method.phases for term in losses(method, phase)} == expected
    assert method.phases == method.domains == (PHASES if settings else ("source",))
    assert method.learns_labels_of("source")
    # Prototypes of the target are those of its labels, too.
    assert method.learns_labels_of("target") == (stage in ("SSL", "prototypes", "MPA"))


@pytest.mark.parametrize("stage", STAGES)
def test_what_optimisers_train_and_other_stages_take_over(stage: str) -> None:
    settings, _ = STAGES[stage]
    method = adaptation(**settings)
    trained = {"network": method.network}
    if "adversarial" in settings:
        trained["adversarial"] = method.terms["adversarial"]
    assert method.trained_modules() == trained
    expected = {"network": method.network, **{f"terms.{name}": term for name, term in method.terms.items()}}
    assert method.transferable_modules() == expected
    assert method.deployed() is method.network


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were several processes."""
    monkeypatch.setattr("trans4pass.dist.active", lambda: True)


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("stage", STAGES)
def test_every_phase_reaches_every_parameter(stage: str) -> None:
    """Several processes exchange gradients in the last phase, and wait for each that they expect."""
    method = adaptation(Lookup(aux=True, edges=True), **STAGES[stage][0])
    for phase in method.phases:
        method.zero_grad(set_to_none=True)
        sum(losses(method, phase, STRIPS).values()).backward()
        assert all(parameter.grad is not None for parameter in method.parameters())


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("stage", ["warm-up", "prototypes"])
def test_without_its_term_the_targets_labels_teach_nothing(stage: str) -> None:
    """What several processes wait for beyond the terms is zero."""
    method, other = (adaptation(Lookup(aux=True, edges=True), **STAGES[stage][0]) for _ in range(2))
    changed = {"target": {**STRIPS["target"], "label": torch.zeros(1, 1, 12, dtype=torch.int64)}}
    for each, batch in ((method, STRIPS), (other, {**STRIPS, **changed})):
        sum(losses(each, "target", batch).values()).backward()
    assert torch.equal(method.network.logits.grad, other.network.logits.grad)
    for name in ("aux", "fine", "coarse"):
        assert not getattr(method.network, name).grad.any()


def test_without_labels_the_target_gives_zero() -> None:
    method = adaptation(Lookup(aux=True, edges=True), self_training=1.0)
    nothing = {"target": {**STRIPS["target"], "label": torch.full((1, 1, 12), 255)}}
    found = losses(method, "target", nothing)
    sum(found.values()).backward()
    assert [loss.item() for loss in found.values()] == [0, 0, 0]
    assert not any(parameter.grad.any() for parameter in method.parameters() if parameter.grad is not None)
    assert values(method, "target") == values(method, "source") == {}


def test_each_phase_reads_its_own_domain() -> None:
    method = adaptation(adversarial=0.1, self_training=1.0, prototypes=0.1)
    for phase, rows in zip(PHASES, (slice(0, 12), slice(12, GRAY_VALUES)), strict=True):
        method.zero_grad(set_to_none=True)
        sum(losses(method, phase, {phase: BATCH[phase]}).values()).backward()
        for table in (method.network.logits, method.network.features):
            touched = table.grad.any(1)
            assert touched[rows].any() and touched.sum() == touched[rows].sum()


def test_supervised_reads_the_source_only() -> None:
    method = supervised()
    assert method.phases == method.domains == ("source",)
    assert set(losses(method, "source", {"source": BATCH["source"]})) == {"supervised"}


def test_each_terms_values_are_logged_by_its_name() -> None:
    class Valued(Segmentation):
        def forward(self, passed: ForwardPass, norms: Mapping[str, Tensor]) -> Losses:
            return super().forward(passed, norms)._replace(values={"seen": torch.tensor(1)})

    network = Lookup()
    method = SumOfTerms(network, {name: Valued(network, CrossEntropy()) for name in ("one", "two")})
    assert set(values(method, "source")) == {"one.seen", "two.seen"}
