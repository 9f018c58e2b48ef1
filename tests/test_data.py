"""The data contract: any picture set in, uint8 (N, 3, size, size), labels and class names out.

Expected pixels come from arrays that the tests made themselves, with Pillow or numpy by hand.
No test reaches beyond the loopback interface.
"""

import hashlib
import io
import os
import pickle
import shutil
import socket
import struct
import sys
import tarfile
import threading
import time
import types
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageFile, features

import dcgan

# ---- Helpers -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No name but the loopback's resolves, as on a machine without a network."""
    resolve, timeout = socket.getaddrinfo, socket.getdefaulttimeout()

    def loopback_only(host, *args, **kwargs):
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(socket.EAI_NONAME, "no network in tests")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)
    monkeypatch.setenv("no_proxy", "*")
    yield
    socket.setdefaulttimeout(timeout)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(cache):
    def call(data, size=16, **options):
        return dcgan.load_data(str(data), size, cache=str(cache), **options)

    return call


@pytest.fixture
def refusal(load):
    """The message of the SystemExit that loading `data` ends in; it has to name the data."""

    def call(data, **options):
        with pytest.raises(SystemExit) as info:
            load(data, **options)
        message = info.value.code
        del info  # its traceback keeps files and sockets from being closed
        assert isinstance(message, str) and str(data) in message
        return message

    return call


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def by_hand(pixels, size):
    """(H, W, 3) -> (3, size, size): centre square, then Pillow's antialiased Lanczos."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[top : top + side, left : left + side]
    if side != size:
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.LANCZOS))
    return pixels.transpose(2, 0, 1)


def on_white(pixels, alpha):
    """(H, W, 3) over white with coverage alpha (H, W), 0 to 255."""
    cover = alpha[..., None] / 255
    return np.rint(pixels * cover + 255 * (1 - cover)).astype(np.uint8)


def grey3(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=2).astype(np.uint8)


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def folder_of(folder, names, side=16):
    """A folder of one picture of noise per name, and those pictures, in the order of `names`."""
    pictures = [noise(side, side, 3, seed=i) for i in range(len(names))]
    for name, pixels in zip(names, pictures):
        write_png(folder / name, pixels)
    return pictures


def zip_of(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def chunk(kind, content):
    head = struct.pack(">I", len(content)) + kind + content
    return head + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(width, height, depth, color, rows, *chunks):
    """A PNG put together by hand, so that its header can say anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *chunks,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def listing(folder):
    """Every file and folder below, with size and time of change."""
    below = {path: path.lstat() for path in folder.rglob("*")}
    return {str(p.relative_to(folder)): (s.st_size, s.st_mtime_ns) for p, s in below.items()}


def same_set(images, pictures):
    """Whether the images are these pictures (H, W, 3), in any order."""
    pictures = sorted(by_hand(p, images.shape[-1]).tobytes() for p in pictures)
    return sorted(image.numpy().tobytes() for image in images) == pictures


# ---- Modes of images -----------------------------------------------------------------------------
# Each entry writes a 16 x 16 file and returns the RGB pixels that it stands for.

MODES = {}


def mode(suffix, tolerance=0):
    def register(build):
        MODES[build.__name__] = (build, suffix, tolerance)
        return build

    return register


@mode("png")
def one_bit(path):
    bits = noise(16, 16) > 127
    Image.fromarray(bits).save(path)
    return grey3(bits * 255)


@mode("png")
def one_bit_transparent(path):
    bits = noise(16, 16) > 127
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    path.write_bytes(raw_png(16, 16, 1, 0, rows, chunk(b"tRNS", struct.pack(">H", 0))))
    return grey3(np.full((16, 16), 255))  # the zeros are transparent, the ones are white


@mode("png")
def grey(path):
    values = noise(16, 16)
    Image.fromarray(values).save(path)
    return grey3(values)


@mode("png")
def grey_transparent(path):
    values = noise(16, 16) // 64 * 64
    Image.fromarray(values).save(path, transparency=64)
    return grey3(np.where(values == 64, 255, values))


@mode("png", tolerance=1)
def grey_alpha(path):
    pixels = noise(16, 16, 2)
    Image.fromarray(pixels, "LA").save(path)
    return on_white(grey3(pixels[..., 0]), pixels[..., 1])


def palette_image(seed=0):
    index, palette = noise(16, 16, seed=seed) % 8, noise(8, 3, seed=seed + 100)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    return image, index, palette


@mode("png")
def palette(path):
    image, index, colors = palette_image()
    image.save(path)
    return colors[index]


@mode("png")
def palette_one_transparent(path):
    image, index, colors = palette_image()
    image.save(path, transparency=3)
    colors[3] = 255
    return colors[index]


@mode("png", tolerance=1)
def palette_with_alpha(path):
    image, index, colors = palette_image()
    alpha = np.array([0, 255, 128, 10, 255, 77, 200, 255], np.uint8)
    image.save(path, transparency=alpha.tobytes())
    return on_white(colors[index], alpha[index])


@mode("png")
def rgb(path):
    pixels = noise(16, 16, 3)
    Image.fromarray(pixels).save(path)
    return pixels


@mode("png")
def rgb_transparent(path):
    pixels = noise(16, 16, 3)
    pixels[::2] = (10, 20, 30)
    Image.fromarray(pixels).save(path, transparency=(10, 20, 30))
    pixels[::2] = 255
    return pixels


@mode("png", tolerance=1)
def rgba(path):
    pixels = noise(16, 16, 4)
    Image.fromarray(pixels).save(path)
    return on_white(pixels[..., :3], pixels[..., 3])


@mode("tiff", tolerance=1)
def cmyk(path):
    pixels = noise(16, 16, 4)
    Image.fromarray(pixels, "CMYK").save(path)
    ink = 255 - pixels.astype(float)
    return np.rint(ink[..., :3] * ink[..., 3:] / 255).astype(np.uint8)


def deep(path, dtype, **options):
    values = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(dtype)
    Image.fromarray(values).save(path, **options)
    return grey3(np.rint(values / 257))


@mode("png")
def grey_16_bits(path):
    return deep(path, np.uint16)


@mode("tiff")
def grey_16_bits_big_endian(path):
    return deep(path, ">u2")


@mode("pgm")
def grey_16_bits_pgm(path):
    values = np.random.default_rng(0).integers(0, 65536, (16, 16))
    path.write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    return grey3(np.rint(values / 257))


@mode("png")
def grey_16_bits_transparent(path):
    values = np.full((16, 16), 100 * 257)
    values[::2] = 5000
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(raw_png(16, 16, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 5000))))
    return grey3(np.where(values == 5000, 255, 100))


@mode("tiff")
def grey_32_bits(path):
    """Whole numbers in 32 bits are taken as 16-bit ones and clipped to their range."""
    values = np.tile(np.array([-5, 0, 257, 65535, 70000, 2**31 - 1, 514, 0], np.int32), (16, 2))
    Image.fromarray(values).save(path)
    return grey3(np.tile([0, 0, 1, 255, 255, 255, 2, 0], (16, 2)))


@mode("jpg")
def ycbcr_jpeg(path):
    Image.fromarray(noise(16, 16, 3)).convert("YCbCr").save(path, quality=90)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@mode("gif")
def first_frame(path):
    frames = [palette_image(seed)[0] for seed in (1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    _, index, colors = palette_image(1)
    return colors[index]


@mode("gif")
def gif_transparent(path):
    image, index, colors = palette_image()
    image.save(path, transparency=5)
    colors[5] = 255
    return colors[index]


@mode("webp")
def webp_lossless(path):
    if not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    pixels = noise(16, 16, 3)
    Image.fromarray(pixels).save(path, lossless=True)
    return pixels


@mode("png")
def bmp_named_png(path):
    """What counts is what the file holds: wrong suffixes are common in collected sets."""
    pixels = noise(16, 16, 3)
    path.write_bytes(encoded(pixels, "BMP"))
    return pixels


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_the_rgb_it_stands_for(name, tmp_path, load):
    build, suffix, tolerance = MODES[name]
    (tmp_path / "set").mkdir()
    expected = build(tmp_path / "set" / f"picture.{suffix}")
    images, _, _ = load(tmp_path / "set")
    assert images.dtype == torch.uint8 and images.shape == (1, 3, 16, 16)
    difference = images[0].numpy().transpose(1, 2, 0).astype(int) - expected
    assert abs(difference).max() <= tolerance


UPRIGHT = {  # EXIF orientation -> the stored pixels as they are to be seen
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation, tmp_path, load):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "set" / "photo.jpg"
    path.parent.mkdir()
    Image.fromarray(noise(16, 24, 3)).save(path, quality=95, exif=exif)
    with Image.open(path) as image:
        stored = np.asarray(image)
    images, _, _ = load(path.parent)
    assert np.array_equal(images[0], by_hand(UPRIGHT[orientation](stored), 16))


@pytest.mark.parametrize("cause", ["size", "exif"])
def test_a_warning_of_pillow_is_no_error(cause, tmp_path, load, monkeypatch):
    """A very large photograph, or one with damaged EXIF, is read, and in silence."""
    pixels, exif = noise(20, 20, 3), b""
    if cause == "size":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # it has more, but not twice as many
    else:
        exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"  # five entries, cut in the first
    (tmp_path / "set").mkdir()
    for i in range(8):
        (tmp_path / "set" / f"{i}.jpg").write_bytes(encoded(pixels, "JPEG", exif=exif))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        images, _, _ = load(tmp_path / "set")
        assert warnings.filters == filters
    assert [str(w.message) for w in said] == []
    monkeypatch.undo()
    with Image.open(io.BytesIO(encoded(pixels, "JPEG"))) as image:
        assert same_set(images, [np.asarray(image)] * 8)


# ---- Cropping and resizing -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 28])
@pytest.mark.parametrize(
    "shape", [(16, 16), (24, 40), (41, 23), (17, 16), (33, 33), (1, 1), (1, 9), (7, 5), (64, 16)]
)
def test_centre_square_is_resized_with_lanczos(shape, size, tmp_path, load):
    pixels = noise(*shape, 3)
    write_png(tmp_path / "set" / "a.png", pixels)
    images, _, _ = load(tmp_path / "set", size)
    assert np.array_equal(images[0], by_hand(pixels, size))


def test_shrinking_is_antialiased():
    """Without a filter every fourth pixel of a checkerboard has the same colour, black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    grey = dcgan.square(Image.fromarray(grey3(board)), 16).astype(int)
    assert abs(grey - 127.5).max() < 8


def test_transparency_is_composed_before_resizing():
    """Hidden colours of transparent pixels would otherwise bleed into the edges."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16] = (255, 255, 255, 255)  # the right half is black, and fully transparent
    assert (dcgan.square(Image.fromarray(pixels), 16) == 255).all()


IMAGE_BYTES = {"1": 0, "L": 1, "LA": 2, "P": 1, "PA": 2, "RGB": 3, "RGBX": 4, "RGBA": 4, "CMYK": 4}
IMAGE_BYTES |= {"YCbCr": 3, "HSV": 3, "I": 4, "I;16": 2, "I;16B": 2}


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(
    mode=st.sampled_from(sorted(IMAGE_BYTES)),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    size=st.sampled_from([16, 20, 28, 32]),
    seed=st.integers(0, 99),
)
def test_square_of_any_image(mode, width, height, size, seed):
    """uint8 (3, size, size), a function of the image alone, which stays as it was."""
    length = width * height * IMAGE_BYTES[mode] or (width + 7) // 8 * height
    content = noise(length, seed=seed).tobytes()
    image = Image.frombytes(mode, (width, height), content)
    if mode in ("P", "PA"):
        image.putpalette(noise(768, seed=seed + 1).tobytes())
    before = image.tobytes()
    first, again = dcgan.square(image, size), dcgan.square(image, size)
    assert first.dtype == np.uint8 and first.shape == (3, size, size)
    assert np.array_equal(first, again) and image.tobytes() == before
    if mode == "RGB":
        pixels = np.frombuffer(content, np.uint8).reshape(height, width, 3)
        assert np.array_equal(first, by_hand(pixels, size))


# ---- Containers ----------------------------------------------------------------------------------


def test_folder_zip_npy_and_npz_give_the_same_tensor(tmp_path, load):
    pictures = noise(6, 20, 24, 3)
    names = [f"{i}.png" for i in range(6)]
    for name, pixels in zip(names, pictures):
        write_png(tmp_path / "set" / name, pixels)
    zip_of(tmp_path / "set.zip", {n: encoded(p) for n, p in zip(names, pictures)})
    zip_of(tmp_path / "small.ZIP", {n: encoded(p) for n, p in zip(names, pictures)}, compression=8)
    np.save(tmp_path / "set.npy", pictures)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(pictures))
    np.savez(tmp_path / "set.npz", images=pictures)
    np.savez_compressed(tmp_path / "small.npz", images=pictures)
    expected = np.stack([by_hand(p, 16) for p in pictures])
    for name in ("set", "set.zip", "small.ZIP", "set.npy", "fortran.npy", "set.npz", "small.npz"):
        images, labels, _ = load(tmp_path / name)
        assert np.array_equal(images, expected), name
        assert labels.dtype == torch.int64 and labels.tolist() == [0] * 6, name


def test_order_and_labels_hold_beyond_one_batch_of_decoding(tmp_path, load):
    """More images than are decoded at a time; image i is of the colour i."""
    n = 1100
    colors = np.stack([np.arange(n) % 256, np.arange(n) // 256, np.full(n, 7)], 1).astype(np.uint8)
    pixels = np.tile(colors[:, None, None], (1, 2, 2, 1))
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(n) % 3)
    images, labels, _ = load(tmp_path / "set.npz")
    assert torch.equal(images, torch.from_numpy(colors)[:, :, None, None].expand(n, 3, 16, 16))
    assert labels.tolist() == [i % 3 for i in range(n)]


def test_a_path_object_is_a_path(tmp_path, cache):
    pictures = folder_of(tmp_path / "set", ["a.png"])
    images, _, _ = dcgan.load_data(tmp_path / "set", 16, cache=cache)
    assert same_set(images, pictures)


# ---- Labels and classes --------------------------------------------------------------------------


def as_folder(folder, names):
    return folder, folder_of(folder, names)


def as_zip(folder, names):
    pictures = folder_of(folder, names)
    members = {name: (folder / name).read_bytes() for name in names}
    shutil.rmtree(folder)
    return zip_of(folder.with_suffix(".zip"), members), pictures


@pytest.fixture(params=[as_folder, as_zip])
def make(request, tmp_path):
    """make(names): a folder or a zip of pictures of noise, and the pictures."""
    return lambda names: request.param(tmp_path / "set", names)


def found(images, labels, names, pictures):
    """For each picture the class that its image carries, None where it was left out."""
    known = {image.numpy().tobytes(): names[label] for image, label in zip(images, labels)}
    assert len(known) == len(images)
    return [known.get(by_hand(p, images.shape[-1]).tobytes()) for p in pictures]


def test_the_first_level_of_folders_gives_the_classes(make, load):
    data, pictures = make(
        ["dog/x/deep/1.png", "cat/1.png", "dog/2.PNG", "cat/y/2.png", "owl/1.png"]
    )
    images, labels, names = load(data)
    assert names == ["cat", "dog", "owl"] and labels.dtype == torch.int64
    assert found(images, labels, names, pictures) == ["dog", "cat", "dog", "cat", "owl"]


def test_without_folders_there_is_one_class(make, load):
    data, pictures = make(["b.png", "a.png", "c.png"])
    images, labels, names = load(data)
    assert len(names) == 1 and labels.tolist() == [0, 0, 0] and same_set(images, pictures)


def test_top_level_images_beside_folders_are_a_class_of_their_own(make, load):
    data, pictures = make(["top.png", "cat/1.png", "dog/1.png"])
    images, labels, names = load(data)
    classes = found(images, labels, names, pictures)
    assert len(names) == 3 and classes[1:] == ["cat", "dog"] and classes[0] in names


def test_upper_case_suffixes(tmp_path, load):
    pictures = folder_of(tmp_path / "set", ["A.PNG", "b.Png"])
    Image.fromarray(noise(16, 16, 3, seed=9)).save(tmp_path / "set" / "C.JPG")
    with Image.open(tmp_path / "set" / "C.JPG") as image:
        pictures.append(np.asarray(image))
    assert same_set(load(tmp_path / "set")[0], pictures)


CLUTTER = ["cat/.hidden.png", "__MACOSX/cat/._1.png", "__MACOSX/1.png", "cat/Thumbs.db"]
CLUTTER += ["notes.txt", "cat/labels.csv", ".DS_Store", "no_suffix", "cat/desktop.ini"]


def test_hidden_files_and_clutter_are_ignored(make, load):
    data, pictures = make(["cat/1.png", "dog/1.png", *CLUTTER])
    images, labels, names = load(data)
    assert names == ["cat", "dog"]
    assert found(images, labels, names, pictures) == ["cat", "dog"] + [None] * len(CLUTTER)


def test_hidden_folders_are_ignored(make, load):
    """Notebooks and file managers keep copies of pictures in them."""
    data, pictures = make(["cat/1.png", ".ipynb_checkpoints/1.png", "cat/.thumbnails/1.png"])
    images, labels, names = load(data)
    assert names == ["cat"] and found(images, labels, names, pictures) == ["cat", None, None]


def test_a_folder_named_like_an_image_is_none(tmp_path, load):
    pixels = noise(16, 16, 3)
    members = {"first.png/": b"", "first.png/1.png": encoded(pixels)}
    images, _, names = load(zip_of(tmp_path / "set.zip", members))
    assert names == ["first.png"] and same_set(images, [pixels])


def test_classes_keeps_those_alone(make, load):
    data, pictures = make(["cat/1.png", "dog/1.png", "owl/1.png", "dog/2.png"])
    for wanted in (["owl", "dog"], ["dog", "owl"], ["cat"], ["cat", "cat"]):
        images, labels, names = load(data, classes=wanted)
        expected = [c if c in wanted else None for c in ("cat", "dog", "owl", "dog")]
        assert found(images, labels, names, pictures) == expected
    assert len(load(data)[0]) == 4  # the cache of the few does not stand for all


def test_an_unknown_class_names_the_known_ones(make, refusal):
    data, _ = make(["cat/1.png", "dog/1.png"])
    message = refusal(data, classes=["cat", "zebra"])
    assert "zebra" in message and "cat dog" in message and "\n" not in message


def test_labels_of_an_npz(tmp_path, load):
    pictures = noise(4, 16, 16, 3)
    np.savez(tmp_path / "set.npz", images=pictures, labels=np.array([7, 3, 7, 10], np.uint8))
    images, labels, names = load(tmp_path / "set.npz")
    assert sorted(names) == ["10", "3", "7"] and labels.dtype == torch.int64
    assert [names[i] for i in labels] == ["7", "3", "7", "10"]
    images, labels, names = load(tmp_path / "set.npz", classes=["7"])
    assert found(images, labels, names, pictures) == ["7", None, "7", None]


# ---- Cache ---------------------------------------------------------------------------------------


def never(*args, **kwargs):
    raise AssertionError("decoded again")


def test_the_result_is_mapped_from_a_file_in_the_cache(tmp_path, cache, load):
    pictures = folder_of(tmp_path / "set", ["a.png", "b.png", "c.png"], side=20)
    images, _, _ = load(tmp_path / "set", 28)
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 28, 28)
    (file,) = cache.glob("*.npy")
    assert np.array_equal(np.load(file), [by_hand(p, 28) for p in pictures])
    last = int(images[-1, -1, -1, -1])
    with open(file, "r+b") as opened:  # a change of the file is seen through the map
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([255 - last]))
    assert int(images[-1, -1, -1, -1]) == 255 - last


@pytest.mark.parametrize("name", ["set", "set.zip", "set.npy", "set.npz"])
def test_a_second_load_decodes_nothing(name, tmp_path, load, monkeypatch):
    pictures = noise(4, 20, 20, 3)
    for i, pixels in enumerate(pictures):
        write_png(tmp_path / "set" / f"{i % 2}" / f"{i}.png", pixels)
    zip_of(tmp_path / "set.zip", {f"{i}.png": encoded(p) for i, p in enumerate(pictures)})
    np.save(tmp_path / "set.npy", pictures)
    np.savez(tmp_path / "set.npz", images=pictures, labels=[2, 1, 2, 1])
    first = load(tmp_path / name)
    monkeypatch.setattr(dcgan, "decode", never)
    monkeypatch.setattr(dcgan, "square", never)
    again = load(tmp_path / name)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[2] == again[2]
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load(name)[0], first[0])  # the same set by another name


def test_another_size_is_decoded_anew(tmp_path, load):
    (pixels,) = folder_of(tmp_path / "set", ["a.png"], side=32)
    for size in (16, 28, 16):
        images, _, _ = load(tmp_path / "set", size)
        assert np.array_equal(images[0], by_hand(pixels, size))


def change(folder):
    """New pixels in a file of the same length, an hour later."""
    path = folder / "cat" / "b.bmp"
    length, then = path.stat().st_size, path.stat().st_mtime
    path.write_bytes(encoded(noise(16, 16, 3, seed=50), "BMP"))
    assert path.stat().st_size == length
    os.utime(path, (then + 3600, then + 3600))


def add(folder):
    (folder / "dog" / "d.bmp").write_bytes(encoded(noise(16, 16, 3, seed=51), "BMP"))


def remove(folder):
    (folder / "cat" / "a.bmp").unlink()


def move(folder):
    (folder / "cat" / "a.bmp").rename(folder / "dog" / "z.bmp")


@pytest.mark.parametrize("edit", [change, add, remove, move])
def test_an_edited_folder_is_decoded_anew(edit, tmp_path, load):
    folder = tmp_path / "set"
    for i, name in enumerate(("cat/a.bmp", "cat/b.bmp", "dog/c.bmp")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(noise(16, 16, 3, seed=i), "BMP"))
        os.utime(folder / name, (1e9, 1e9))  # one time for all, as in an unpacked archive
    load(folder)
    edit(folder)
    pictures, classes = [], []
    for path in folder.rglob("*.bmp"):
        with Image.open(path) as image:
            pictures.append(np.asarray(image))
        classes.append(path.parent.name)
    images, labels, names = load(folder)
    assert same_set(images, pictures)
    assert found(images, labels, names, pictures) == classes


@pytest.mark.parametrize("suffix", ["zip", "npy", "npz"])
def test_an_edited_file_is_decoded_anew(suffix, tmp_path, load):
    path = tmp_path / f"set.{suffix}"
    for hour, pixels in enumerate((noise(1, 16, 16, 3), noise(1, 16, 16, 3, seed=1))):
        if suffix == "zip":
            zip_of(path, {"a.bmp": encoded(pixels[0], "BMP")})
        elif suffix == "npy":
            np.save(path, pixels)
        else:
            np.savez(path, images=pixels)
        os.utime(path, (1e9 + 3600 * hour, 1e9 + 3600 * hour))
        images, _, _ = load(path)
        assert np.array_equal(images[0], by_hand(pixels[0], 16))


def test_a_read_only_source_is_enough(tmp_path, load):
    """Where root runs the tests nothing is forbidden; then the listings tell."""
    folder = tmp_path / "set"
    pictures = folder_of(folder, ["cat/1.png", "dog/1.png"])
    (tmp_path / "zips").mkdir()
    data = zip_of(tmp_path / "zips" / "set.zip", {"a.png": encoded(pictures[0])})
    paths = [*folder.rglob("*"), folder, data, data.parent]
    before = listing(folder), listing(data.parent)
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert same_set(load(folder)[0], pictures)
        assert same_set(load(data)[0], pictures[:1])
    finally:
        for path in paths:
            path.chmod(0o755)
    assert (listing(folder), listing(data.parent)) == before


def test_an_interrupted_decode_leaves_nothing(tmp_path, cache, load, monkeypatch):
    pictures = folder_of(tmp_path / "set", [f"{i:02}.png" for i in range(24)])
    square, calls = dcgan.square, []

    def interrupted(image, size):
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return square(image, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dcgan, "square", interrupted)
        load(tmp_path / "set")
    assert len(calls) > 9 and listing(cache) == {}
    images, _, _ = load(tmp_path / "set")
    assert np.array_equal(images, [by_hand(p, 16) for p in pictures])


def test_a_full_disk_leaves_nothing(tmp_path, cache, load, monkeypatch):
    pictures = folder_of(tmp_path / "set", ["a.png", "b.png"])

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="No space left") as info:
        patch.setattr(os, "fsync", full)
        load(tmp_path / "set")
    assert str(cache) in info.value.code and listing(cache) == {}
    assert same_set(load(tmp_path / "set")[0], pictures)


def test_half_a_cache_entry_is_not_trusted(tmp_path, cache, load):
    """Stopped between its two files, a decode starts again."""
    pictures = folder_of(tmp_path / "set", ["a.png", "b.png"])
    load(tmp_path / "set")
    before = set(listing(cache))
    for name in before:
        (cache / name).unlink()
        assert same_set(load(tmp_path / "set")[0], pictures)
        assert set(listing(cache)) == before


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_folder_that_cannot_be_made(below, tmp_path):
    folder_of(tmp_path / "set", ["a.png"])
    (tmp_path / "taken").write_text("a file")
    cache = str(tmp_path / "taken" / below)
    with pytest.raises(SystemExit) as info:
        dcgan.load_data(str(tmp_path / "set"), 16, cache=cache)
    assert cache in info.value.code and "\n" not in info.value.code
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_cache_folder_that_may_not_be_opened(tmp_path):
    folder_of(tmp_path / "set", ["a.png"])
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    try:
        if os.access(locked, os.X_OK):
            pytest.skip("nothing is forbidden here")
        with pytest.raises(SystemExit) as info:
            dcgan.load_data(str(tmp_path / "set"), 16, cache=str(locked / "cache"))
    finally:
        locked.chmod(0o755)
    assert str(locked) in info.value.code and "\n" not in info.value.code


# ---- What cannot be read -------------------------------------------------------------------------


def test_a_missing_path(tmp_path, refusal):
    for name in ("nothing", "nothing.zip", "nothing.npz"):
        message = refusal(tmp_path / name)
        assert "no such file" in message and "sprites" in message and "cifar10" in message


def test_a_folder_without_images(tmp_path, refusal):
    (tmp_path / "set").mkdir()
    assert "no images" in refusal(tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("notes")
    assert "no images" in refusal(tmp_path / "set")


def test_a_folder_that_may_not_be_opened_is_not_taken_for_an_empty_one(
    tmp_path, refusal, monkeypatch
):
    """Simulated: where root runs the tests, every folder may be opened."""
    folder_of(tmp_path / "set", ["cat/1.png", "dog/1.png"])
    scan = os.scandir

    def guarded(path="."):
        if Path(os.fsdecode(path)).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    message = refusal(tmp_path / "set")
    assert "Permission denied" in message and str(tmp_path / "set" / "dog") in message


@pytest.mark.parametrize("name", ["set.tar", "set.png", "set"])
def test_a_file_of_another_kind(name, tmp_path, refusal):
    (tmp_path / name).write_bytes(encoded(noise(16, 16, 3)))
    message = refusal(tmp_path / name)
    assert all(word in message for word in ("folder", ".zip", ".npy", ".npz"))


def text(pixels):
    return b"this is no picture\n" * 20


def cut_jpeg(pixels):
    content = encoded(pixels, "JPEG", quality=95)
    return content[: len(content) // 2]


def cut_png(pixels):
    content = encoded(pixels)
    return content[: len(content) // 2]


def nothing(pixels):
    return b""


def bomb(pixels):
    """A header that claims 4.8 GB of pixels, in a file of a few hundred bytes."""
    return raw_png(40000, 40000, 8, 2, bytes(40000))


def floats(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(file, "TIFF")
    return file.getvalue()


BAD = [text, cut_jpeg, cut_png, nothing, bomb, floats]


@pytest.mark.parametrize("container", ["folder", "zip"])
@pytest.mark.parametrize("spoil", BAD)
def test_an_unreadable_image_is_named_or_left_out(
    spoil, container, tmp_path, load, refusal, capsys, monkeypatch
):
    pictures = [noise(32, 32, 3, seed=i) for i in range(3)]
    members = {"cat/1.png": encoded(pictures[0]), "dog/bad.png": spoil(pictures[1])}
    members["owl/2.png"] = encoded(pictures[2])
    if container == "zip":
        data = zip_of(tmp_path / "set.zip", members)
    else:
        data = tmp_path / "set"
        for name, content in members.items():
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_bytes(content)
    prepare, sizes = ImageFile.ImageFile.load_prepare, set()

    def spy(image):
        sizes.add(image.size)  # a picture's memory is allocated here
        prepare(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", spy)
    message = refusal(data)
    assert "1 unreadable" in message and "--skip-corrupt" in message
    _, *listed = message.split("\n")
    assert len(listed) == 1 and listed[0].strip().startswith("dog/bad.png: ")
    if spoil is floats:
        assert "float" in listed[0]
    assert (40000, 40000) not in sizes and (32, 32) in sizes

    capsys.readouterr()
    images, labels, names = load(data, skip_corrupt=True)
    assert "1 unreadable" in capsys.readouterr().out
    assert found(images, labels, names, pictures) == ["cat", None, "owl"]
    refusal(data)  # what was left out once is not forgotten


def test_a_link_to_nowhere_is_an_unreadable_image(tmp_path, load, refusal):
    pictures = folder_of(tmp_path / "set", ["a.png"])
    try:
        (tmp_path / "set" / "link.png").symlink_to(tmp_path / "gone.png")
    except OSError:
        pytest.skip("no symbolic links here")
    message = refusal(tmp_path / "set")
    assert "link.png" in message and "--skip-corrupt" in message
    assert same_set(load(tmp_path / "set", skip_corrupt=True)[0], pictures)


def test_postscript_is_never_run(tmp_path, refusal, monkeypatch):
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: ran.append(args))
    folder_of(tmp_path / "set", ["a.png"])
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    for name in ("b.png", "c.eps"):
        (tmp_path / "set" / name).write_bytes(program)
    message = refusal(tmp_path / "set")
    assert "b.png" in message and "c.eps" not in message and not ran


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_nothing_but_unreadable_images(skip_corrupt, tmp_path, cache, refusal):
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "set" / name).write_bytes(text(None))
    message = refusal(tmp_path / "set", skip_corrupt=skip_corrupt)
    assert "2 unreadable" in message and "no image" in message
    assert "a.png" in message and "b.png" in message
    assert listing(cache) == {}


def test_a_long_list_of_unreadable_images_is_cut(tmp_path, load, refusal, capsys):
    pictures = folder_of(tmp_path / "set", ["good.png"])
    for i in range(25):
        (tmp_path / "set" / f"bad{i:02}.png").write_bytes(text(None))
    message = refusal(tmp_path / "set")
    shown = [i for i in range(25) if f"bad{i:02}.png" in message]
    assert shown == list(range(20)) and "25 unreadable" in message and "5 more" in message
    capsys.readouterr()
    assert same_set(load(tmp_path / "set", skip_corrupt=True)[0], pictures)
    assert "25 unreadable" in capsys.readouterr().out


# ---- Archives and arrays that are damaged or hostile ---------------------------------------------


def test_a_zip_that_is_none(tmp_path, refusal):
    for content in (b"", b"not a zip at all" * 10, encoded(noise(16, 16, 3))):
        (tmp_path / "set.zip").write_bytes(content)
        message = refusal(tmp_path / "set.zip")
        assert "cannot be read" in message and "\n" not in message


def test_a_zip_of_a_later_version(tmp_path, refusal):
    path = zip_of(tmp_path / "set.zip", {"a.png": encoded(noise(16, 16, 3))})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 99  # the version needed to extract
    path.write_bytes(content)
    message = refusal(path)
    assert "cannot be read" in message and "\n" not in message


def encrypt(content, name):
    """Set the encryption bit in both headers of a member."""
    local = content.index(b"PK\3\4", content.index(name) - 30)
    central = content.index(b"PK\1\2", content.index(name, content.index(b"PK\1\2")) - 46)
    content[local + 6] |= 1
    content[central + 8] |= 1


def damage(content, name):
    """Change bytes in the middle of a member."""
    middle = content.index(name) + 400
    content[middle : middle + 8] = bytes(b ^ 255 for b in content[middle : middle + 8])


@pytest.mark.parametrize("spoil, reason", [(encrypt, "encrypted"), (damage, "CRC")])
def test_a_bad_member_of_a_zip_is_named_or_left_out(spoil, reason, tmp_path, load, refusal):
    pictures = [noise(16, 16, 3, seed=i) for i in range(3)]
    names = ["one.png", "two.png", "three.png"]
    path = zip_of(tmp_path / "set.zip", {n: encoded(p) for n, p in zip(names, pictures)})
    content = bytearray(path.read_bytes())
    spoil(content, b"two.png")
    path.write_bytes(content)
    message = refusal(path)
    assert "1 unreadable" in message and "two.png" in message and reason in message
    assert "one.png" not in message and "three.png" not in message
    assert same_set(load(path, skip_corrupt=True)[0], [pictures[0], pictures[2]])


def test_names_in_a_zip_never_become_paths(tmp_path, cache, load):
    pictures = [noise(16, 16, 3, seed=i) for i in range(5)]
    names = ["/absolute/a.png", "../../outside.png", "cat/../../b.png", "dog/c.png"]
    names += ["..\\..\\windows.png"]
    inside = tmp_path / "some" / "where"
    inside.mkdir(parents=True)
    data = zip_of(inside / "set.zip", {n: encoded(p) for n, p in zip(names, pictures)})
    before = listing(tmp_path)
    images, labels, names = load(data)
    assert same_set(images, pictures) and len(labels) == 5
    assert not {"/", "..", "\\"} & set(names)
    written = {n for n in listing(tmp_path).items() - before.items() if "cache" not in n[0]}
    assert written == set() and not (tmp_path.parent / "outside.png").exists()
    assert not Path("/absolute").exists()


GOOD = noise(4, 16, 16, 3)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"pictures": GOOD}, "images"),
        ({"labels": np.arange(4)}, "images"),
        ({"images": GOOD.astype(np.float32)}, "float32"),
        ({"images": GOOD.astype(np.int64)}, "int64"),
        ({"images": GOOD[..., 0]}, "(4, 16, 16)"),
        ({"images": GOOD[..., :1]}, "(4, 16, 16, 1)"),
        ({"images": GOOD.transpose(0, 3, 1, 2)}, "(4, 3, 16, 16)"),
        ({"images": GOOD[0, 0, 0, 0]}, "images"),
        ({"images": GOOD[:0]}, "no images"),
        ({"images": GOOD, "labels": np.arange(3)}, "labels"),
        ({"images": GOOD, "labels": np.zeros((4, 1), int)}, "labels"),
        ({"images": GOOD, "labels": np.zeros(4)}, "labels"),
        ({"images": GOOD, "labels": np.array(list("abcd"))}, "labels"),
        ({"images": GOOD, "labels": np.int64(0)}, "labels"),
    ],
)
def test_an_npz_of_other_arrays(arrays, words, tmp_path, refusal):
    np.savez(tmp_path / "set.npz", **arrays)
    message = refusal(tmp_path / "set.npz")
    assert words in message and "\n" not in message


@pytest.mark.parametrize(
    "array", [GOOD.astype(np.float32), GOOD[0], GOOD.transpose(0, 3, 1, 2), GOOD[0, 0, 0, 0]]
)
def test_an_npy_of_another_array(array, tmp_path, refusal):
    np.save(tmp_path / "set.npy", array)
    message = refusal(tmp_path / "set.npy")
    assert "uint8" in message and str(array.shape) in message and "\n" not in message


def cut(content):
    return content[: len(content) // 2]


def empty(content):
    return b""


def words(content):
    return b"this is no array\n" * 20


def open_header(content):
    """A header whose last brackets are missing."""
    return content.replace(b"3), }", b"3    ")


def bad_block(content):
    """An undefined kind of block at the start of the compressed images."""
    start = content.index(b"images.npy") + 10 + 20  # name and the 64-bit sizes after it
    return content[:start] + b"\xff" * 8 + content[start + 8 :]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # numpy's own
@pytest.mark.parametrize(
    "name, spoil",
    [(name, spoil) for name in ("set.npy", "set.npz") for spoil in (cut, empty, words)]
    + [("set.npy", open_header), ("set.npz", bad_block)],
)
def test_a_damaged_array_file(name, spoil, tmp_path, refusal):
    file = io.BytesIO()
    np.save(file, GOOD) if name == "set.npy" else np.savez_compressed(file, images=GOOD)
    spoiled = spoil(file.getvalue())
    assert spoiled != file.getvalue()
    (tmp_path / name).write_bytes(spoiled)
    assert "\n" not in refusal(tmp_path / name)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name, other", [("set.npy", "set.npz"), ("set.npz", "set.npy")])
def test_an_array_file_with_the_suffix_of_the_other(name, other, tmp_path, load):
    """It may be read or refused, but is no crash."""
    np.save(tmp_path / "set.npy", GOOD)
    np.savez(tmp_path / "set.npz", images=GOOD)
    shutil.copyfile(tmp_path / name, tmp_path / "copy")
    (tmp_path / "copy").replace(tmp_path / other)
    try:
        images = load(tmp_path / other)[0]
    except SystemExit as refused:
        assert str(tmp_path / other) in refused.code and "\n" not in refused.code
    else:
        assert same_set(images, GOOD)


class Payload:
    """Unpickled, it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["npy", "npz", "labels", "pickle"])
def test_pickled_objects_are_refused_and_not_run(kind, tmp_path, refusal):
    marker = tmp_path / "ran"
    objects = np.array([Payload(str(marker))], object)
    path = tmp_path / ("set.npz" if kind in ("npz", "labels") else "set.npy")
    if kind == "npy":
        np.save(path, objects)
    elif kind == "npz":
        np.savez(path, images=objects)
    elif kind == "labels":
        np.savez(path, images=GOOD[:1], labels=objects)
    else:
        path.write_bytes(pickle.dumps(objects))
    assert "\n" not in refusal(path)
    assert not marker.exists()

    array = np.load(path, allow_pickle=True)  # the trap is a real one
    if kind in ("npz", "labels"):
        array["images" if kind == "npz" else "labels"]
        array.close()
    assert marker.exists()


# ---- Sprites -------------------------------------------------------------------------------------


def test_sprites_are_the_same_everywhere():
    images, labels = dcgan.sprites(32)
    again, labels_again = dcgan.sprites(32)
    assert np.array_equal(images, again) and np.array_equal(labels, labels_again)
    assert images.shape == (2048, 32, 32, 3) and images.dtype == np.uint8
    # pinned as far as rounding in other versions of Pillow and numpy can be left open
    assert images.mean((0, 1, 2)) == pytest.approx([158.666, 158.461, 158.476], abs=0.05)
    for i, color in ((3, [195.59, 144.65, 144.04]), (2047, [145.73, 206.60, 148.04])):
        assert images[i].mean((0, 1)) == pytest.approx(color, abs=0.5)


def test_sprites_are_of_four_classes_and_all_different():
    images, labels = dcgan.sprites(16, 200)
    assert np.bincount(labels).tolist() == [50, 50, 50, 50]
    assert len({image.tobytes() for image in images}) == 200


@pytest.mark.parametrize("size", [16, 20, 28, 32, 40, 48, 56, 64, 96, 112, 256])
def test_sprites_are_mirrored(size):
    images, labels = dcgan.sprites(size, 40)
    assert images.shape == (40, size, size, 3) and len(labels) == 40
    crooked = [i for i, image in enumerate(images) if not np.array_equal(image, image[:, ::-1])]
    assert crooked == []


def test_sprites_load_like_any_set(load):
    images, labels, names = load("sprites", 28)
    pixels, kinds = dcgan.sprites(28)
    assert images.shape == (2048, 3, 28, 28) and len(names) == len(set(names)) == 4
    assert np.array_equal(images, pixels.transpose(0, 3, 1, 2))
    assert np.array_equal(labels, kinds)
    images, labels, _ = load("sprites", 28, classes=[names[2]])
    assert np.array_equal(images, pixels[kinds == 2].transpose(0, 3, 1, 2))
    assert set(labels.tolist()) == {2}


# ---- Sets of torchvision -------------------------------------------------------------------------


def md5(content):
    return hashlib.md5(content).hexdigest()


def tar_gz(path, folder, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def tiny_cifar10(cache, monkeypatch):
    """An archive of 5 batches of 2 images in the official layout, and what is in it."""
    kind, names = torchvision.datasets.CIFAR10, "plane car bird cat deer dog frog horse ship truck"
    pictures, labels = noise(10, 32, 32, 3), [3, 8, 8, 0, 6, 6, 1, 6, 3, 9]
    members = {"batches.meta": pickle.dumps({"label_names": names.split()}, 2)}
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        planes = pictures[part].transpose(0, 3, 1, 2).reshape(2, 3072)
        members[f"data_batch_{i + 1}"] = pickle.dumps({"data": planes, "labels": labels[part]}, 2)
    members["test_batch"] = pickle.dumps({"data": planes, "labels": labels[:2]}, 2)
    sums = {name: md5(content) for name, content in members.items()}
    archive = tar_gz(cache / kind.filename, kind.base_folder, members)
    train = [[name, sums[name]] for name in members if name.startswith("data")]
    monkeypatch.setattr(kind, "train_list", train)
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setattr(kind, "tgz_md5", md5(archive.read_bytes()))
    return archive, pictures, labels, names.split()


def test_an_archive_put_there_by_hand_is_used(tiny_cifar10, load):
    archive, pictures, targets, classes = tiny_cifar10
    for _ in range(2):  # unpacked by the first pass, the second does not need the archive
        images, labels, names = load("cifar10", 32)
        assert np.array_equal(images, pictures.transpose(0, 3, 1, 2))
        assert labels.tolist() == targets and names == classes
        archive.unlink(missing_ok=True)
    images, labels, _ = load("cifar10", 16, classes=["frog"])
    expected = [by_hand(p, 16) for p, t in zip(pictures, targets) if t == 6]
    assert np.array_equal(images, expected) and labels.tolist() == [6, 6, 6]


def test_stl10_with_its_unlabeled_images(cache, load, monkeypatch):
    kind = torchvision.datasets.STL10
    pictures, classes = noise(5, 96, 96, 3), [f"class{i}" for i in range(10)]
    columns = pictures.transpose(0, 3, 2, 1)  # stored by columns
    members = {"train_X.bin": columns[:3].tobytes(), "train_y.bin": bytes([10, 1, 4])}
    members |= {"unlabeled_X.bin": columns[3:].tobytes(), "test_X.bin": b"", "test_y.bin": b""}
    members["class_names.txt"] = "\n".join(classes).encode()
    archive = tar_gz(cache / kind.filename, kind.base_folder, members)
    for attribute in ("train_list", "test_list"):
        files = [[name, md5(members[name])] for name, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, files)
    monkeypatch.setattr(kind, "tgz_md5", md5(archive.read_bytes()))
    images, labels, names = load("stl10", 96)
    assert np.array_equal(images, pictures.transpose(0, 3, 1, 2))
    shown = [names[i] for i in labels]
    assert shown == ["class9", "class0", "class3", "unlabeled", "unlabeled"]


def test_celeba_unpacked_by_hand(cache, load, monkeypatch):
    kind = torchvision.datasets.CelebA
    files = [f"{i:06}.jpg" for i in range(1, 4)]
    columns = {"list_attr_celeba.txt": ("Young", "1"), "list_bbox_celeba.txt": ("x_1", "5")}
    columns |= {"list_landmarks_align_celeba.txt": ("lefteye_x", "5")}
    pictures = []
    for i, name in enumerate(files):
        path = write_png(cache / "celeba" / "img_align_celeba" / name, noise(28, 20, 3, seed=i))
        with Image.open(path) as image:
            pictures.append(np.asarray(image))
    listed = []
    for file_id, _, name in kind.file_list:
        content = b""
        if name.endswith(".txt"):
            head, value = columns.get(name, ("", "1"))
            head = f"{len(files)}\n{head}\n" if head else ""
            content = (head + "".join(f"{file} {value}\n" for file in files)).encode()
            (cache / "celeba" / name).write_bytes(content)
        listed.append((file_id, md5(content), name))
    monkeypatch.setattr(kind, "file_list", listed)
    images, labels, names = load("celeba")
    assert np.array_equal(images, [by_hand(p, 16) for p in pictures])
    assert labels.tolist() == [0, 0, 0] and len(names) == 1


def fake_lmdb(databases):
    """The part of the lmdb package that torchvision uses; databases: folder -> {key: value}."""

    class Transaction:
        def __init__(self, rows):
            self.rows = rows

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def stat(self):
            return {"entries": len(self.rows)}

        def cursor(self):
            return self

        def iternext(self, keys, values):
            return iter(self.rows)

        def get(self, key):
            return self.rows[key]

    class Error(Exception):  # as in the real one, no OSError
        pass

    def opened(path, **options):
        if path not in databases:
            raise Error(f"{path}: No such file or directory")
        return types.SimpleNamespace(begin=lambda write: Transaction(databases[path]))

    module = types.ModuleType("lmdb")
    module.Error, module.open = Error, opened
    return module


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # torchvision's own
def test_lsun_from_its_database(tmp_path, cache, load, monkeypatch):
    pictures = [noise(20, 16, 3, seed=i) for i in range(5)]
    rows = {b"%d" % i: encoded(p) for i, p in enumerate(pictures)}
    lmdb = fake_lmdb({os.path.join(str(cache), "bedroom_train_lmdb"): rows})
    monkeypatch.setitem(sys.modules, "lmdb", lmdb)
    monkeypatch.chdir(tmp_path)  # torchvision keeps a list of keys in the working folder
    images, labels, names = load("lsun-bedroom")
    assert np.array_equal(images, [by_hand(p, 16) for p in pictures])
    assert labels.tolist() == [0] * 5 and names == ["bedroom"]


@pytest.mark.parametrize("installed", [False, True])
def test_lsun_without_its_files(installed, cache, refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", fake_lmdb({}) if installed else None)
    message = refusal("lsun-bedroom")
    assert str(cache / "bedroom_train_lmdb") in message and "pip install lmdb" in message


def test_an_unknown_lsun_set_names_the_known_ones(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", fake_lmdb({}))
    message = refusal("lsun-spaceship")
    assert "bedroom" in message and "church_outdoor" in message


def fake_gdown():
    class FileURLRetrievalError(Exception):  # as in the real one, no OSError
        pass

    def download(**options):
        raise FileURLRetrievalError("Too many users have viewed or downloaded this file recently.")

    module = types.ModuleType("gdown")
    module.download = download
    return module


@pytest.mark.parametrize("installed", [False, True])
def test_celeba_without_its_files(installed, cache, refusal, monkeypatch):
    """Google Drive refuses its archive on most days."""
    monkeypatch.setitem(sys.modules, "gdown", fake_gdown() if installed else None)
    message = refusal("celeba")
    assert ("Too many users" if installed else "gdown") in message
    assert str(cache / "celeba" / "img_align_celeba.zip") in message
    assert "00d2c5bc6d35e252742224ab0c1e8fcb" in message and "list_eval_partition.txt" in message


CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"


def test_without_a_network(cache, refusal):
    for name, archive, checksum in (
        ("cifar10", "cifar-10-python.tar.gz", CIFAR10_MD5),
        ("stl10", "stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"),
    ):
        message = refusal(name)
        assert str(cache / archive) in message and checksum in message
        assert "no network in tests" in message  # the reason
        assert listing(cache) == {}


@contextmanager
def server(answer):
    """The URL of a loopback server that sends `answer` to whoever connects, and then stalls."""
    listener, stop, held = socket.create_server(("127.0.0.1", 0)), threading.Event(), []
    listener.settimeout(0.05)

    def serve():
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            held.append(connection)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/cifar-10-python.tar.gz"
    finally:
        stop.set()
        thread.join()
        for connection in (listener, *held):
            connection.close()


ANSWERS = {
    "silence": b"",
    "a part, then silence": b"HTTP/1.0 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"x" * 70000,
    "another file": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "not found": b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"220 this is another service\r\n\r\n",
}


@pytest.fixture
def impatient(monkeypatch):
    """Timeouts of 0.3 seconds for whatever the script asks for, and 3 where it asks for none."""
    asked, set_timeout = [], socket.setdefaulttimeout

    def short(seconds):
        asked.append(seconds)
        set_timeout(0.3 if seconds else 3)

    set_timeout(3)
    monkeypatch.setattr(socket, "setdefaulttimeout", short)
    yield asked
    set_timeout(None)


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_download_that_fails(answer, cache, refusal, monkeypatch, impatient):
    """It says what to put where; neither a part of the file nor a folder for it stays behind."""
    cache.mkdir()
    damaged = cache / "cifar-10-python.tar.gz"
    for before in (None, b"a copy that was cut short"):
        if before:
            damaged.write_bytes(before)
        with server(ANSWERS[answer]) as url:
            monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
            start = time.monotonic()
            message = refusal("cifar10")
            assert time.monotonic() - start < 2.5
        assert str(damaged) in message and CIFAR10_MD5 in message
        assert set(listing(cache)) == ({damaged.name} if before else set())
        assert not before or damaged.read_bytes() == before
    assert impatient and 5 <= impatient[0] <= 120


def test_a_half_unpacked_archive_is_fetched_with_the_same_care(
    cache, refusal, monkeypatch, impatient
):
    (cache / "cifar-10-batches-py").mkdir(parents=True)
    (cache / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cut short")
    with server(ANSWERS["a part, then silence"]) as url:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        assert CIFAR10_MD5 in refusal("cifar10")
    assert not (cache / "cifar-10-python.tar.gz").exists() and impatient


# ---- From the set to the networks ----------------------------------------------------------------


class Echo(torch.nn.Module):
    """A generator that returns its input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


def every_value():
    return torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 1, 16, 16).expand(3, 3, 16, 16)


def test_bytes_are_mapped_onto_minus_one_to_one():
    x = dcgan.to_input(every_value()[:1])
    assert x.dtype == torch.float32 and x.shape == (1, 3, 16, 16)
    assert x.min() == -1 and x.max() == 1
    expected = np.arange(256) / 127.5 - 1
    np.testing.assert_allclose(x[0, 0].flatten().numpy(), expected, atol=1e-6)


def test_input_and_sample_are_inverse():
    images = every_value()
    assert torch.equal(dcgan.sample(Echo(), dcgan.to_input(images)), images)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_a_thread_reads_ahead_from_a_mapped_file(tmp_path, load, n):
    np.save(tmp_path / "set.npy", noise(10, 16, 16, 3))
    images, _, _ = load(tmp_path / "set.npy")
    seen = []

    class Images:
        def __getitem__(self, index):
            seen.append((threading.current_thread(), index.tolist()))
            return images[index]

    order = torch.arange(6 * n).view(n, 2, 3) % 10
    batches = dcgan.read_ahead(Images(), order, pinned=False)
    assert torch.equal(next(batches), images[order[0]])
    assert len(seen) <= 4  # of which one was for the iteration after the next two
    assert [torch.equal(b, images[i]) for b, i in zip(batches, order[1:])] == [True] * (n - 1)
    assert [index for _, index in seen] == order.tolist()
    assert threading.current_thread() not in [thread for thread, _ in seen]


def test_hflip_mirrors_about_half_and_does_nothing_else():
    images = torch.from_numpy(noise(400, 3, 4, 4))
    torch.manual_seed(0)
    plain = dcgan.to_input(images)
    x = dcgan.to_input(images, hflip=True)
    kept = (x == plain).flatten(1).all(1)
    mirrored = (x == plain.flip(3)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 150 < mirrored.sum() < 250  # 5 standard deviations around 200
    again = dcgan.to_input(images, hflip=True)
    assert not torch.equal(x, again)  # drawn anew in every epoch


@pytest.mark.parametrize("hflip", [False, True])
def test_only_hflip_uses_random_numbers(hflip):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    dcgan.to_input(every_value(), hflip=hflip)
    assert torch.equal(torch.get_rng_state(), before) != hflip


def test_place_refuses_a_set_smaller_than_a_batch():
    images = torch.zeros(30, 3, 16, 16, dtype=torch.uint8)
    cpu = torch.device("cpu")
    enough = types.SimpleNamespace(batch_size=30, epochs=1, data="photos")
    assert dcgan.place(images, enough, cpu) is images  # the map stays a map
    more = types.SimpleNamespace(batch_size=31, epochs=1, data="photos")
    with pytest.raises(SystemExit) as info:
        dcgan.place(images, more, cpu)
    assert all(word in info.value.code for word in ("photos", "--batch-size 31", "30"))
