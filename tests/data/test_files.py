"""Reading pictures that may be damaged, hostile or merely strange: refused in words, or read right."""

import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.io import decode_image

from tests.data.tiny_images import SIZE, label_map, picture
from tests.mutations import mutated
from trans4pass.data import Item, SegmentationDataset, files
from trans4pass.data.files import files_below, image_size, read_colour_label, read_image, read_label
from trans4pass.errors import DataError


def written(tmp_path, pixels: Image.Image, name: str = "a.png", **settings):
    pixels.save(tmp_path / name, **settings)
    return tmp_path / name


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Root may read anything, so that the refusal is played."""

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"cannot look into {tmp_path} .Permission denied"):
        list(files_below(tmp_path))


def png(width: int, height: int, rows: bytes, checksum_of: bytes | None = None) -> bytes:
    """A grey PNG of 8 bits whose pixels are `rows`, one zero byte before each; its checksum may be another's."""

    def chunk(kind: bytes, data: bytes, summed: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + summed))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data, summed = zlib.compress(rows), zlib.compress(rows if checksum_of is None else checksum_of)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header, header) + chunk(b"IDAT", data, summed) + chunk(b"IEND", b"", b"")
    )


def png_that_claims(width: int, height: int) -> bytes:
    return png(width, height, b"\0")


# ----------------------------------------------------------------------------------------------------- refused in words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((2**14, 2**13 + 1), "can be read"),
        ((2**31 - 1, 2**31 - 1), "decompression bomb|can be read"),
        ((900, 8), "at most 100:1"),
        ((7, 100), "at least 8"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_label, image_size])
def test_sizes_that_cannot_be_meant_are_refused_before_decoding(tmp_path, size, words, read):
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(*size))
    with pytest.raises(DataError, match=words):
        read(path)


def test_largest_size_passes_the_header_check(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(2**14, 2**13))
    assert image_size(path) == (2**14, 2**13)


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"%!PS-Adobe\n(hello) print\n", b"\x89PNG\r\n\x1a\n", b"\0" * 4096]
)
def test_what_is_no_picture_is_refused(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png is not an image that can be read \(\.png, .* copy it anew$"):
        read_image(path)


def test_formats_of_no_data_set_are_refused(tmp_path):
    path = written(tmp_path, Image.fromarray(picture(0)), "a.gif")
    with pytest.raises(DataError, match=r"a\.gif is not an image that can be read \(\.png, "):
        read_image(path)


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="gone"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp"])
def test_a_file_of_several_pictures_is_refused(tmp_path, name):
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    path = written(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="holds 3 pictures"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff"])
def test_a_turned_picture_is_refused(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = written(tmp_path, Image.fromarray(picture(0)), name, exif=exif)
    with pytest.raises(DataError, match=r"EXIF orientation 6.*auto-orient"):
        read_image(path)
    exif[0x0112] = 1
    assert read_image(written(tmp_path, Image.fromarray(picture(0)), f"upright_{name}", exif=exif)).shape[0] == 3


def test_a_picture_that_xmp_turns_is_refused(tmp_path):
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    with pytest.raises(DataError, match="EXIF orientation 6"):
        read_image(written(tmp_path, Image.fromarray(picture(0)), "a.png", pnginfo=info))


def test_broken_exif_data_says_nothing(tmp_path):
    path = written(tmp_path, Image.fromarray(picture(0)), "a.jpg", exif=b"Exif\0\0 no such thing")
    assert read_image(path).shape == (3, *SIZE[::-1])


def test_a_jpeg_is_no_label(tmp_path):
    path = written(tmp_path, Image.fromarray(label_map(0, [0, 1])), "a.jpg")
    for read in (read_label, read_colour_label):
        with pytest.raises(DataError, match="is a JPEG, which changes values"):
            read(path)


@pytest.mark.parametrize("claimed", [b"\0" + 8 * b"\7", None])
def test_checksums_of_a_png_are_verified(tmp_path, claimed):
    path = tmp_path / "a.png"
    path.write_bytes(png(8, 8, 8 * (b"\0" + 8 * b"\1"), None if claimed is None else 8 * claimed))
    if claimed is None:
        assert (read_label(path) == 1).all()
        return
    with pytest.raises(DataError, match="cannot decode"):
        read_label(path)


def test_values_of_more_than_sixteen_bits_are_refused(tmp_path):
    values = np.full((8, 8), 2**16 + 7, np.int32)
    path = written(tmp_path, Image.fromarray(values), "a.tiff")
    for read in (read_label, read_image):
        with pytest.raises(DataError, match="holds values 65543 to 65543"):
            read(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "CMYK"])
def test_labels_of_other_modes_are_refused(tmp_path, mode):
    path = written(tmp_path, Image.new(mode, (8, 8)), "a.tiff")
    with pytest.raises(DataError, match="class ids"):
        read_label(path)


# ----------------------------------------------------------------------------------------------------------- read right


def test_cmyk_becomes_rgb(tmp_path):
    path = written(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "a.jpg")
    red, green, blue = read_image(path)[:, 8, 8].tolist()
    assert red > 200 and green < 40 and blue < 40


def test_alpha_is_dropped_and_colours_stay(tmp_path):
    pixels = Image.new("RGBA", (8, 8), (10, 200, 30, 0))
    assert read_image(written(tmp_path, pixels))[:, 0, 0].tolist() == [10, 200, 30]


@pytest.mark.filterwarnings("error")
def test_palette_with_alpha_keeps_colours_and_indices(tmp_path):
    pixels = Image.fromarray(label_map(0, [0, 1, 2]))
    pixels.putpalette([200, 100, 50, 1, 2, 3, 9, 8, 7])
    path = written(tmp_path, pixels, transparency=bytes([0, 128, 255]))
    assert np.array_equal(read_label(path), label_map(0, [0, 1, 2]))
    colours = np.array([[200, 100, 50], [1, 2, 3], [9, 8, 7]])
    assert np.array_equal(read_image(path).permute(1, 2, 0), colours[label_map(0, [0, 1, 2])])


def test_colour_label_with_alpha_is_its_colours(tmp_path):
    pixels = Image.fromarray(picture(0)).convert("RGBA")
    assert np.array_equal(read_colour_label(written(tmp_path, pixels)), picture(0))


def test_sixteen_bit_tiff_label_is_read_in_full(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    assert np.array_equal(read_label(written(tmp_path, Image.fromarray(values), "a.tiff")), values)


# ----------------------------------------------------------------------------------------------------------------- fuzz


def originals() -> dict[str, bytes]:
    label = Image.fromarray(label_map(0, [0, 7, 22]))
    paletted = label.copy()
    paletted.putpalette(list(range(256)) * 3)
    saved = {}
    for name, pixels, settings in (
        ("image.png", Image.fromarray(picture(0)), {}),
        ("image.jpg", Image.fromarray(picture(0)), {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
        ("progressive.jpg", Image.fromarray(picture(0)), {"progressive": True}),
        ("alpha.png", Image.fromarray(picture(0)).convert("RGBA"), {}),
        ("label.png", label, {}),
        ("paletted.png", paletted, {"transparency": bytes(range(256))}),
        ("wide.png", Image.fromarray(label_map(0, [0, 7, 22]).astype(np.uint16)), {}),
    ):
        buffer = io.BytesIO()
        pixels.save(buffer, name.rsplit(".")[1].replace("jpg", "jpeg"), **settings)
        saved[name] = buffer.getvalue()
    return saved


def encoded(pixels: np.ndarray, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


CAMERA = Image.Exif()
CAMERA[271] = "a maker"
RAMP = np.stack(np.broadcast_arrays(np.arange(61)[:, None] * 4, np.arange(83) * 3, 128 + np.arange(83)), 2)
NOISY = (RAMP + np.random.default_rng(0).integers(-20, 20, RAMP.shape)).clip(0, 255).astype(np.uint8)
ENCODED = {
    "PNG": (encoded(NOISY, "PNG"), True),
    "grey PNG": (encoded(NOISY[..., 0], "PNG"), False),
    "PNG with a transparent colour": (encoded(NOISY, "PNG", transparency=(0, 0, 0)), False),
    "PNG with a camera's data": (encoded(NOISY, "PNG", exif=CAMERA.tobytes()), False),
    **{f"JPEG, {kind}": (encoded(NOISY, "JPEG", quality=quality, **settings), True) for kind, quality, settings in (
        ("4:4:4", 95, {"subsampling": 0}), ("4:2:2", 80, {"subsampling": 1}), ("4:2:0", 40, {"subsampling": 2}),
        ("progressive", 75, {"progressive": True}), ("a camera's", 90, {"exif": CAMERA.tobytes()}),
    )},
}  # fmt: skip


@pytest.mark.parametrize("kind", ENCODED)
def test_either_decoder_gives_pils_pixels(kind: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fast = ENCODED[kind]
    (tmp_path / "x").write_bytes(data)
    decoded = []
    monkeypatch.setattr(files, "decode_image", lambda *x: decoded.append(x) or decode_image(*x))
    expected = np.array(Image.open(tmp_path / "x").convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "x").permute(1, 2, 0), expected)
    assert len(decoded) == fast


def check_mutations(folder, labels, count: int) -> None:
    """Read `count` damaged files: each gives a DataError, or a sample of the right kind.

    A PNG has checksums: one that is read at all must be read as what it was. A JPEG has none.
    """
    good = folder / "good.png"
    Image.fromarray(picture(0)).save(good)
    refused = 0
    for number in range(count):
        rng = np.random.default_rng(number)
        name, data = ORIGINALS[number % len(ORIGINALS)]
        path = folder / f"damaged_{name}"
        path.write_bytes(mutated(data, rng))
        is_label = name in ("label.png", "paletted.png", "wide.png")
        item = Item("a", good, path, "synpass_ids") if is_label else Item("a", path)
        try:
            sample = SegmentationDataset([item], labels, labelled=is_label)[0]
        except DataError as error:
            assert str(path) in str(error), number
            refused += 1
            continue
        image, label = sample["image"], sample["label"]
        assert image.dtype == label.dtype == torch.uint8 and image.shape == (3, *label.shape), number
        if name.endswith("png"):
            assert np.array_equal(image.permute(1, 2, 0), picture(0)), f"mutation {number} of {name}"
            expected = labels.decode(label_map(0, [0, 7, 22]), "synpass_ids", "x") if is_label else 255
            assert (label.numpy() == expected).all(), f"mutation {number} of {name}"
    assert refused > count // 2


ORIGINALS = list(originals().items())


def test_a_few_damaged_files_are_refused_or_read_right(tmp_path, synpass22):
    check_mutations(tmp_path, synpass22, 70)


@pytest.mark.slow
def test_damaged_files_are_refused_or_read_right(tmp_path, synpass22):
    check_mutations(tmp_path, synpass22, 700)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_damaged_files_are_refused_or_read_right(tmp_path, synpass22):
    check_mutations(tmp_path, synpass22, int(os.environ.get("FUZZ", "10000")))
