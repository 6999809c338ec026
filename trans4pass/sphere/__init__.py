"""Geometry of panoramas: cameras, rotations, warps between them, solid angles; on tensors, in any notebook.

Directions are (x right, y forward, z up). Yaw turns to the right, pitch up, roll clockwise, all in degrees. Positions
in an image are in pixels from its upper left corner: row i and column j's pixel has its centre at (j + .5, i + .5).
"""

from .cameras import Camera, Panorama, Pinhole, rotation
from .cube import FACES, from_cube, to_cube
from .warp import Warp

__all__ = ["FACES", "Camera", "Panorama", "Pinhole", "Warp", "from_cube", "rotation", "to_cube"]
