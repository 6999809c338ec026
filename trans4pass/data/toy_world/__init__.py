"""The toy world: procedural streets as pinhole images and as panoramas, in the layouts of Cityscapes and DensePASS.

It stands in for the real data sets where there is only a laptop: a few hundred small images, rendered in seconds, on
which adaptation from pinhole images to panoramas runs from end to end and visibly helps. Eleven of Cityscapes' classes
occur (`CLASSES`); the ego car is ignored.

Every image is one scene: a street (`Street`), upright boxes and ellipsoids (`SHAPE`) on it, a camera and a look. No
camera tilts, so that a ray's direction in plan depends on its column only and its rise on its row only: a box is then
an outer maximum of a column vector and a row vector, which makes the ray caster fast (`trace`). Colours are worked out
afterwards, once per ray (`shade`).

The two domains differ in two ways, each with a strength:

`appearance` (0 = none, 1 = default, any value >= 0)
    Light, colour cast, contrast, saturation, haze, noise and the hue of materials (`Shift`). Each target image draws
    its own strength uniformly from 0 to 1.3 times the setting. Labels do not depend on it. At 0 the target looks like
    the source, which keeps its natural variation from scene to scene.
`geometry` (0 = none, 1 = default, 0 <= value <= 1)
    Sizes of streets and buildings, densities of objects, camera height and the range of camera headings go linearly
    from `SOURCE_STREETS` to `TARGET_STREETS`. The projection cannot be interpolated: any value above 0 gives
    equirectangular panoramas of `panorama_size`. At 0 the target has the source's pinhole camera, image size and
    street statistics, and is still stored in DensePASS's layout.

An image depends on (seed, domain, split, index) and the settings above alone, never on the counts or the order of
rendering, and is the same to the byte on one machine; another processor or NumPy may round single pixels differently.
"""

from trans4pass.data.toy_world.rays import FAR, Camera, panorama_camera, pinhole_camera, trace
from trans4pass.data.toy_world.scene import (
    BOX,
    BRICKS,
    BUILDING,
    CAR,
    CARBODY,
    CLASSES,
    CLOTHES,
    DISC,
    EGO,
    ELLIPSOID,
    FACADE,
    GLASS,
    GREENS,
    GROUND,
    HORIZON,
    HOUSES,
    IGNORED,
    LAMPS,
    LEAVES,
    METALS,
    PAINTS,
    PALETTE,
    PANES,
    PERSON,
    PLAIN,
    POLE,
    REACH,
    ROAD,
    SHAPE,
    SIDEWALK,
    SIGN,
    SIGNS,
    SKINS,
    SKY,
    SOURCE_STREETS,
    STONES,
    TARGET_STREETS,
    TERRAIN,
    TRAIN_IDS,
    TRUNKS,
    VEGETATION,
    WALL,
    ZENITH,
    Builder,
    Place,
    Range,
    Scene,
    Street,
    Streets,
    ToyClass,
    build_scene,
)
from trans4pass.data.toy_world.shading import (
    SHIFT,
    STRENGTH_MAX,
    TEXTURES,
    Look,
    Shift,
    Surface,
    develop,
    draw_look,
    shade,
)
from trans4pass.data.toy_world.writing import (
    CITIES,
    COUNTS,
    FOLDER,
    MARKER,
    RENDERER,
    TREES,
    UNFINISHED,
    Progress,
    ToyWorld,
    ensure,
    image_paths,
    preview,
    render_image,
)

__all__ = [
    "BOX",
    "BRICKS",
    "BUILDING",
    "CAR",
    "CARBODY",
    "CITIES",
    "CLASSES",
    "CLOTHES",
    "COUNTS",
    "DISC",
    "EGO",
    "ELLIPSOID",
    "FACADE",
    "FAR",
    "FOLDER",
    "GLASS",
    "GREENS",
    "GROUND",
    "HORIZON",
    "HOUSES",
    "IGNORED",
    "LAMPS",
    "LEAVES",
    "MARKER",
    "METALS",
    "PAINTS",
    "PALETTE",
    "PANES",
    "PERSON",
    "PLAIN",
    "POLE",
    "REACH",
    "RENDERER",
    "ROAD",
    "SHAPE",
    "SHIFT",
    "SIDEWALK",
    "SIGN",
    "SIGNS",
    "SKINS",
    "SKY",
    "SOURCE_STREETS",
    "STONES",
    "STRENGTH_MAX",
    "TARGET_STREETS",
    "TERRAIN",
    "TEXTURES",
    "TRAIN_IDS",
    "TREES",
    "TRUNKS",
    "UNFINISHED",
    "VEGETATION",
    "WALL",
    "ZENITH",
    "Builder",
    "Camera",
    "Look",
    "Place",
    "Progress",
    "Range",
    "Scene",
    "Shift",
    "Street",
    "Streets",
    "Surface",
    "ToyClass",
    "ToyWorld",
    "build_scene",
    "develop",
    "draw_look",
    "ensure",
    "image_paths",
    "panorama_camera",
    "pinhole_camera",
    "preview",
    "render_image",
    "shade",
    "trace",
]
