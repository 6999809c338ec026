"""The teacher: what it labels, what it weighs, how it follows, what is deployed."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.small import tiny_segmentor, various_network
from trans4pass import create_model
from trans4pass.data import YawRoll
from trans4pass.errors import ConfigError
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Entropy, MeanTeacher, Pass, PrototypeContrast, Segmentation, Viewed
from trans4pass.methods.teacher import Labelled

from .build import BATCH, Convolution, K, Lookup, random_batch


def seeded(batch: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {domain: {**values, "seed": torch.arange(len(values["image"]))} for domain, values in batch.items()}


def teacher(network: Any = None, **settings: Any) -> MeanTeacher:
    network = network or Lookup()
    terms = {
        "supervised": Segmentation(network, CrossEntropy()),
        "self_training": Segmentation(network, CrossEntropy(), "target"),
    }
    return MeanTeacher(network, terms, **settings).double()


def probabilities(method: MeanTeacher) -> Tensor:
    return method.teacher(BATCH["target"]["image"]).logits.softmax(1)


def test_a_pixel_weighs_its_images_share_of_confident_pixels() -> None:
    method = teacher(threshold=0.65)
    learned = method.targets("target", seeded(BATCH))
    confidence, label = probabilities(method).max(1)
    assert torch.equal(learned["target"]["label"], label)
    for image in range(2):
        sure = sum(float(value) >= 0.65 for value in confidence[image].flatten()) / 6
        assert 0 < sure < 1
        assert torch.allclose(learned["target"]["weight"][image].double(), torch.tensor(sure).double())
    assert learned["source"] is not None and torch.equal(learned["source"]["label"], BATCH["source"]["label"])


def test_with_pixels_only_the_confident_ones_have_a_label() -> None:
    method = teacher(threshold=0.65, weighting="pixels")
    learned = method.targets("target", seeded(BATCH))["target"]
    confidence, label = probabilities(method).max(1)
    assert torch.equal(learned["label"], torch.where(confidence >= 0.65, label, 255))
    assert "weight" not in learned


def test_the_labels_of_the_target_are_never_read() -> None:
    scrambled = seeded(BATCH)
    scrambled["target"] = {**scrambled["target"], "label": torch.full_like(BATCH["target"]["label"], 1)}
    one, other = teacher().targets("target", seeded(BATCH)), teacher().targets("target", scrambled)
    assert torch.equal(one["target"]["label"], other["target"]["label"])
    assert not teacher().learns_labels_of("target") and teacher().learns_labels_of("source")


def test_it_follows_the_network_at_its_momentum_and_faster_at_first() -> None:
    method = teacher(momentum=0.75)
    method.prepare({})
    start = method.network.logits.detach().clone()
    with torch.no_grad():
        method.network.logits += 1
    method.after_step(0)  # 1 - 1/1 = 0: the network itself
    assert torch.allclose(method.teacher.logits, start + 1)
    with torch.no_grad():
        method.network.logits += 1
    method.after_step(1)  # 1 - 1/2
    assert torch.allclose(method.teacher.logits, start + 1.5)
    method.after_step(99)
    assert torch.allclose(method.teacher.logits, start + 0.75 * 1.5 + 0.25 * 2)
    assert method.deployed() is method.teacher
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_without_a_ramp_its_first_steps_are_at_its_momentum() -> None:
    method = teacher(momentum=0.75, ramp=False)
    method.prepare({})
    start = method.network.logits.detach().clone()
    with torch.no_grad():
        method.network.logits += 1
    method.after_step(0)
    assert torch.allclose(method.teacher.logits, start + 0.25)


def test_it_reads_the_context_that_the_network_wrote() -> None:
    network = tiny_segmentor(K)
    method = MeanTeacher(network, {"self_training": Segmentation(network, CrossEntropy(), "target")}, momentum=0.5)
    method.prepare({})
    norm = network.encoder.levels[0][1]
    before = [norm.running_mean.clone(), norm.running_var.clone()]
    network.train()(random_batch()["target"]["image"])
    method.after_step(9)
    taught, ring = method.teacher.context.ring, network.context.ring
    assert int(taught.written) == 2 and torch.equal(taught.read(), ring.read())
    follows = method.teacher.encoder.levels[0][1]  # a BatchNorm's are averaged like weights
    assert torch.allclose(follows.running_mean, (before[0] + norm.running_mean) / 2)
    assert torch.allclose(follows.running_var, (before[1] + norm.running_var) / 2)


def test_it_sees_panoramas_as_a_circular_network_does() -> None:
    network = various_network(K, images := random_batch()["target"]["image"])
    terms = {"self_training": Segmentation(network, CrossEntropy(), "target")}
    method = MeanTeacher(network, terms, wrap=True).eval()
    circular = create_model("trans4pass_micro", K, embed_dim=16, wrap=True).eval()
    circular.load_state_dict(network.state_dict())
    expected = circular(images).logits.softmax(1)
    assert torch.allclose(method.probabilities(images), expected, atol=1e-6)
    assert not torch.allclose(network(images).logits.softmax(1), expected, atol=1e-4)
    with pytest.raises(ConfigError, match="60 pixels wide; wrap=true takes panoramas a multiple of 32"):
        method.probabilities(images[..., :60])


def test_it_starts_as_the_network_that_was_handed_on() -> None:
    method = teacher()
    with torch.no_grad():
        method.network.logits += 3
    method.prepare({})
    assert torch.equal(method.teacher.logits, method.network.logits)
    assert "teacher" not in method.transferable_modules() and "network" in method.transferable_modules()


def test_it_stays_in_eval_mode() -> None:
    method = teacher(Convolution())
    method.train()
    assert method.network.training and not method.teacher.training


def test_views_of_a_network_that_sees_single_pixels_change_nothing() -> None:
    method = teacher()
    image = BATCH["target"]["image"]
    expected = method.probabilities(image)
    method.views = 3
    assert torch.allclose(method.probabilities(image), expected)


def test_views_are_turned_and_mirrored_back() -> None:
    method, image = teacher(Convolution(), views=2), random_batch()["target"]["image"]
    turned = image.roll(32, -1).flip(-1)
    other = method.teacher(turned).logits.softmax(1).flip(-1).roll(-32, -1)
    expected = (method.teacher(image).logits.softmax(1) + other) / 2
    assert torch.allclose(method.probabilities(image), expected)


def test_balanced_thresholds_follow_each_classs_mean_confidence() -> None:
    method = teacher(threshold=0.9, balanced=True, momentum=0.5)
    assert torch.allclose(method.thresholds(), torch.full((K,), 0.9).double())
    confidence, label = probabilities(method).max(1)
    method.targets("target", seeded(BATCH))
    method.after_step(9)
    means = torch.stack([confidence[label == k].mean() for k in range(K)])
    assert means.isfinite().all()
    assert torch.allclose(method.confidence, means, atol=1e-6)
    assert torch.allclose(method.thresholds(), 0.9 * means / means.max(), atol=1e-6)
    method.confidence.fill_(0.5)
    method.targets("target", seeded(BATCH))
    method.after_step(10)
    assert torch.allclose(method.confidence, (0.5 + means) / 2, atol=1e-6)


def test_a_class_that_was_not_predicted_moves_no_threshold_and_one_pixel_counts() -> None:
    method = teacher(balanced=True, momentum=0.5)
    with torch.no_grad():
        method.teacher.logits.zero_()[:, 0] = 1  # all pixels are class 0,
        method.teacher.logits[12, 1] = 3  # but one of class 1; none is class 2
    method.targets("target", seeded(BATCH))
    method.after_step(9)
    often, once = (math.exp(x) / (math.exp(x) + rest) for x, rest in ((1, 2), (3, math.e + 1)))
    assert method.confidence.tolist() == pytest.approx([often, once, math.nan], abs=1e-6, nan_ok=True)
    assert method.thresholds().tolist() == pytest.approx(
        [method.threshold * often / once, method.threshold, method.threshold], abs=1e-6
    )


@pytest.mark.parametrize("weighting", ["share", "pixels"])
def test_what_is_not_seen_has_no_label_and_no_share(weighting: str) -> None:
    """Black pixels: padding, and what lies beyond a tilted panorama."""
    batch = seeded(BATCH)
    batch["target"]["image"] = BATCH["target"]["image"].clone()
    batch["target"]["image"][0, :, 0] = 0
    one, whole = (
        teacher(threshold=0.65, weighting=weighting, balanced=True).targets("target", given)["target"]
        for given in (batch, seeded(BATCH))
    )
    assert (one["label"][0, 0] == 255).all() and torch.equal(one["label"][1], whole["label"][1])
    method = teacher(threshold=0.65, balanced=True)
    method.targets("target", batch)
    assert method._sums[0][1].sum() == (batch["target"]["image"].amax(1) > 0).sum()
    if weighting == "share":
        confidence = method.probabilities(batch["target"]["image"]).max(1).values[0, 1:]
        assert one["weight"][0, 0, 0] == pytest.approx((confidence >= 0.65).double().mean().item())


def test_it_passes_on_what_its_terms_report() -> None:
    class Reporting(Segmentation):
        def after_step(self, step: int) -> dict[str, Tensor]:
            return {"step": torch.tensor(step)}

    network = Lookup()
    method = MeanTeacher(network, {"term": Reporting(network, CrossEntropy(), "target")})
    assert method.after_step(7) == {"term.step": 7}


def test_a_skipped_step_counts_no_confidence() -> None:
    method = teacher(balanced=True)
    method.targets("target", seeded(BATCH))
    method.discard_step()
    method.set_step(1)
    method.after_step(1)
    assert method.confidence.isnan().all()


def test_labels_go_with_the_view() -> None:
    method = teacher(derive={"target": Viewed("target", YawRoll())})
    labelled = teacher().targets("target", seeded(BATCH))["target"]
    learned = method.targets("target", seeded(BATCH))["target"]
    for image in range(2):
        shifts = [s for s in range(3) if torch.equal(labelled["label"][image].roll(s, -1), learned["label"][image])]
        assert any(torch.equal(labelled["image"][image].roll(s, -1), learned["image"][image]) for s in shifts)


def test_labels_are_made_once_for_all_phases() -> None:
    method, batch, calls = teacher(), seeded(BATCH), []
    method.teacher.register_forward_hook(lambda *_: calls.append(1))
    assert method.targets("source", batch) is method.targets("target", batch)
    assert len(calls) == 1
    method.set_step(1)
    method.targets("source", batch)
    assert len(calls) == 2


def test_a_pass_over_the_domain_that_it_teaches_has_its_labels() -> None:
    """In a loop, and where a state is folded over it, as the first prototypes are."""
    method, batch = teacher(), BATCH
    images = [{key: content[i : i + 1] for key, content in batch["target"].items()} for i in range(2)]
    expected = [method.label({"target": one})["target"]["label"] for one in images]
    seen = [batch["label"] for batch in Labelled("target", Pass(images), method)]
    folded = Labelled("target", Pass(images), method).fold(
        lambda state, one: state + one["label"].sum(), torch.tensor(7)
    )
    assert all(map(torch.equal, seen, expected))
    assert folded == 7 + sum(label.sum() for label in expected)


def test_what_cannot_be_taught_is_refused() -> None:
    network = Lookup()
    with pytest.raises(ConfigError, match="the teacher is to label target"):
        MeanTeacher(network, {"supervised": Segmentation(network, CrossEntropy())})


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_entropy_is_one_where_all_classes_are_equally_likely(scale: float) -> None:
    network = Lookup()
    with torch.no_grad():
        network.logits.mul_(scale)
    method = MeanTeacher(network, {"entropy": Entropy(network, 0.5)}, teaches=())
    losses = method("target", seeded(BATCH), method.normalisers("target", BATCH)).losses
    p = network(BATCH["target"]["image"]).logits.softmax(1).detach()
    expected = -sum(float(v) * math.log(float(v)) for v in p.flatten()) / (12 * math.log(K))
    assert losses["entropy"].item() == pytest.approx(0.5 * expected)
    assert scale or losses["entropy"].item() == pytest.approx(0.5)
    batch = seeded(BATCH)  # black pixels, which are not seen, do not count
    batch["target"]["image"] = BATCH["target"]["image"].clone()
    batch["target"]["image"][:, :, 0] = 0
    rest = method("target", batch, method.normalisers("target", batch)).losses["entropy"].item()
    expected = -sum(float(v) * math.log(float(v)) for v in p[:, :, 1:].flatten()) / (6 * math.log(K))
    assert rest == pytest.approx(0.5 * expected)


def test_contrast_is_the_cross_entropy_of_cosines_with_known_prototypes() -> None:
    network = Lookup()
    term = PrototypeContrast(network, 2.0, ["source"], temperature=0.5).double()
    weight = torch.tensor([[[1, 1, 1], [0.5, 1, 1]], [[1, 1, 1], [1, 0.25, 1]]], dtype=torch.float64)
    bank = torch.randn(K, network.feature_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bank[1] = torch.nan
    term.bank.prototypes.copy_(bank)
    method = MeanTeacher(network, {"contrast": term}, teaches=()).double()
    batch = seeded({"source": {**BATCH["source"], "weight": weight}})
    found = method("source", batch, method.normalisers("source", batch)).losses["contrast"]
    features, labels, total, count = network(BATCH["source"]["image"]).features, BATCH["source"]["label"], 0.0, 0
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        if labels[b, i, j] in (255, 1):
            continue
        cosines = [torch.cosine_similarity(features[b, :, i, j], bank[k], dim=0).item() / 0.5 for k in (0, 2)]
        chosen = cosines[0] if labels[b, i, j] == 0 else cosines[1]
        total, count = total + weight[b, i, j].item() * (math.log(sum(map(math.exp, cosines))) - chosen), count + 1
    assert found.item() == pytest.approx(2 * total / count)
