"""What stands where: the classes, what the streets of each domain are like, and the scenes drawn from that."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

# As in Cityscapes' labelIds.
ROAD, SIDEWALK, BUILDING, WALL, POLE, SIGN = 7, 8, 11, 12, 17, 20
VEGETATION, TERRAIN, SKY, PERSON, CAR = 21, 22, 23, 24, 26
EGO = 1  # the ego car, which no class counts


# ---------------------------------------------------------------------- the two domains' streets: everything to tune

Range = tuple[float, float]


# What the streets of both domains are like, source | target: ranges (low, high), drawn from uniformly once a scene.
STREETS: dict[str, tuple[Range, Range]] = {
    "road": ((3.2, 4.4), (4.2, 5.6)),  # half the carriageway's width, m
    "verge": ((0.6, 1.4), (0.6, 1.8)),  # grass between road and sidewalk, m
    "sidewalk": ((2.8, 4.4), (2.4, 4.0)),  # m
    "lawn": ((1.0, 3.0), (0.7, 2.2)),  # grass between sidewalk and building line, m
    "bend": ((0.0, 4.0), (0.0, 6.0)),  # amplitude of the street's winding, m
    "storeys": ((2, 4), (2, 6)),  # of a building
    "walls": ((0.35, 0.65), (0.3, 0.6)),  # share of the lots with a garden wall at the front, the house further back
    "pitch": ((4.5, 7.0), (4.0, 6.0)),  # distance between two objects at the kerb, m
    "trees": ((0.25, 0.5), (0.2, 0.5)),  # share of trees in them; of the rest 3 in 5 are signs, 2 in 5 lamp posts
    "bushes": ((0.5, 1.5), (0.5, 1.5)),  # along the building line, per 10 m of street
    "cars": ((0.8, 1.6), (1.2, 2.2)),  # parked or driving, per 10 m of street
    "people": ((2.5, 4.5), (3.0, 5.0)),  # per 10 m of street
    "camera": ((1.3, 1.5), (2.0, 2.5)),  # the camera's height, m
    "heading": ((-5, 5), (-180, 180)),  # of the camera against the street's direction, degrees
}


def streets_between(share: float) -> dict[str, Range]:
    """Every bound of every range, `share` of the way from source to target."""
    mixed = {name: [a + share * (b - a) for a, b in zip(source, target)] for name, (source, target) in STREETS.items()}
    return {name: (low, high) for name, (low, high) in mixed.items()}


# What `things` moves them to: crowded where those are empty, and few signs, lamps and people where those have many.
OTHER_STREETS: dict[str, Range] = {
    "storeys": (1, 9),
    "walls": (0.1, 0.9),
    "pitch": (3.5, 9.0),
    "trees": (0.2, 0.85),
    "bushes": (0.0, 4.0),
    "cars": (0.2, 3.6),
    "people": (0.5, 8.0),
}


def other_streets(streets: Mapping[str, Range], share: float) -> dict[str, Range]:
    """`streets`, `share` of the way to `OTHER_STREETS`."""
    others = {**streets, **OTHER_STREETS}
    moved = {name: (1 - share) * np.array(streets[name]) + share * np.array(others[name]) for name in streets}
    return {name: (low, high) for name, (low, high) in moved.items()}


REACH = 64.0  # m of street that are built up, before and behind the camera


# ------------------------------------------------------------------------------------------------------------- scene


class Street(NamedTuple):
    """A winding street along y, x to its right, crossed by another at y = `crossing`; metres, see `STREETS`."""

    road: float
    verge: float
    sidewalk: float
    lawn: float
    bend: float
    phase: float  # of the winding, radians
    crossing: float
    crossing_road: float

    def middle(self, y):
        """x of the street's middle line at y; 0 at y = 0."""
        return self.bend * (np.sin(y / 22 + self.phase) - math.sin(self.phase))

    def angle(self, y):
        """The street's direction at y, radians clockwise from +y."""
        return np.arctan(self.bend / 22 * np.cos(y / 22 + self.phase))

    @property
    def front(self) -> float:
        """Distance of the building line from the kerb, m."""
        return self.verge + self.sidewalk + self.lawn

    def place(self, side: int, beyond: float, along: float) -> "Place":
        """The spot `beyond` m beyond the kerb of the right (side 1) or left (-1); its right is away from the street."""
        yaw = self.angle(along) + (0 if side > 0 else np.pi)
        return Place(self.middle(along) + side * (self.road + beyond), along, yaw)

    def blocks(self) -> list[tuple[float, float]]:
        """The stretches of y with houses: one, or one on either side of a crossing."""
        gap = self.crossing_road + self.front
        if self.crossing > REACH:
            return [(-REACH, REACH)]
        return [(-REACH, self.crossing - gap), (self.crossing + gap, REACH)]

    def crossed(self, along: float, margin: float) -> bool:
        """Whether the crossing street, `margin` m on either side included, is at y = `along`."""
        return abs(along - self.crossing) < self.crossing_road + margin


class Place(NamedTuple):
    """A spot on the ground and a direction: x, y in m, yaw in radians clockwise from +y."""

    x: float
    y: float
    yaw: float

    def offset(self, right: float, forward: float) -> "Place":
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return Place(self.x + right * cos + forward * sin, self.y - right * sin + forward * cos, self.yaw)


BOX, ELLIPSOID = range(2)  # forms
PLAIN, FACADE, BRICKS, LEAVES, CARBODY, DISC = range(6)  # textures
SHAPE = np.dtype(
    [
        ("form", np.uint8),
        ("texture", np.uint8),
        ("label", np.uint8),
        ("centre", np.float32, 3),  # x, y, z in m
        ("half", np.float32, 3),  # half the extent along the shape's own right, forward and up, m
        ("yaw", np.float32),  # of the shape's forward, radians clockwise from +y
        ("colour", np.float32, 3),  # red, green, blue, 0 .. 1
    ]
)


class Scene(NamedTuple):
    street: Street
    shapes: np.ndarray  # (N,) of SHAPE


def from_hex(codes: str) -> np.ndarray:
    """Space-separated RRGGBB codes as float32 (n,3) from 0 to 1."""
    return np.array([list(bytes.fromhex(code)) for code in codes.split()], np.float32) / 255


# Hues overlap between classes on purpose: texture and place distinguish a wall from a house and a sign from a coat.
HOUSES = from_hex("9e5c47 b89970 b3a899 808c9e bd8c5c 8f7066")
STONES = from_hex("858078 8c6b57 998f75")
METALS = from_hex("383b40 4d4f52 3d332b")
SIGNS = from_hex("cc1a1a 1a38b8 dbb31a")
GREENS = from_hex("29571f 3d6624 244724 576624")
TRUNKS = from_hex("4d3624")
CLOTHES = from_hex("b32929 263880 d9ccb8 292933 bf731a 733373")
SKINS = from_hex("d19e80 8c6147")
PAINTS = from_hex("bf1414 1a338c d1d1d6 1a1a1f 8c9199 1f614d")
GLASS = from_hex("1f2630")  # of cars


class Builder:
    """Collects the shapes of a scene; each method sets up one thing at a place."""

    def __init__(self, rng: Generator, unusual: float = 0.0):
        self.rng = rng
        self.unusual = unusual  # share of things that are of another shape than the source's
        self.rows: list[tuple] = []

    def differs(self) -> bool:
        """Whether the next thing is of another shape; without such things, nothing is drawn."""
        return self.unusual > 0 and self.rng.random() < self.unusual

    def pick(self, colours: np.ndarray) -> np.ndarray:
        """One of the colours, each channel varied by up to 12%."""
        return colours[self.rng.integers(len(colours))] * self.rng.uniform(0.88, 1.12, 3)

    def add(self, form, texture, label, place: Place, size, bottom: float, colour) -> None:
        """A shape of `size` = (width, length, height) in m, `bottom` m above the ground."""
        half = tuple(extent / 2 for extent in size)
        self.rows.append((form, texture, label, (place.x, place.y, bottom + half[2]), half, place.yaw, colour))

    def building(self, place: Place, width: float, depth: float, storeys: float) -> None:
        """Its facade, `width` m wide, stands at `place`; its depth goes to the right."""
        centre, height, colour = place.offset(depth / 2, 0), 3 * round(storeys) + 0.6, self.pick(HOUSES)
        self.add(BOX, FACADE, BUILDING, centre, (depth, width, height), 0, colour)
        self.add(BOX, PLAIN, BUILDING, centre, (depth + 0.7, width + 0.5, 0.6), height, colour * 0.55)  # the eaves

    def wall(self, place: Place, width: float) -> None:
        self.add(BOX, BRICKS, WALL, place, (0.4, width, self.rng.uniform(1.8, 2.6)), 0, self.pick(STONES))

    def tree(self, place: Place, height: float) -> None:
        """A round crown on a trunk, or a slender cone of leaves down to the ground."""
        if self.differs():
            colour = self.pick(GREENS)
            for level, wide in enumerate((0.34, 0.27, 0.2, 0.12)):
                size = (wide * height, wide * height, 0.5 * height)
                self.add(ELLIPSOID, LEAVES, VEGETATION, place, size, (0.04 + 0.22 * level) * height, colour)
            return
        self.add(BOX, PLAIN, VEGETATION, place, (0.4, 0.4, height * 0.6), 0, self.pick(TRUNKS))
        colour = self.pick(GREENS)
        for _ in range(4):
            right, forward = (height * self.rng.uniform(-0.17, 0.17) for _ in range(2))
            wide, high, bottom = (height * self.rng.uniform(low, 0.55) for low in (0.38, 0.38, 0.35))
            self.add(ELLIPSOID, LEAVES, VEGETATION, place.offset(right, forward), (wide, wide, high), bottom, colour)

    def bush(self, place: Place) -> None:
        size, colour = self.rng.uniform(0.8, 1.5), self.pick(GREENS)
        for shift in (-0.3, 0.3):
            extent = (size, size, size * self.rng.uniform(0.8, 1.2))
            self.add(ELLIPSOID, LEAVES, VEGETATION, place.offset(0, shift * size), extent, -0.1, colour)

    def lamp(self, place: Place) -> None:
        """A lamp post whose arm reaches out to the left of its place."""
        height, colour = self.rng.uniform(4.5, 6.5), self.pick(METALS)
        self.add(BOX, PLAIN, POLE, place, (0.34, 0.34, height), 0, colour)
        self.add(BOX, PLAIN, POLE, place.offset(-0.9, 0), (2.0, 0.3, 0.26), height, colour)

    def sign(self, place: Place) -> None:
        """A disc or a board on a pole, its face along the street; or a tall blade."""
        if self.differs():
            self.add(BOX, PLAIN, POLE, place, (0.28, 0.28, 1.6), 0, self.pick(METALS))
            self.add(BOX, DISC, SIGN, place, (0.9, 0.3, self.rng.uniform(1.6, 2.4)), 1.5, self.pick(SIGNS))
            return
        bottom, size = self.rng.uniform(2.2, 2.8), self.rng.uniform(1.1, 1.4)
        self.add(BOX, PLAIN, POLE, place, (0.28, 0.28, bottom + 0.05), 0, self.pick(METALS))
        disc, board = (ELLIPSOID, (size, 0.4, size)), (BOX, (1.15 * size, 0.3, 0.8 * size))
        form, extent = disc if self.rng.random() < 0.5 else board
        self.add(form, DISC, SIGN, place, extent, bottom, self.pick(SIGNS))

    def person(self, place: Place) -> None:
        size, trousers = self.rng.uniform(0.95, 1.15), self.pick(CLOTHES) * 0.7
        for side in (-1, 1):
            leg = place.offset(side * 0.16, side * 0.14)
            self.add(BOX, PLAIN, PERSON, leg, (0.26 * size, 0.3 * size, 0.85 * size), 0, trousers)
        torso, head = (0.7 * size, 0.52 * size, 1.0 * size), (0.34 * size, 0.34 * size, 0.4 * size)
        self.add(ELLIPSOID, PLAIN, PERSON, place, torso, 0.6 * size, self.pick(CLOTHES))
        self.add(ELLIPSOID, PLAIN, PERSON, place, head, 1.46 * size, self.pick(SKINS))
        if self.differs():  # an umbrella
            self.add(ELLIPSOID, PLAIN, PERSON, place, (1.2, 1.2, 0.5), 1.75 * size, self.pick(CLOTHES))

    def car(self, place: Place) -> None:
        """A car with a cabin, or a van."""
        if self.differs():
            paint, height, length = self.pick(PAINTS), self.rng.uniform(1.9, 2.5), self.rng.uniform(4.6, 6.0)
            self.add(BOX, CARBODY, CAR, place, (2.0, length, height), 0, paint)
            self.add(BOX, PLAIN, CAR, place.offset(0, 0.35 * length), (2.02, 0.9, 0.5), height - 0.8, self.pick(GLASS))
            return
        paint, height, length = self.pick(PAINTS), self.rng.uniform(1.4, 1.7), self.rng.uniform(3.8, 4.5)
        cabin = place.offset(0, -0.2)
        self.add(BOX, CARBODY, CAR, place, (1.8, length, height * 0.58), 0, paint)
        self.add(BOX, PLAIN, CAR, cabin, (1.6, 2.3, height * 0.36), height * 0.58, self.pick(GLASS))
        self.add(BOX, PLAIN, CAR, cabin, (1.62, 2.0, height * 0.06), height * 0.94, paint)  # the roof


def build_scene(rng: Generator, streets: Mapping[str, Range], unusual: float = 0.0) -> Scene:
    """Draw a street and everything on it; the ego car stands at y = 0 in the middle of the right lane.

    `unusual` is the share of trees, signs, people and cars that have another shape than the source's.
    """

    def draw(name: str) -> float:
        return rng.uniform(*streets[name])

    crossing = rng.uniform(14, 40) * rng.choice((-1, 1)) if rng.random() < 0.6 else 1e6  # 1e6 m: none in sight
    sides = draw("road"), draw("verge"), draw("sidewalk"), draw("lawn"), draw("bend")
    street = Street(*sides, rng.uniform(0, 2 * np.pi), crossing, draw("road"))
    builder = Builder(rng, unusual)
    for side in (-1, 1):
        _add_lots(builder, street, side, draw("walls"), streets["storeys"])
        _add_kerb(builder, street, side, draw("pitch"), draw("trees"))
        _add_sidewalk(builder, street, side, draw("people"), draw("bushes"))
    _add_cars(builder, street, draw("cars"))
    _add_corners(builder, street, streets["storeys"])
    _add_surroundings(builder)
    ego = Place(0.4 * street.road, 0.0, street.angle(0.0))
    builder.add(ELLIPSOID, PLAIN, EGO, ego, (1.9, 6.0, 2.1), -1.05, builder.pick(PAINTS))
    return Scene(street, np.array(builder.rows, SHAPE))


def _add_lots(builder: Builder, street: Street, side: int, walls: float, storeys: Range) -> None:
    """Houses from end to end: at the building line, or behind a garden with a wall and a tree."""
    rng = builder.rng
    for start, stop in street.blocks():
        count = round((stop - start) / rng.uniform(8, 13)) or 1
        width = (stop - start) / count
        for along in start + width * (np.arange(count) + 0.5):
            place, gap = street.place(side, street.front, along), rng.choice((0.0, 2.0))
            garden = rng.random() < walls
            if garden:
                builder.wall(place, width)
                builder.tree(place.offset(3.5, rng.uniform(-2, 2)), rng.uniform(4, 6))
            builder.building(place.offset(9 if garden else 0, 0), width - gap, 11, rng.uniform(*storeys))


def _add_corners(builder: Builder, street: Street, storeys: Range) -> None:
    """The houses along the crossing street."""
    for side in (-1, 1) if street.crossing < REACH else ():
        for bank in (-1, 1):
            edge = street.crossing + bank * (street.crossing_road + street.front)
            for number in range(3):
                x = street.middle(edge) + side * (street.road + street.front + 18 + 13 * number)
                builder.building(Place(x, edge, -bank * np.pi / 2), 12, 10, builder.rng.uniform(*storeys))


def _add_kerb(builder: Builder, street: Street, side: int, pitch: float, trees: float) -> None:
    rng = builder.rng
    for slot in np.arange(-REACH / 2, 0.75 * REACH, pitch):
        along, kind = slot + pitch * rng.uniform(-0.3, 0.3), rng.random()
        place = street.place(side, rng.uniform(0.4, 0.8), along)
        if street.crossed(along, 0.5):
            continue
        if kind < trees:
            builder.tree(place, rng.uniform(4, 6.5))
        elif kind < trees + 0.6 * (1 - trees):
            builder.sign(place)
        else:
            builder.lamp(place)


def _add_sidewalk(builder: Builder, street: Street, side: int, people: float, bushes: float) -> None:
    """People and bushes of one side, as many as `people` and `bushes` per 10 m of both sides ask for."""
    rng, start, length = builder.rng, -REACH / 2, REACH
    for _ in range(rng.poisson(people * length / 20)):
        beyond = street.verge + rng.uniform(0.1, 0.9) * street.sidewalk
        place = street.place(side, beyond, rng.uniform(start, start + length))
        builder.person(place._replace(yaw=rng.uniform(0, 2 * np.pi)))
    for _ in range(rng.poisson(bushes * length / 20)):
        along = rng.uniform(start, start + length)
        if not street.crossed(along, street.front):
            builder.bush(street.place(side, street.front - 0.5, along))


def _add_cars(builder: Builder, street: Street, cars: float) -> None:
    """Cars parked at both kerbs and driving in both lanes, `cars` per 10 m in all, with room around the ego car."""
    rng, slot_length = builder.rng, 6.5
    # (side, m beyond the kerb, m to stay away from the ego car): parked right and left, oncoming, ahead or behind
    lanes = ((1, -1.1, 7.0), (-1, -1.1, 4.0), (-1, -0.65 * street.road, 4.0), (1, -0.6 * street.road, 16.0))
    for slot in np.arange(-REACH / 2, REACH, slot_length):
        for side, beyond, room in lanes:
            along = slot + rng.uniform(-1, 1)
            wanted = rng.random() < cars * slot_length / 10 / len(lanes)
            if wanted and abs(along) > room and not street.crossed(along, 3):
                builder.car(street.place(side, beyond, along))


def _add_surroundings(builder: Builder) -> None:
    """A ring of far houses and woods that closes the view."""
    rng = builder.rng
    for angle in np.linspace(0, 2 * np.pi, 28, endpoint=False):
        distance = rng.uniform(85, 110)
        place = Place(distance * np.sin(angle), distance * np.cos(angle), angle - np.pi / 2)
        if rng.random() < 0.5:
            builder.building(place, rng.uniform(12, 22), 10, rng.uniform(2, 5))
        else:
            builder.add(ELLIPSOID, LEAVES, VEGETATION, place, (26, 26, rng.uniform(9, 18)), -1, builder.pick(GREENS))
