"""What adaptation does around its terms: prototypes from and for the features, steps, settings."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import slow
from trans4pass.errors import ConfigError
from trans4pass.losses import HardPixelCrossEntropy
from trans4pass.methods import Adversarial, Pass, PrototypeDistillation, Segmentation, SumOfTerms, Term
from trans4pass.settings import checked

from .build import (
    BATCH,
    PROTOTYPES,
    Convolution,
    E,
    K,
    Lookup,
    adaptation,
    bank,
    losses,
    random_batch,
    seen,
    supervised,
)

PHASES = ("source", "target")
PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def class_means(features: Tensor, labels: Tensor) -> dict[int, list[float]]:
    """By class, the mean feature of the pixels with that label."""
    vectors: dict[int, list[list[float]]] = {}
    for vector, label in zip(slow.by_pixel(features), labels.flatten().tolist(), strict=True):
        if label != slow.IGNORED:
            vectors.setdefault(label, []).append(vector)
    return {label: [sum(column) / len(rows) for column in zip(*rows)] for label, rows in vectors.items()}


def halves(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The two images of a batch in batches of their own."""
    return [{key: value[n : n + 1] for key, value in batch.items()} for n in (0, 1)]


def stepped(method: SumOfTerms, batch: dict = BATCH, step: int = 0) -> dict[str, Tensor]:
    for phase in PHASES:
        losses(method, phase, batch)
    return method.after_step(step)


# ---- the bank ----


@pytest.mark.parametrize("flavour", ["fixed", "paper", "official"])
def test_a_step_moves_the_prototypes_by_both_domains_features(flavour: str) -> None:
    method = adaptation(prototypes=1.0, flavour=flavour, momentum=0.75, update_every=1, bank_scales=(1.0,))
    logged = stepped(method)
    features = method.network.features.detach()
    means = [class_means(seen(features, BATCH[phase]["image"]), BATCH[phase]["label"]) for phase in PHASES]
    for k, row in enumerate(bank(method).prototypes.tolist()):
        # Each class is in both domains.
        centre = [(one + other) / 2 for one, other in zip(means[0][k], means[1][k])]
        if flavour == "official":
            centre = [sum(centre) / E] * E
        old = PROTOTYPES[k].tolist() if k != 1 else centre
        assert row == [slow.approx(0.75 * o + 0.25 * c) for o, c in zip(old, centre)]
    norms = bank(method).prototypes.square().sum(1).sqrt()
    assert logged == {"prototypes.norm": slow.approx(norms.mean().item())}


def test_the_norm_that_is_logged_leaves_out_what_is_not_there() -> None:
    method = adaptation(prototypes=1.0, update_every=1, momentum=1.0)
    logged = method.after_step(0)
    norms = PROTOTYPES[[0, 2]].square().sum(1).sqrt()
    assert logged == {"prototypes.norm": slow.approx(norms.sum().item() / 3)}


def test_a_micro_batch_adds_to_its_own_domain() -> None:
    """Two of a domain are one mean of all their pixels, not two means."""
    method = adaptation(prototypes=1.0, momentum=0.0, update_every=1)
    for half in halves(BATCH["source"]):
        losses(method, "source", {"source": half})
    method.after_step(0)
    means = class_means(seen(method.network.features.detach(), BATCH["source"]["image"]), BATCH["source"]["label"])
    assert bank(method).prototypes[1].tolist() == [slow.approx(value) for value in means[1]]


def test_prototypes_wait_for_their_step_and_a_discarded_one_leaves_nothing() -> None:
    method = adaptation(prototypes=1.0, update_every=3)
    assert [bool(stepped(method, step=step)) for step in range(4)] == [False, False, True, False]
    method = adaptation(prototypes=1.0, update_every=1)
    losses(method, "source")
    method.discard_step()
    method.after_step(0)
    assert torch.equal(bank(method).prototypes.nan_to_num(), PROTOTYPES.nan_to_num())


def test_without_prototypes_steps_log_nothing() -> None:
    method = adaptation()
    method.discard_step()
    assert method.after_step(0) == {}
    method.prepare({})


@pytest.mark.parametrize("build", [supervised, adaptation])
def test_the_sources_loss_follows_the_steps(build: Any) -> None:
    loss = HardPixelCrossEntropy()
    build(loss=loss).set_step(4)
    assert loss.step == 4


# ---- features at several scales ----


def averaged(network: Convolution, images: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """The network's features, as in evaluation, at images of these sizes, resized and averaged."""
    network.eval()
    total = 0
    with torch.no_grad():
        for size in sizes:
            scaled = F.interpolate(images / 255, size, mode="bilinear", align_corners=False)
            features = network(scaled).features
            total += F.interpolate(features, (16, 16), mode="bilinear", align_corners=True) / len(sizes)
    return total


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"bank_scales": (0.5, 1.0)}, (0.5, 1.0)),
        ({"bank_scales": [2.0]}, (2.0,)),
        ({"flavour": "paper"}, PAPER_SCALES),
        ({"flavour": "paper", "bank_scales": [1.5]}, (1.5,)),
    ],
)
def test_the_bank_gets_features_averaged_over_scales(settings: dict, scales: tuple[float, ...]) -> None:
    method = adaptation(Convolution(), prototypes=1.0, momentum=0.0, update_every=1, **settings)
    batch = random_batch()
    losses(method, "source", batch)
    assert method.network.training
    method.after_step(0)
    expected = averaged(method.network, batch["source"]["image"], [(round(64 * s), round(64 * s)) for s in scales])
    means = class_means(expected, batch["source"]["label"][:, ::4, ::4])
    assert bank(method).prototypes.tolist() == [pytest.approx(means[k], abs=1e-6) for k in range(K)]


@pytest.mark.parametrize("flavour", ["fixed", "official"])
def test_by_itself_the_bank_gets_the_training_features(flavour: str) -> None:
    method = adaptation(Convolution(), prototypes=1.0, flavour=flavour, momentum=0.0, update_every=1)
    batch = random_batch()
    stepped(method, batch)
    features = [2 * averaged(method.network, batch[phase]["image"], [(64, 64)]) for phase in PHASES]
    means = [class_means(x, batch[phase]["label"][:, ::4, ::4]) for x, phase in zip(features, PHASES)]
    for k in range(K):
        centre = [(one + other) / 2 for one, other in zip(means[0][k], means[1][k])]
        centre = [sum(centre) / E] * E if flavour == "official" else centre
        assert bank(method).prototypes[k].tolist() == pytest.approx(centre, abs=1e-6)


@pytest.mark.parametrize(
    ("scale", "size", "left", "right"),
    [
        # 72 columns are brought to 64, a multiple of 32. Of the 16 columns of features, which become 24, the outermost
        # get 1/6 of the other side's.
        (0.75, (48, 64), 1 / 6, 5 / 6),
        # 120 columns become 128, the first of which gets 1/8 of the other side's. The features' first column gets 5/6
        # of it, and nothing of the other side.
        (1.25, (80, 128), 5 / 6 / 8, 1.0),
    ],
)
def test_panoramas_are_resized_in_the_round(scale: float, size: tuple[int, int], left: float, right: float) -> None:
    """The network shows the red channel of every fourth pixel of the image that it is given."""
    network = Convolution(wrap=True)
    with torch.no_grad():
        network.body.weight.zero_()
        network.body.bias.zero_()
        network.body.weight[:, 0, 1, 1] = 1
    sizes: list[tuple[int, int]] = []
    network.register_forward_hook(lambda module, given, result: sizes.append(tuple(given[0].shape[2:])))
    method = adaptation(network, prototypes=1.0, momentum=0.0, update_every=1, bank_scales=(scale,))
    image = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    image[..., 48:] = 255
    label = torch.full((1, 64, 96), 255)
    label[..., :4], label[..., -4:] = 0, 1  # one column of features at each side
    losses(method, "source", {"source": {"image": image, "label": label}})
    assert sizes == [(64, 96), size]
    method.after_step(0)
    assert bank(method).prototypes[:2, 0].tolist() == pytest.approx([left, right], abs=1e-6)


# ---- the first prototypes ----


@pytest.mark.parametrize("scales", [None, (0.5, 1.0)])
@pytest.mark.parametrize(("training", "together"), [(True, False), (False, False), (False, True)])
def test_prototypes_start_from_what_is_right_as_in_evaluation(training: bool, together: bool, scales: Any) -> None:
    """Image by image, or several at once."""
    """The prediction is class 1 everywhere, so that only its pixels can be right."""
    network = Convolution().train(training)
    with torch.no_grad():
        network.classify.weight.zero_()
        network.classify.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    method, batch = adaptation(network, prototypes=1.0, bank_scales=scales), random_batch()
    bank(method).prototypes.fill_(torch.nan)
    method.prepare({domain: Pass([batch[domain]] if together else halves(batch[domain])) for domain in PHASES})
    assert network.training == training
    sizes = [(round(64 * scale), round(64 * scale)) for scale in scales or (1.0,)]
    means = [
        class_means(averaged(network, batch[domain]["image"][n : n + 1], sizes), batch[domain]["label"][n, ::4, ::4])
        for domain, n in product(PHASES, (0, 1))
    ]
    expected = [sum(mean[1][channel] for mean in means) / 4 for channel in range(E)]
    assert bank(method).prototypes[1].tolist() == pytest.approx(expected, abs=1e-6)
    assert bank(method).prototypes[[0, 2]].isnan().all()
    assert not bank(method).prototypes.requires_grad


# ---- settings ----


@pytest.mark.parametrize(
    ("term", "settings", "words"),
    [
        (Segmentation, {"weight": 0}, "term.weight is 0"),
        (Adversarial, {"weight": -0.1}, r"term.weight is -0\.1"),
        (PrototypeDistillation, {"weight": -0.1}, r"term.weight is -0\.1"),
        (PrototypeDistillation, {"temperature": 0}, "term.temperature is 0"),
        (PrototypeDistillation, {"temperature": -1.0}, "temperature"),
        (PrototypeDistillation, {"alpha": -0.1}, "alpha"),
        (PrototypeDistillation, {"alpha": 1.1}, "alpha"),
        (PrototypeDistillation, {"bank_scales": ()}, "bank_scales"),
        (PrototypeDistillation, {"bank_scales": (1.0, 0)}, r"bank_scales\.1 is 0"),
        (PrototypeDistillation, {"bank_scales": (-1.0,)}, "bank_scales"),
        (PrototypeDistillation, {"flavour": "fixd"}, "'fixd'.*'fixed', 'official' or 'paper'"),
        (PrototypeDistillation, {"momentum": 1.5}, r"momentum is 1\.5"),
        (PrototypeDistillation, {"momentum": -0.1}, r"momentum is -0\.1"),
        (PrototypeDistillation, {"update_every": 0}, "update_every is 0"),
        (Segmentation, {"aux_weight": -0.1}, "aux_weight"),
        (Segmentation, {"edge_weight": -0.1}, "edge_weight"),
        (Segmentation, {"edge_radius": 0}, "edge_radius"),
    ],
)
def test_bad_settings_are_refused(term: type[Term], settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        checked(term, settings, "term", bound=("network", "loss"))


@pytest.mark.parametrize("settings", [{"alpha": 0}, {"alpha": 1}, {"temperature": 0.5}, {"bank_scales": (0.5,)}])
def test_settings_at_their_bounds_are_taken(settings: dict) -> None:
    settings = checked(PrototypeDistillation, settings, "term", bound=("network",))
    assert losses(adaptation(prototypes=1.0, **settings), "source")["prototypes"].isfinite()


@pytest.mark.parametrize("name", ["a.b", "type"])
def test_a_term_needs_a_name_that_a_module_can_have(name: str) -> None:
    network = Lookup()
    with pytest.raises(ConfigError, match=rf"cannot be called \['{name}'\]"):
        SumOfTerms(network, {name: Adversarial(network)})
    with pytest.raises(ConfigError, match="a term or more"):
        SumOfTerms(network, {})


def test_prototypes_that_came_along_are_not_started_anew() -> None:
    method = adaptation(prototypes=1.0)
    method.prepare({domain: Pass([]) for domain in PHASES})
    assert torch.equal(bank(method).prototypes.nan_to_num(), PROTOTYPES.nan_to_num())
