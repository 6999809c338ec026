"""Phases made from others: pasted classes, restyled images, and what they need."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from trans4pass.data import Compose, CoverCrop, GaussianNoise, HorizontalFlip, MaskedPatches, YawRoll
from trans4pass.errors import ConfigError
from trans4pass.losses import CrossEntropy
from trans4pass.methods import ChannelStyle, ClassMix, FourierStyle, Images, Segmentation, SumOfTerms, Viewed
from trans4pass.methods.derived import pasted
from trans4pass.models import channel_statistics

from .build import Lookup


def generators(count: int = 2, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


def batch(size: tuple[int, int] = (16, 24)) -> dict[str, dict[str, Any]]:
    generator, domains = torch.Generator().manual_seed(1), {}
    for number, domain in enumerate(("source", "target")):
        image = 0.1 + 0.4 * (1 + number) * torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
        label = torch.randint(0, 5, (2, *size), generator=generator)
        label[:, :3] = 255
        domains[domain] = {"image": image, "label": label, "name": ["a", "b"], "seed": torch.tensor([3, 4])}
    return domains


def test_half_of_the_classes_rounded_up_are_pasted_whole() -> None:
    label = batch()["source"]["label"]
    seen = set()
    for seed in range(20):
        chosen = pasted(label, generators(seed=2 * seed))
        for image in range(2):
            classes = {int(k) for k in label[image][chosen[image]].unique()}
            assert len(classes) == 3 and 255 not in classes  # of 5
            assert torch.equal(chosen[image], torch.isin(label[image], torch.tensor(sorted(classes))))
            seen.add(frozenset(classes))
    assert len(seen) == 10  # every three of five


def test_pasted_pixels_bring_label_and_weight() -> None:
    domains = batch()
    domains["target"]["weight"] = torch.full((2, 16, 24), 0.25)
    mixed = ClassMix()(domains, generators())
    chosen = pasted(domains["source"]["label"], generators())
    for key in ("label", "image"):
        where = chosen if key == "label" else chosen[:, None].expand(-1, 3, -1, -1)
        assert torch.equal(mixed[key][where], domains["source"][key][where])
        assert torch.equal(mixed[key][~where], domains["target"][key][~where])
    assert torch.equal(mixed["weight"], torch.where(chosen, 1.0, 0.25))


def test_class_mix_needs_one_size() -> None:
    domains = {**batch(), "target": batch((16, 32))["target"]}
    with pytest.raises(ConfigError, match="one batch_size, and views of one size"):
        ClassMix()(domains, generators())


def test_fourier_style_of_itself_changes_nothing_and_takes_the_mean_of_another() -> None:
    domains = batch()
    same = FourierStyle("source", "source")(domains, generators())
    assert torch.allclose(same["image"], domains["source"]["image"], atol=1e-12)
    styled = FourierStyle(beta=0.001)(domains, generators())["image"]  # the window is the mean alone
    means = [x.mean((2, 3)) for x in (styled, domains["target"]["image"])]
    assert (styled < 1).all()  # nothing was clipped
    assert torch.allclose(*means)
    assert torch.allclose(styled - styled.mean((2, 3), True),
                          domains["source"]["image"] - domains["source"]["image"].mean((2, 3), True))  # fmt: skip


def test_fourier_style_exchanges_whole_frequencies_inside_the_window() -> None:
    domains = {"source": batch((8, 12))["source"], "target": batch((16, 24))["target"]}
    styled = FourierStyle(beta=0.25)(domains, generators())["image"]  # 0.25 * 8: up to two waves along a side
    small = F.interpolate(domains["target"]["image"], (8, 12), mode="bilinear")
    amplitudes = [torch.fft.fft2(x).abs() for x in (styled, domains["source"]["image"], small)]
    assert (styled > 0).all() and (styled < 1).all()  # nothing was clipped
    for row in range(8):
        for column in range(12):
            inside = min(row, 8 - row) <= 2 and min(column, 12 - column) <= 2
            assert torch.allclose(amplitudes[0][..., row, column], amplitudes[1 + inside][..., row, column])


def test_fourier_style_stays_an_image() -> None:
    domains = batch()
    domains["target"]["image"] = torch.ones_like(domains["target"]["image"])
    styled = FourierStyle(beta=0.001)(domains, generators())["image"]  # of mean 1, with the source's deviation
    assert styled.max() == 1 and styled.min() >= 0


def test_channel_style_goes_a_drawn_share_of_the_way() -> None:
    domains = batch()
    drawn = [torch.rand((), generator=generator).item() for generator in generators()]
    mean = channel_statistics(ChannelStyle(strength=0.5)(domains, generators())["image"])[0]
    source, target = (channel_statistics(domains[domain]["image"])[0] for domain in ("source", "target"))
    for image, share in enumerate(drawn):
        expected = source[image] + 0.5 * share * (target[image] - source[image])
        assert torch.allclose(mean[image], expected, atol=0.02)


def test_masked_patches_are_black_and_keep_their_labels() -> None:
    domains = batch((64, 64))
    masked = Viewed("target", MaskedPatches(0.5, 16))(domains, generators())
    cells = (masked["image"] == 0).all(1).unflatten(1, (4, 16)).unflatten(3, (4, 16))
    assert torch.equal(cells.all(2).all(-1), cells.any(2).any(-1))  # whole patches
    assert 8 < int(cells.all(2).all(-1).sum()) < 24  # about half of 32
    assert torch.equal(masked["label"], domains["target"]["label"])


def test_noise_has_each_images_own_deviation() -> None:
    domains = batch((64, 64))
    noisy = Viewed("source", GaussianNoise(0.06))(domains, generators())["image"]
    sigmas = [0.06 * torch.rand((), generator=generator).item() for generator in generators()]
    for image, sigma in enumerate(sigmas):
        assert float((noisy - domains["source"]["image"])[image].std()) == pytest.approx(sigma, rel=0.05)


def test_what_a_phase_is_made_of_is_loaded_and_its_labels_are_needed() -> None:
    network = Lookup()
    terms = {"mixed": Segmentation(network, CrossEntropy(), "mixed")}
    method = SumOfTerms(network, terms, derive={"mixed": ClassMix()})
    assert set(method.domains) == {"source", "target"} and method.phases == ("mixed",)
    assert method.learns_labels_of("source") and method.learns_labels_of("target")
    styled = SumOfTerms(network, {"s": Segmentation(network, CrossEntropy())}, derive={"source": FourierStyle()})
    assert set(styled.domains) == {"source", "target"} and not styled.learns_labels_of("target")
    both = {"styled": FourierStyle(), "mixed": ClassMix(source="styled", target="other")}
    chain = SumOfTerms(network, terms, derive=both)
    assert set(chain.domains) == {"source", "target", "other"}
    assert [chain.learns_labels_of(domain) for domain in ("source", "target", "other")] == [True, False, True]
    off = SumOfTerms(network, {"s": Segmentation(network, CrossEntropy())}, derive={"mixed": None})
    assert set(off.domains) == {"source"}
    with pytest.raises(ConfigError, match="derive makes mixed, and no term learns"):
        SumOfTerms(network, {"s": Segmentation(network, CrossEntropy())}, derive={"mixed": ClassMix()})


def test_sizes_are_known_through_several_views() -> None:
    """A crop behind another view is what is pasted into; a view without a size leaves the images' own."""
    images = {"source": Images(2, (32, 16), False), "target": Images(2, (64, 16), True)}
    crop = Compose({"roll": YawRoll(), "crop": CoverCrop((32, 16)), "flip": HorizontalFlip()})
    images["cropped"] = Viewed("target", crop).check(images)
    assert images["cropped"] == Images(2, (32, 16), False)
    assert ClassMix(target="cropped").check(images) == images["cropped"]
    images["rolled"] = Viewed("target", YawRoll()).check(images)
    assert images["rolled"] == images["target"]
    with pytest.raises(ConfigError, match=r"rolled has 2 images of \(64, 16\), source 2 of \(32, 16\)"):
        ClassMix(target="rolled").check(images)
