"""The toy world: procedural streets as pinhole images and as panoramas, in the layouts of Cityscapes and DensePASS.

It stands in for the real data sets where there is only a laptop: a few hundred small images, rendered in seconds, on
which adaptation from pinhole images to panoramas runs from end to end and visibly helps. Eleven of Cityscapes' classes
occur (`configs/labels/toy11.yaml`); the ego car is ignored.

Every image is one scene: a street (`Street`), upright boxes and ellipsoids (`SHAPE`) on it, a camera and a look. No
camera tilts, so that a ray's direction in plan depends on its column only and its rise on its row only: a box is then
an outer maximum of a column vector and a row vector, which makes the ray caster fast (`trace`). Colours are worked out
afterwards, once per ray (`shade`).

The two domains differ in two ways, each with a strength:

`appearance` (0 = none, 1 = default, any value >= 0)
    Light, colour cast, contrast, saturation, haze, noise and the hue of materials (`draw_look`). Each target image
    draws its own strength uniformly from 0 to 1.3 times the setting. Labels do not depend on it. At 0 the target looks
    like the source, which keeps its natural variation from scene to scene.
`geometry` (0 = none, 1 = default, 0 <= value <= 1)
    Sizes of streets and buildings, densities of objects, camera height and the range of camera headings go linearly
    from the source's to the target's (`STREETS`). The projection cannot be interpolated: any value above 0 gives
    equirectangular panoramas of `panorama_size`. At 0 the target has the source's pinhole camera, image size and
    street statistics, and is still stored in DensePASS's layout.

Of the target alone, further strengths change what no map of colours undoes; all are 0 by default:

`fog`, `night`, `rain`, `low_sun`, `dirt` (0 = none, 1 = strong, any value >= 0)
    Each image draws its own mix of them (`weather`). Labels do not depend on it.
`things` (0 = none, 0 <= value <= 1)
    Densities and heights on the way to `OTHER_STREETS`, and a share of things of a shape that the source lacks.

A third domain, "synthetic", has the target's geometry and the source's looks: labelled panoramas as a second source.

An image depends on (seed, domain, split, index) and the settings above alone, never on the counts or the order of
rendering, and is the same to the byte on one machine; another processor or NumPy may round single pixels differently.
"""

from .writing import MARKER, TREES, ToyWorld, ensure, preview, render_image

__all__ = ["MARKER", "TREES", "ToyWorld", "ensure", "preview", "render_image"]
