"""A panorama as the six faces of a cube, and back."""

import torch
from torch import Tensor

from .cameras import Panorama, Pinhole, rotation
from .warp import Warp

FACES = {  # yaw and pitch in degrees of where each looks
    "front": (0, 0), "right": (90, 0), "back": (180, 0), "left": (-90, 0), "up": (0, 90), "down": (0, -90),
}  # fmt: skip


def to_cube(images: Tensor, panorama: Panorama, size: int) -> Tensor:
    """Panoramas (B,C,h,w) -> faces (B,6,C,size,size) in the order of `FACES`, bilinear; 0 where nothing is seen."""
    face = Pinhole(size, size, 90.0)
    warps = [Warp(panorama, face, rotation(*angles)).to(images.device) for angles in FACES.values()]
    return torch.stack([warp(images) for warp in warps], 1)


def from_cube(faces: Tensor, panorama: Panorama) -> Tensor:
    """Faces (B,6,C,s,s) -> panoramas (B,C,H,W): each pixel from the face that looks most nearly its way."""
    *_, height, width = faces.shape
    face, rays = Pinhole(height, width, 90.0), panorama.rays()
    turns = [rotation(*angles) for angles in FACES.values()]
    nearest = torch.stack([rays @ turn[:, 1] for turn in turns]).argmax(0).to(faces.device)  # (H,W)
    result = faces.new_zeros(len(faces), faces.shape[2], panorama.height, panorama.width)
    for number, turn in enumerate(turns):
        seen = Warp(face, panorama, turn.T).to(faces.device)(faces[:, number])
        result = torch.where(nearest == number, seen, result)
    return result
