"""The weather world: what each strength does to pictures, and that neither labels nor the default world move."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trans4pass.errors import ConfigError
from trans4pass.toy_world import ToyWorld, ensure, lighting, rays, render_image, scene, shading, weather
from trans4pass.toy_world.weather import STRENGTHS, Weather, draw_weather

from .test_toy_world import LABEL_IDS

TINY = ToyWorld(pinhole_size=(32, 16), panorama_size=(60, 12), appearance=0.0)
EVERYTHING = dict.fromkeys(STRENGTHS, 1.0)


def float32(values) -> np.ndarray:
    return np.array(values, np.float32)


def under(monkeypatch, index=0, world=TINY, **strengths) -> np.ndarray:
    """Target image `index` of `world` in this very weather, as numbers."""
    monkeypatch.setattr("trans4pass.toy_world.writing.draw_weather", lambda *_, **__: Weather(**strengths))
    return render_image(world, "target", "train", index)[0].astype(int)


def test_the_default_world_is_the_one_before_there_was_weather():
    """Labels to the byte, and the brightness, which another processor may round differently."""
    labels, looks = hashlib.sha256(), []
    for domain, index in (("source", 0), ("source", 7), ("target", 0), ("target", 7)):
        image, label_ids = render_image(ToyWorld(), domain, "train", index)
        labels.update(label_ids.tobytes())
        looks.append(image.mean().item())
    assert labels.hexdigest() == "72b703ed5d345dacb690940cbd705535930a46e42a4b1e9ae669660f5964fec2"
    assert looks == pytest.approx([101.37, 92.311, 93.339, 106.476], abs=0.01)


def test_weather_is_drawn_for_the_target_alone_and_never_moves_a_label():
    clear, wild = TINY, replace(TINY, **EVERYTHING)
    changed = 0
    for index in range(12):
        (before, labels), (after, same) = (render_image(world, "target", "train", index) for world in (clear, wild))
        np.testing.assert_array_equal(labels, same)
        changed += (before != after).any()
    assert 6 <= changed < 12  # some panoramas draw none
    for domain in ("source", "synthetic"):
        for one, other in zip(render_image(clear, domain, "train", 0), render_image(wild, domain, "train", 0)):
            np.testing.assert_array_equal(one, other)


def test_the_mix_is_drawn_by_the_seed_and_each_strength_changes_its_own_kind():
    drawn = [draw_weather(np.random.default_rng(seed), **EVERYTHING) for seed in range(400)]
    assert drawn == [draw_weather(np.random.default_rng(seed), **EVERYTHING) for seed in range(400)]
    shares = {name: np.mean([getattr(one, name) > 0 for one in drawn]) for name in STRENGTHS}
    expected = {"fog": 0.25, "rain": 0.25, "low_sun": 0.25, "night": 0.3, "dirt": 0.4}
    assert shares == pytest.approx(expected, abs=0.08)
    assert all(getattr(one, name) == 0 or 0.5 <= getattr(one, name) <= 1 for one in drawn for name in STRENGTHS)
    dry = [draw_weather(np.random.default_rng(seed), **{**EVERYTHING, "rain": 0.0}) for seed in range(400)]
    assert dry == [one._replace(rain=0.0) for one in drawn]
    nothing = dict.fromkeys(STRENGTHS, 0.0)
    assert {draw_weather(np.random.default_rng(seed), **nothing) for seed in range(40)} == {Weather()}


@pytest.mark.parametrize("kind", STRENGTHS)
def test_more_of_a_weather_changes_more(kind, monkeypatch):
    clear = under(monkeypatch)
    change = [np.abs(under(monkeypatch, 0, TINY, **{kind: strength}) - clear).mean() for strength in (0.3, 1.0)]
    assert 0.5 < change[0] < change[1]


def test_fog_hides_by_distance():
    """A grey of 1 behind 10 and 20 m of fog: the light of what lies behind falls by the same share per metre."""
    look = shading.draw_look(np.random.default_rng(0), 0.0)._replace(fog=0.1, ambient=1 / 1.05, sun=0.0)
    level = float32([[1, 1], [0, 0], [0, 0]])
    seen = shading._shade_air(np.zeros((3, 2), np.float32), level, float32([10, 20]), np.zeros(3), look)
    np.testing.assert_allclose(seen, np.tile(1 - np.exp([-1.0, -2.0]), (3, 1)), rtol=1e-5)
    up = float32([[0], [0.8], [0.6]])  # into the sky: 45 m of height are 75 m along the ray
    sky = shading._shade_air(np.zeros((3, 1), np.float32), up, float32([1e4]), np.zeros(3), look._replace(fog=0.01))
    np.testing.assert_allclose(sky, 1 - np.exp(-0.75), rtol=1e-5)


def test_a_box_shadows_the_ground_behind_it_and_nothing_else():
    """A box 2 m high at the origin under a sun in the south at 45 degrees: its shadow ends 2 m behind it."""
    shapes = np.zeros(1, scene.SHAPE)
    shapes["half"], shapes["centre"] = (1, 1, 1), (0, 0, 1)
    box = scene.Scene(None, shapes)  # type: ignore[arg-type]
    ground = float32([(0, 0, 0, 5, -40, 40), (2, 2.8, 3.5, 2, 40, 40), (0, 0, 0, 0, 0, 0)])
    dark = lighting.in_shadow(box, ground, np.full(6, 1), np.array([0, -(0.5**0.5), 0.5**0.5]))
    assert dark.tolist() == [True, True, False, False, False, False]
    back = float32([(0, 0.5), (1, 1), (0.5, 1)])  # of the box itself, which its direction darkens already
    assert not lighting.in_shadow(box, back, np.zeros(2, int), np.array([0, -(0.5**0.5), 0.5**0.5])).any()


def test_a_lamp_lights_what_is_below_it():
    lamp = float32([[0], [0], [4]])
    below, beside, far = lighting.lamplight(float32([(0, 4, 40), (0, 0, 0), (0, 0, 0)]), lamp)
    assert below == pytest.approx(2.2 / 2)  # 4 m: half of it by distance
    assert beside == pytest.approx(2.2 * 0.5**0.5 / 3)
    assert far < 0.01


def test_lamps_hang_at_the_ends_of_their_arms():
    builder = scene.Builder(np.random.default_rng(0))
    builder.lamp(scene.Place(3.0, 0.0, 0.0))
    x, y, z = lighting.lamp_heads(scene.Scene(None, np.array(builder.rows, scene.SHAPE)))[:, 0]  # type: ignore[arg-type]
    assert (x, y) == (pytest.approx(1.1), pytest.approx(0.0))  # 0.9 m to the arm's middle, 1 m on to its end
    assert 4 < z < 7


def test_wet_roads_mirror_what_is_as_far_above_the_horizon():
    camera = rays.pinhole_camera(rays.Pinhole(2, 2, 90.0), np.zeros(3), 0.0)
    colours = np.zeros((3, 5, 5), np.float32)
    colours[:, 0, 2] = 1.0
    labels = np.full((5, 5), scene.TERRAIN, np.uint8)
    assert weather._wet(colours, labels, camera, 1.0)[0, 4].tolist() == [0] * 5
    labels[4] = scene.ROAD
    wet = weather._wet(colours, labels, camera, 1.0)[0, 4]
    assert wet.tolist() == pytest.approx([0, 0, 0.75 * (1 - 0.5**0.5) ** 2, 0, 0])  # the ray falls at 45 degrees


@pytest.mark.parametrize("kind", ["rain", "dirt"])
def test_drops_and_dirt_go_round_the_seam(kind):
    draw = weather._streaks if kind == "rain" else weather._blots
    cover = draw((25, 121), 3.0, np.random.default_rng(0), True)
    np.testing.assert_allclose(cover[:, 0], cover[:, -1], atol=1e-6)
    assert cover.max() > 0.2 and cover.min() < 0.05


def test_blurring_keeps_the_mean_and_the_seam():
    colours = np.random.default_rng(0).random((3, 9, 21), np.float32)
    colours[..., -1] = colours[..., 0]
    blurred = weather._blurred(colours, wraps=True)
    assert blurred.shape == colours.shape
    np.testing.assert_array_equal(blurred[..., 0], blurred[..., -1])
    np.testing.assert_allclose(weather._blurred(np.ones_like(colours), wraps=True), 1.0, rtol=1e-6)
    assert blurred.std() < 0.5 * colours.std()


def test_other_streets_go_from_the_targets_to_the_others():
    target = scene.streets_between(1.0)
    assert scene.other_streets(target, 0.0) == target
    assert scene.other_streets(target, 1.0) == {**target, **scene.OTHER_STREETS}
    assert scene.other_streets(target, 0.5)["cars"] == (pytest.approx(0.7), pytest.approx(2.9))


def test_things_move_labels_of_the_target_alone():
    other = replace(TINY, things=1.0)
    assert (render_image(TINY, "target", "train", 0)[1] != render_image(other, "target", "train", 0)[1]).mean() > 0.02
    one, same = (render_image(world, "synthetic", "train", 0)[1] for world in (TINY, other))
    np.testing.assert_array_equal(one, same)


def test_every_class_still_occurs_in_the_weather_world():
    world = ToyWorld(things=0.5)
    labels = np.stack([render_image(world, "target", "train", index)[1] for index in range(12)])
    shares = {name: (labels == label_id).mean() for name, label_id in LABEL_IDS.items()}
    assert min(shares.values()) > 0.003, shares


def test_synthetic_panoramas_are_written_with_labels_in_densepass_layout(tmp_path: Path):
    counts: dict[str, Any] = {"source_train": 1, "source_val": 0, "target_train": 1, "target_val": 0}
    counts["synthetic_train"] = 1
    ensure(tmp_path, pinhole_size=(32, 16), panorama_size=(60, 12), **counts)
    written = {str(path.relative_to(tmp_path / "synthetic")) for path in (tmp_path / "synthetic").rglob("*.png")}
    assert written == {"leftImg8bit/train/streets/0_.png", "gtFine/train/streets/0_labelTrainIds.png"}


def test_synthetic_panoramas_are_streets_of_their_own_in_the_sources_looks():
    clear, shifted = (replace(TINY, appearance=strength) for strength in (0.0, 1.0))
    images = [render_image(world, "synthetic", "train", 0) for world in (clear, shifted)]
    np.testing.assert_array_equal(images[0][0], images[1][0])
    assert images[0][1].shape == (12, 60)
    assert (images[0][1] != render_image(clear, "target", "train", 0)[1]).any()


def test_a_world_rendered_before_there_was_weather_is_still_the_default(tmp_path: Path):
    settings: dict[str, Any] = {"pinhole_size": (32, 16), "panorama_size": (60, 12), "source_train": 1}
    settings |= dict.fromkeys(("source_val", "target_train", "target_val"), 0)
    ensure(tmp_path, **settings)
    marker = json.loads((tmp_path / "toy_world.json").read_text())
    later = {*STRENGTHS, "things", "synthetic_train"}
    assert later < set(marker)
    old = {key: value for key, value in marker.items() if key not in later}
    (tmp_path / "toy_world.json").write_text(json.dumps(old))
    ensure(tmp_path, progress=lambda *_: pytest.fail("rendered again"), **settings)
    with pytest.raises(ConfigError, match=r"\(fog: 0 there, 1\.0 asked for\)"):
        ensure(tmp_path, fog=1.0, **settings)
