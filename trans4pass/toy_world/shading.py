"""How it looks: the colours and labels of what the rays meet, and the image that a camera makes of them."""

import functools
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from .lighting import WARM, halo, in_shadow, lamplight
from .rays import FAR, Camera, turn
from .scene import BOX, BRICKS, CARBODY, DISC, FACADE, LEAVES, ROAD, SIDEWALK, SKY, TERRAIN, Scene, from_hex

PANES = from_hex("293040 8599b0")[..., None]  # of windows, darkest and brightest (2,3,1)
LAMPS = from_hex("f2edcc bf0d0d")[..., None]  # of cars, front and back (2,3,1)
GROUND = from_hex("4f4f57 998c82 6b7333")  # of road, sidewalk and terrain
ZENITH, HORIZON = from_hex("6b9ef2 ebf2ff")[..., None]  # (3,1) each


FOG_HEIGHT = 45.0  # m
STRENGTH_MAX = 1.3  # a target image's strength is uniform from 0 to this times the setting: always strong is too hard


# ----------------------------------------------------------------------------------------------- colours: (3,n) each


class Look(NamedTuple):
    """Light, air and camera of one image."""

    sun: float  # strength of the direct light
    towards_sun: np.ndarray  # (3,) unit vector
    ambient: float  # strength of the sky's light
    clouds: float  # threshold, 0 few .. 1 many
    hue: float  # rotation of the materials' colours, degrees
    haze: float  # share of the light lost per metre
    cast: np.ndarray  # (3,) gains of red, green and blue
    contrast: float  # gain around middle grey
    saturation: float  # gain
    noise: float  # standard deviation, full scale 1
    ground: np.ndarray  # (3,3) gains of red, green and blue (columns) of road, sidewalk and terrain (rows)
    drift: np.ndarray  # (2,1) offset of the clouds, cells of the noise map
    # Below, the weather's (`weather.relight`); unset, there is none.
    fog: float = 0.0  # share of the light lost per metre of fog, which is grey and hides the sky too
    night: float = 0.0  # strength of lit windows and cars
    lamps: np.ndarray = np.empty((3, 0), np.float32)  # (3,L) street lamps that are on, m
    shadows: float = 0.0  # share of the direct light that shadows take
    sun_colour: np.ndarray = np.ones((3, 1), np.float32)  # gains of red, green and blue


def draw_look(rng: Generator, strength: float) -> Look:
    """The source's natural variation, moved by the target's shift.

    At strength 1 the shift is what is written here; at strength s its gains act to the power of s, all others s times.
    """
    azimuth, elevation = np.deg2rad(rng.uniform((0, 25), (360, 60)))
    return Look(
        sun=rng.uniform(0.45, 0.75) * 0.45**strength,  # dim and soft
        towards_sun=direction(azimuth, elevation),
        ambient=rng.uniform(0.55, 0.75) * 0.92**strength,
        clouds=rng.uniform(0, 1),
        hue=rng.uniform(-8, 8) + 35 * strength,
        haze=rng.uniform(0.001, 0.004) + 0.014 * strength,
        cast=(rng.uniform(0.95, 1.05, 3) * np.array((1.22, 1.0, 0.74)) ** strength).astype(np.float32),
        contrast=rng.uniform(0.95, 1.1) * 0.72**strength,
        saturation=rng.uniform(0.9, 1.15) * 0.62**strength,
        noise=rng.uniform(0.005, 0.015) + 0.025 * strength,
        ground=rng.uniform(0.85, 1.15, (3, 1)) * rng.uniform(0.95, 1.05, (3, 3)),
        drift=rng.uniform(0, 256, (2, 1)).astype(np.float32),
    )


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """The unit vector, float32 (3,), `azimuth` radians clockwise from +y and `elevation` above the horizon."""
    level = np.cos(elevation)
    return np.array([level * np.sin(azimuth), level * np.cos(azimuth), np.sin(elevation)], np.float32)


def shade(
    scene: Scene, camera: Camera, depth: np.ndarray, hit: np.ndarray, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Colours, float32 (3,R,C) from 0 upwards, and label ids, uint8 (R,C), of what `trace` found."""
    rays = np.stack(np.broadcast_arrays(*camera.plan, camera.rise[:, None])).reshape(3, -1)  # (3,R*C)
    length, t, found, count = np.sqrt((rays**2).sum(axis=0)), depth.ravel(), hit.ravel(), len(scene.shapes)
    points, distance = camera.position.astype(np.float32)[:, None] + t * rays, t * length
    shapes, ground, sky = (np.flatnonzero(kind) for kind in (found < count, found == count, found > count))

    colours, labels = np.empty_like(rays), np.full(found.shape, SKY, np.uint8)
    labels[shapes] = scene.shapes["label"][found[shapes]]
    colours[:, shapes] = _shade_shapes(scene, found[shapes], points[:, shapes], distance[shapes], look)
    labels[ground], colours[:, ground] = _shade_ground(scene, found[ground], points[:, ground], distance[ground], look)
    colours[:, sky] = _shade_sky(rays[:, sky] / length[sky], look)
    distance[sky] = 0  # the haze is in its colours
    glow = HORIZON * (look.ambient + 0.3 * look.sun)
    colours = glow + (colours - glow) * np.exp(-look.haze * distance)
    if look.fog > 0 or look.lamps.size:
        distance[sky] = FAR
        colours = _shade_air(colours, rays / length, distance, camera.position, look)
    return colours.reshape(3, *hit.shape), labels.reshape(hit.shape)


def _light(scene: Scene, index: np.ndarray, points: np.ndarray, look: Look) -> tuple[np.ndarray, np.ndarray]:
    """The look's direct light and that of lamps, gains (3,n) each, at `points` (3,n) of shapes `index` (n,).

    All of the sun and no lamps, unless the weather says more.
    """
    sun = np.broadcast_to(look.sun_colour, points.shape)
    if look.shadows > 0:
        sun = sun * (1 - np.float32(look.shadows) * in_shadow(scene, points, index, look.towards_sun))
    return sun, WARM * lamplight(points, look.lamps)


def _shade_air(colours: np.ndarray, rays: np.ndarray, distance: np.ndarray, position: np.ndarray, look: Look):
    """`colours` (3,n) seen through `distance` (n,) m of fog along unit vectors `rays` (3,n), and the lamps' glare."""
    grey = np.float32(1.05 * (look.ambient + 0.3 * look.sun))
    depth = np.minimum(distance, FOG_HEIGHT / rays[2].clip(1e-3))  # above its upper side there is none
    clear = np.exp(-np.float32(look.fog) * depth)
    glare = WARM * halo(rays, distance, position, look.lamps, 0.02 + look.fog)
    return grey + (colours - grey) * clear + glare


def _shade_sky(rays: np.ndarray, look: Look) -> np.ndarray:
    """The sky in the directions of the unit vectors `rays` (3,n): a gradient, and clouds on a plane high above."""
    blue = np.sqrt(rays[2].clip(0))
    clear = HORIZON + (ZENITH - HORIZON) * blue
    clouds = (look.clouds - 0.8 + 0.6 * _noise(*(rays[:2] / (rays[2] + 0.15) * 12 + look.drift))).clip(0, 0.8)
    return (clear * (1 - clouds) + clouds) * (look.ambient + 0.3 * look.sun)


def _shade_ground(
    scene: Scene, index: np.ndarray, points: np.ndarray, distance: np.ndarray, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Label ids (n,) and colours (3,n) of `points` (3,n) on the ground, shape `index` (n,), `distance` (n,) m away."""
    street, (x, y, _) = scene.street, points
    across = x - street.middle(y)
    beside, before = np.abs(across) - street.road, np.abs(y - street.crossing) - street.crossing_road
    beyond = np.minimum(beside, before)  # m beyond the kerb of the nearer street
    zone = np.searchsorted((0, street.verge, street.verge + street.sidewalk), beyond, side="right")
    road, walk, grass = zone == 0, zone == 2, zone % 2 == 1

    fine = np.exp(-distance / 30)  # what is finer than a pixel fades
    lines = (np.abs(across) < 0.12) & (y % 6 < 3) & (before > 3) | (np.abs(beside + 0.25) < 0.1) & (before > 0)
    zebra = (np.abs(before - 1.8) < 1.3) & (across % 1.2 < 0.6)
    joints = walk & ((x % 1 < 0.1) | (y % 1 < 0.1))
    kerb = walk & (beyond < street.verge + 0.25)
    tone = 1 + 0.06 * fine * _noise(x * 9, y * 9) + 0.05 * _noise(x, y)
    tone[grass] += 0.1 * _noise(x[grass] * 5, y[grass] * 5)
    tone[joints] -= 0.2 * fine[joints]
    tone[kerb] += 0.2
    tone *= 1 - 0.35 * np.exp(-np.abs(street.front - beyond) / 0.5)  # the foot of the houses is dark

    surfaces = _rotate_hue(GROUND * look.ground, look.hue)
    albedo = np.take(surfaces.T, np.where(road, 0, np.where(walk, 1, 2)), axis=1) * tone
    albedo[:, road & (lines | zebra)] = 0.85
    label = np.where(road, ROAD, np.where(walk, SIDEWALK, TERRAIN)).astype(np.uint8)
    sun, lamps = _light(scene, index, points, look)
    return label, albedo * (look.ambient + look.sun * look.towards_sun[2] * sun + lamps)


class Surface(NamedTuple):
    """Points on the surfaces of shapes."""

    seed: np.ndarray  # (n,) the shape's number, float32: sets its texture off from its neighbours'
    local: np.ndarray  # (3,n) right, forward and up from the shape's centre, m
    unit: np.ndarray  # (3,n) the same in half extents, -1 .. 1
    half: np.ndarray  # (3,n) the half extents, m
    face: np.ndarray  # (n,) the axis a box's face is square to: 0 = left or right, 1 = front or back, 2 = top or bottom
    height: np.ndarray  # (n,) above the ground, m
    fine: np.ndarray  # (n,) visibility of detail finer than a distant pixel, 1 near .. 0 far

    @property
    def run(self) -> np.ndarray:
        """(n,) metres along the face, horizontally."""
        return np.where(self.face == 0, self.local[1], self.local[0])


def _shade_shapes(scene: Scene, index: np.ndarray, points: np.ndarray, distance: np.ndarray, look: Look) -> np.ndarray:
    """Colours (3,n) of `points` (3,n) on the surfaces of shapes `index` (n,), `distance` (n,) m away."""
    shapes, colours = scene.shapes, _rotate_hue(scene.shapes["colour"], look.hue)
    values = shapes["centre"], shapes["half"], colours
    centre, half, colour = (np.take(value.T, index, axis=1) for value in values)  # (3,n) each
    x, y, z = points - centre
    local = np.stack([*turn(x, y, shapes["yaw"][index]), z])
    unit = local / half
    face = np.abs(unit).argmax(axis=0)
    normal = np.where(shapes["form"][index] == BOX, np.sign(unit) * (np.arange(3)[:, None] == face), unit / half)
    normal /= np.sqrt((normal**2).sum(axis=0))

    texture, seed = shapes["texture"][index], index.astype(np.float32)
    height, fine = points[2], np.exp(-distance / 30)
    albedo = colour * (1 + 0.08 * fine * _noise((points[0] + points[1]) * 8, height * 8))
    emitted = np.zeros_like(albedo)
    for kind, paint in TEXTURES.items():
        at = np.flatnonzero(texture == kind)
        surface = Surface(seed[at], local[:, at], unit[:, at], half[:, at], face[at], height[at], fine[at])
        albedo[:, at] = paint(albedo[:, at], surface)
        if look.night > 0 and kind in LIT:
            emitted[:, at] = look.night * LIT[kind](surface)

    east, north, up = look.towards_sun
    towards_sun = np.stack([*turn(east, north, shapes["yaw"]), np.full(len(shapes), up)])
    direct = (normal * np.take(towards_sun, index, axis=1)).sum(axis=0).clip(0)
    sun, lamps = _light(scene, index, points, look)
    return albedo * (look.ambient * (0.8 + 0.2 * normal[2]) + look.sun * direct * sun + lamps) + emitted


def _facade(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """Windows 2.2 m apart, a storey every 3 m with a ledge, and doors at the foot."""
    window, door, ledge, chance = _openings(at)
    albedo = albedo * np.where(door, 0.45, np.where(ledge, 0.8, 1)).astype(np.float32)
    return np.where(window, PANES[0] + (PANES[1] - PANES[0]) * chance**2, albedo)


def _openings(at: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where windows, doors and ledges of facades are, and a number in [0, 1) for each window."""
    column, storey = at.run / 2.2 + at.seed * 7, at.height / 3
    u, v = np.abs(column % 1 - 0.5), storey % 1
    chance = _chance(column, storey + at.seed * 3)
    door = (storey < 1) & (chance < 0.3) & (u < 0.26) & (v < 0.78)
    window = (u < 0.26) & (np.abs(v - 0.55) < 0.27) & (at.face < 2) & ~door
    return window, door, v < 0.08, chance


def _lit_windows(at: Surface) -> np.ndarray:
    window, _, _, chance = _openings(at)
    return WARM * (window & (chance > 0.6)) * chance


def _bricks(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """Courses of stones in many tones with dark joints, and a light coping."""
    course = at.height / 0.45
    stone = at.run / 0.9 + 0.5 * (np.floor(course) % 2)
    joint = (course % 1 < 0.16) | (stone % 1 < 0.1)
    tone = 0.75 + 0.45 * _chance(stone + at.seed * 5, course)
    tone[joint] -= 0.35 * at.fine[joint]
    tone[at.local[2] > at.half[2] - 0.22] = 1.35
    return albedo * tone


def _leaves(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """Light and dark clumps, lighter towards the top."""
    clumps = _noise((at.local[0] + at.local[1]) * 5 + at.seed * 9, at.height * 5) * (0.4 + 0.6 * at.fine)
    return albedo * (0.95 + 0.3 * at.unit[2] + 0.28 * clumps).clip(0.25)


def _carbody(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """Wheels, a dark underside, white lamps at the front and red ones at the back."""
    wheel = (at.face == 0) & (np.hypot(np.abs(at.local[1]) - 0.62 * at.half[1], at.height - 0.34) < 0.36)
    albedo = np.where(_car_lamps(at), np.where(at.unit[1] > 0, *LAMPS), albedo)
    return np.where(wheel | (at.height < 0.24), 0.06, albedo)


def _car_lamps(at: Surface) -> np.ndarray:
    return (at.face == 1) & (np.abs(at.unit[0]) > 0.55) & (np.abs(at.height - 0.65) < 0.14)


def _lit_car(at: Surface) -> np.ndarray:
    return _car_lamps(at) * np.where(at.unit[1] > 0, *LAMPS)


def _disc(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """A white field with a dark bar in a coloured frame."""
    albedo = np.where(np.hypot(at.unit[0], at.unit[2]) < 0.6, 0.92, albedo)
    return np.where((np.abs(at.unit[0]) < 0.5) & (np.abs(at.unit[2]) < 0.15), 0.15, albedo)


TEXTURES = {FACADE: _facade, BRICKS: _bricks, LEAVES: _leaves, CARBODY: _carbody, DISC: _disc}
LIT = {FACADE: _lit_windows, CARBODY: _lit_car}  # what shines at night: (3,n)


@functools.cache
def _noise_map() -> np.ndarray:
    """A cloudy random field of 256 x 256 cells with a 1/f spectrum, mean 0, standard deviation 1, without a seam."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(np.random.default_rng(0).standard_normal((256, 256))) / frequency).real
    return (field / field.std()).astype(np.float32).ravel()


CHANCES = np.random.default_rng(1).random(256 * 256, np.float32)


def _cell(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The index of the cell at u, v in a map of 256 x 256 cells that repeats."""
    return (np.floor(u).astype(np.int32) & 255) * 256 + (np.floor(v).astype(np.int32) & 255)


def _noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smooth noise, mean 0 and standard deviation 1, at positions u, v in cells."""
    return _noise_map()[_cell(u, v)]


def _chance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each cell u, v, unrelated to its neighbours'."""
    return CHANCES[_cell(u, v)]


def _rotate_hue(colours: np.ndarray, degrees: float) -> np.ndarray:
    """Colours (n,3) turned about the grey axis by Rodrigues' formula, nothing below 0; float32."""
    angle, axis = np.deg2rad(degrees), np.full(3, 3**-0.5)
    along = (colours @ axis)[:, None] * axis * (1 - np.cos(angle))
    return (colours * np.cos(angle) + np.cross(axis, colours) * np.sin(angle) + along).clip(0).astype(np.float32)


def develop(colours: np.ndarray, look: Look, rng: Generator) -> np.ndarray:
    """Rays' colours (3,2H+1,2W+1) as an image, uint8 (H,W,3); a pixel weighs its nine rays 1-2-1 in both directions."""
    rows = (colours[:, :-2:2] + 2 * colours[:, 1:-1:2] + colours[:, 2::2]) / 4
    image = (rows[..., :-2:2] + 2 * rows[..., 1:-1:2] + rows[..., 2::2]) / 4 * look.cast.reshape(3, 1, 1)
    grey = image.mean(axis=0)
    image = 0.5 + (grey + (image - grey) * look.saturation - 0.5) * look.contrast
    image += look.noise * rng.standard_normal(image.shape, np.float32)
    return (image.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)  # (3,H,W) -> (H,W,3)
