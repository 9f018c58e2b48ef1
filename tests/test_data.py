"""The data contract: any set of pictures in, uint8 (N, 3, size, size), labels and class names out.

Expected pixels come from arrays that the tests made themselves, with Pillow or numpy by hand.
No test reaches beyond the loopback interface.
"""

import hashlib
import io
import os
import pickle
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types
import warnings
import zipfile
import zlib
from contextlib import contextmanager, nullcontext, suppress
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
    assert socket.getdefaulttimeout() == timeout  # whatever was waited for in between


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(cache):
    def call(data, size=16, **options):
        return dcgan.load_data(str(data), size, cache=str(cache), **options)

    return call


@pytest.fixture
def refusal(load, cache):
    """The message of the SystemExit that loading `data` ends in; it has to name the data."""

    def call(data, **options):
        with pytest.raises(SystemExit) as info:
            load(data, **options)
        message = info.value.code
        del info  # its traceback keeps files and sockets from being closed
        assert isinstance(message, str) and str(data) in message
        assert not list(cache.glob(".decoded*"))
        return message

    return call


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def by_hand(pixels, size):
    """(H, W, 3) -> (3, size, size): center square, then Pillow's antialiased Lanczos."""
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


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def decoded(content):
    """What Pillow by itself sees in a file."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def files_of(folder, members):
    """A folder of files, {name: content}."""
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def folder_of(folder, names, side=16):
    """A folder of one picture of noise per name, and those pictures, in the order of `names`."""
    pictures = [noise(side, side, 3, seed=i) for i in range(len(names))]
    files_of(folder, {name: encoded(pixels) for name, pixels in zip(names, pictures)})
    return pictures


def zip_of(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("no symbolic links here")


def chunk(kind, content):
    head = struct.pack(">I", len(content)) + kind + content
    return head + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(width, height, depth, color, rows, *chunks):
    """A PNG put together by hand, so that its header can say anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = [*chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(body)


def raw_tiff(bits, photometric, rows, sample_format=1):
    """A grey TIFF of 16 x 16 pixels; photometric 0: zero is white, 1: zero is black."""
    tags = {256: 16, 257: 16, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 16}
    tags |= {279: len(rows), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + directory


def listing(folder):
    """Every file and folder below, with size and time of change, but for the cache's lock."""
    below = {path: path.lstat() for path in folder.rglob("*") if path.name != ".lock"}
    return {str(p.relative_to(folder)): (s.st_size, s.st_mtime_ns) for p, s in below.items()}


def same_set(images, pictures):
    """Whether the images are these pictures (H, W, 3), in any order."""
    pictures = sorted(by_hand(p, images.shape[-1]).tobytes() for p in pictures)
    return sorted(image.numpy().tobytes() for image in images) == pictures


def found(loaded, pictures):
    """For each picture the class that its image carries, None where it was left out."""
    images, labels, names = loaded
    assert labels.dtype == torch.int64
    known = {image.numpy().tobytes(): names[label] for image, label in zip(images, labels)}
    assert len(known) == len(images) == len(labels)
    return [known.get(by_hand(p, images.shape[-1]).tobytes()) for p in pictures]


# ---- Modes of images -----------------------------------------------------------------------------


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def trns(*values):
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def rows(array):
    return b"".join(b"\0" + row.tobytes() for row in array)


def palette_image(seed=0):
    index, colors = noise(16, 16, seed=seed) % 8, noise(8, 3, seed=seed + 100)
    image = Image.fromarray(index, "P")
    image.putpalette(colors.tobytes())
    return image, index, colors


def modes():
    """{name: (suffix, a file of 16 x 16 pixels, the RGB pixels that it stands for, tolerance)}."""
    grey, rgb, striped, files = noise(16, 16), noise(16, 16, 3), noise(16, 16, 3), {}
    striped[::2] = (10, 20, 30)
    white = np.where(np.arange(16)[:, None, None] % 2, striped, 255).astype(np.uint8)
    bits, two, four, few = grey > 127, grey % 4, grey % 16, grey // 64 * 64
    files["1 bit"] = "png", encoded(bits), grey3(bits * 255)
    content = raw_png(16, 16, 1, 0, rows(np.packbits(bits, axis=1)), trns(0))
    files["1 bit, transparent"] = "png", content, np.full((16, 16, 3), 255)
    packed = two[:, ::4] << 6 | two[:, 1::4] << 4 | two[:, 2::4] << 2 | two[:, 3::4]
    content = raw_png(16, 16, 2, 0, rows(packed), trns(2))
    files["2 bits, transparent"] = "png", content, grey3(np.where(two == 2, 255, two * 85))
    content = raw_png(16, 16, 4, 0, rows(four[:, ::2] << 4 | four[:, 1::2]), trns(8))
    files["4 bits, transparent"] = "png", content, grey3(np.where(four == 8, 255, four * 17))
    files["grey"] = "png", encoded(grey), grey3(grey)
    content = encoded(few, transparency=64)
    files["grey, transparent"] = "png", content, grey3(np.where(few == 64, 255, few))
    pixels = noise(16, 16, 2)
    content = saved(Image.fromarray(pixels, "LA"))
    files["grey, alpha"] = "png", content, on_white(grey3(pixels[..., 0]), pixels[..., 1]), 1
    files["rgb"] = "png", encoded(rgb), rgb
    files["rgb, transparent"] = "png", encoded(striped, transparency=(10, 20, 30)), white
    pixels = noise(16, 16, 4)
    files["rgba"] = "png", encoded(pixels), on_white(pixels[..., :3], pixels[..., 3]), 1
    ink = 255 - pixels.astype(float)
    content = saved(Image.fromarray(pixels, "CMYK"), "TIFF")
    files["cmyk"] = "tiff", content, np.rint(ink[..., :3] * ink[..., 3:] / 255), 1
    content = saved(Image.fromarray(rgb).convert("YCbCr"), "JPEG", quality=90)
    files["ycbcr"] = "jpg", content, decoded(content)
    files["bmp named png"] = "PNG", encoded(rgb, "BMP"), rgb  # what counts is what the file holds
    if features.check("webp"):
        files["webp"] = "webp", encoded(rgb, "WEBP", lossless=True), rgb

    image, index, colors = palette_image()
    files["palette"] = "png", saved(image), colors[index]
    clear, alpha = colors.copy(), np.array([0, 255, 128, 10, 255, 77, 200, 255], np.uint8)
    clear[3] = 255
    files["palette, transparent"] = "png", saved(image, transparency=3), clear[index]
    files["gif, transparent"] = "gif", saved(image, "GIF", transparency=3), clear[index]
    content = saved(image, transparency=alpha.tobytes())
    files["palette, alpha"] = "png", content, on_white(colors[index], alpha[index]), 1
    content = saved(image, "GIF", save_all=True, append_images=[palette_image(1)[0]])
    files["gif, first frame"] = "gif", content, colors[index]
    return files


def deep_modes():
    """The same for 12 and 16 bits."""
    deep, files = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(">u2"), {}
    deep[::2] = (0x1234, 0x5678, 0x9ABC)
    pixels = np.where(np.arange(16)[:, None, None] % 2, deep >> 8, 255)
    content = raw_png(16, 16, 16, 2, rows(deep), trns(0x1234, 0x5678, 0x9ABC))
    files["16 bits rgb, transparent"] = "png", content, pixels
    deep = deep[..., 0]
    pixels = grey3(np.rint(deep / 257))
    files["16 bits"] = "png", encoded(deep.astype("<u2")), pixels
    files["16 bits, big-endian"] = "tiff", encoded(deep, "TIFF"), pixels
    files["16 bits, pgm"] = "pgm", b"P5 16 16 65535\n" + deep.tobytes(), pixels
    content = raw_png(16, 16, 16, 0, rows(deep), trns(0x1234))
    files["16 bits, transparent"] = "png", content, np.where(deep.T == 0x1234, 255, pixels.T).T
    content = raw_tiff(16, 0, np.full((16, 16), 0x2000, "<u2").tobytes())
    files["16 bits, zero is white"] = "tiff", content, np.full((16, 16, 3), 223)
    content = raw_tiff(12, 1, bytes([0x80, 0x0F, 0xFF]) * 128)  # 0x800 and 0xFFF, by turns
    files["12 bits"] = "tiff", content, grey3(np.tile([128, 255], (16, 8)))
    return files


MODES = modes() | deep_modes()


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_the_rgb_it_stands_for(name, tmp_path, load):
    suffix, content, expected, *tolerance = MODES[name]
    images, _, _ = load(files_of(tmp_path / "set", {f"picture.{suffix}": content}))
    assert images.dtype == torch.uint8 and images.shape == (1, 3, 16, 16)
    difference = images[0].numpy().transpose(1, 2, 0).astype(int) - expected
    assert abs(difference).max() <= sum(tolerance)


def test_pixels_of_32_bits_are_refused_with_one_reason(tmp_path, refusal):
    values = np.arange(256, dtype="<i4").tobytes()
    members = {f"{i}.tif": raw_tiff(32, 1, values, i) for i in (1, 2, 3)}  # unsigned, signed, float
    if ".pfm" in Image.registered_extensions():
        members["4.pfm"] = b"Pf\n16 16\n-1.0\n" + np.ones(256, "<f4").tobytes()
    _, *listed = refusal(files_of(tmp_path / "set", members)).split("\n")
    names, reasons = zip(*(line.split(": ") for line in listed))
    assert [name.strip() for name in names] == sorted(members)
    assert len(set(reasons)) == 1 and "32 bits" in reasons[0]


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
    content = encoded(noise(16, 24, 3), "JPEG", quality=95, exif=exif)
    images, _, _ = load(files_of(tmp_path / "set", {"photo.jpg": content}))
    assert np.array_equal(images[0], by_hand(UPRIGHT[orientation](decoded(content)), 16))


EXIF = [b"\0\x08\0\x02\x01\x12\0\x03", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", EXIF)
def test_damaged_exif_leaves_healthy_pixels_upright(kind, exif, tmp_path, load):
    content = encoded(noise(16, 24, 3), kind, exif=exif)
    images, _, _ = load(files_of(tmp_path / "set", {f"a.{kind}": content}))
    assert np.array_equal(images[0], by_hand(decoded(encoded(noise(16, 24, 3), kind)), 16))


@pytest.mark.parametrize("cause", ["size", "exif"])
def test_a_warning_of_pillow_is_no_error(cause, tmp_path, load, monkeypatch):
    """A very large photograph, or one with damaged EXIF, is read, and in silence."""
    if cause == "size":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # it has more, but not twice as many
    content = encoded(noise(20, 20, 3), "JPEG", exif=EXIF[1] if cause == "exif" else b"")
    files_of(tmp_path / "set", {f"{i}.jpg": content for i in range(8)})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        images, _, _ = load(tmp_path / "set")
        assert warnings.filters == filters
    assert [str(w.message) for w in said] == []
    monkeypatch.undo()
    assert same_set(images, [decoded(encoded(noise(20, 20, 3), "JPEG"))] * 8)


# ---- Cropping and resizing -----------------------------------------------------------------------

SHAPES = [(16, 16), (24, 40), (41, 23), (17, 16), (33, 33), (1, 1), (1, 9), (7, 5), (64, 16)]


@pytest.mark.parametrize("size", [16, 28])
@pytest.mark.parametrize("shape", SHAPES)
def test_center_square_is_resized_with_lanczos(shape, size):
    pixels = noise(*shape, 3)
    assert np.array_equal(dcgan.to_rgb(Image.fromarray(pixels), size), by_hand(pixels, size))
    assert np.array_equal(dcgan.to_rgb(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))


def test_shrinking_is_antialiased():
    """Without a filter every fourth pixel of a checkerboard has the same colour, black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    grey = dcgan.to_rgb(Image.fromarray(grey3(board)), 16).astype(int)
    assert abs(grey - 127.5).max() < 8


def test_transparency_is_composed_before_resizing():
    """Hidden colours of transparent pixels would otherwise bleed into the edges."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16] = (255, 255, 255, 255)  # the right half is black, and fully transparent
    assert (dcgan.to_rgb(Image.fromarray(pixels), 16) == 255).all()


IMAGE_BYTES = {"1": 0, "L": 1, "LA": 2, "P": 1, "PA": 2, "RGB": 3, "RGBX": 4, "RGBA": 4, "CMYK": 4}
IMAGE_BYTES |= {"YCbCr": 3, "HSV": 3, "I": 4, "I;16": 2, "I;16B": 2}


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(
    mode=st.sampled_from(sorted(IMAGE_BYTES)),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    size=st.sampled_from([None, 16, 20, 28, 32]),
    seed=st.integers(0, 99),
)
def test_to_rgb_of_any_image(mode, width, height, size, seed):
    """uint8 (3, size, size), a function of the image alone, which stays as it was."""
    length = width * height * IMAGE_BYTES[mode] or (width + 7) // 8 * height
    content = noise(length, seed=seed).tobytes()
    image = Image.frombytes(mode, (width, height), content)
    if mode in ("P", "PA"):
        image.putpalette(noise(768, seed=seed + 1).tobytes())
    before = image.tobytes()
    first, again = dcgan.to_rgb(image, size), dcgan.to_rgb(image, size)
    assert first.dtype == np.uint8
    assert first.shape == ((3, size, size) if size else (3, height, width))
    assert np.array_equal(first, again) and image.tobytes() == before
    if mode == "RGB" and size:
        pixels = np.frombuffer(content, np.uint8).reshape(height, width, 3)
        assert np.array_equal(first, by_hand(pixels, size))


# ---- Containers ----------------------------------------------------------------------------------


def test_folder_zip_npy_and_npz_give_the_same_tensor(tmp_path, load):
    pictures = noise(6, 20, 24, 3)
    members = {f"{i}.png": encoded(pixels) for i, pixels in enumerate(pictures)}
    files_of(tmp_path / "set", members)
    zip_of(tmp_path / "set.zip", members)
    zip_of(tmp_path / "small.ZIP", members, compression=8)
    np.save(tmp_path / "set.npy", pictures)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(pictures))
    np.savez(tmp_path / "set.npz", images=pictures, other=pictures[::-1])
    np.savez_compressed(tmp_path / "small.npz", pictures)  # arr_0, as the ADM evaluator has it
    np.savez(tmp_path / "adm.npz", pictures, np.arange(6))
    expected = np.stack([by_hand(p, 16) for p in pictures])
    for name in "set set.zip small.ZIP set.npy fortran.npy set.npz small.npz adm.npz".split():
        images, labels, names = load(tmp_path / name)
        assert np.array_equal(images, expected), name
        assert labels.dtype == torch.int64 and labels.tolist() == [0] * 6, name
        assert len(names) == 1


def test_a_grey_array_is_a_set(tmp_path, load):
    pictures = noise(5, 16, 20)
    np.savez(tmp_path / "digits.npz", pictures, np.arange(5, dtype=np.uint8))
    expected = np.stack([by_hand(np.stack([p] * 3, 2), 16) for p in pictures])
    assert np.array_equal(load(tmp_path / "digits.npz")[0], expected)


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


def test_a_source_names_and_opens_its_items(tmp_path, cache):
    """What fid.py reads: the pictures at their own size."""
    pictures = folder_of(tmp_path / "set", ["b/2.png", "a/1.png"], side=40)
    source = dcgan.open_data(str(tmp_path / "set"), None, cache)
    assert [*source.items] == ["a/1.png", "b/2.png"] and [*source.names] == ["a", "b"]
    assert [*source.labels] == [0, 1]
    for i, pixels in enumerate(pictures[::-1]):
        with source.read(i) as image:
            assert np.array_equal(dcgan.to_rgb(image), pixels.transpose(2, 0, 1))


# ---- Labels and classes --------------------------------------------------------------------------


@pytest.fixture(params=["folder", "zip"])
def pack(request, tmp_path):
    """pack({name: content}): a folder or a .zip of these files."""
    if request.param == "folder":
        return lambda members, name="set": files_of(tmp_path / name, members)
    return lambda members, name="set": zip_of(tmp_path / f"{name}.zip", members)


@pytest.fixture
def make(pack):
    """make(names): a folder or a .zip of pictures of noise, and the pictures."""

    def call(names):
        pictures = [noise(16, 16, 3, seed=i) for i in range(len(names))]
        return pack({n: encoded(p) for n, p in zip(names, pictures)}), pictures

    return call


CLASSES = {  # paths of the pictures -> the class of each
    "first level": ("dog/x/deep/1.png cat/1.png dog/2.PNG cat/y/2.png", "dog cat dog cat"),
    "no folders": ("b.png a.png", ". ."),
    "one folder": ("cat/b.png cat/x/a.png", ". x"),
    "one class": ("cat/b.png cat/a.png", "cat cat"),
    "a top folder": ("photos/cat/0.png photos/dog/0.png", "cat dog"),
    "two top folders": ("a/b/dog/0.png a/b/cat/x/0.png", "dog cat"),
    "files beside folders": ("top.png cat/1.png dog/1.png", ". cat dog"),
    "files beside folders below a top": ("top/1.png top/cat/1.png", ". cat"),
    "numbers are names": ("10/a.png 9/a.png", "10 9"),
    "hidden folders": (".git/1.png cat/1.png dog/.thumbnails/1.png dog/1.png", "- cat - dog"),
    "other systems' folders": (
        "cat/@eaDir/1.png/THUMB.png lost+found/1.png __MACOSX/a/1.png cat/1.png dog/1.png",
        "- - - cat dog",
    ),
    "hidden and other files": ("cat/._1.png cat/1.png dog/1.png cat/x.csv x", "- cat dog - -"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_the_folders_where_paths_first_differ_are_the_classes(case, make, load):
    paths, classes = (text.split() for text in CLASSES[case])
    data, pictures = make(paths)
    loaded = load(data)
    assert found(loaded, pictures) == [None if name == "-" else name for name in classes]
    assert loaded[2] == sorted({*classes} - {"-"})


def test_a_folder_named_like_an_image_is_none(tmp_path, load):
    pixels = noise(16, 16, 3)
    members = {"first.png/": b"", "first.png/1.png": encoded(pixels), "b.png\\": b""}
    assert same_set(load(zip_of(tmp_path / "set.zip", members))[0], [pixels])


def test_classes_keeps_those_alone(make, load):
    data, pictures = make(["top/cat/1.png", "top/dog/1.png", "top/owl/1.png", "top/dog/2.png"])
    for wanted in (["owl", "dog"], ["dog", "owl"], ["cat"], ["cat", "cat"]):
        expected = [c if c in wanted else None for c in ("cat", "dog", "owl", "dog")]
        assert found(load(data, classes=wanted), pictures) == expected
    assert len(load(data)[0]) == 4  # the cache of the few does not stand for all


def test_an_unknown_class_names_the_known_ones(make, refusal):
    data, _ = make(["cat/1.png", "dog/1.png"])
    message = refusal(data, classes=["cat", "zebra"])
    assert "zebra" in message and "cat dog" in message and "\n" not in message


def test_labels_of_an_npz(tmp_path, load):
    pictures = noise(4, 16, 16, 3)
    np.savez(tmp_path / "set.npz", images=pictures, labels=np.array([7, 3, 7, 10], np.uint8))
    loaded = load(tmp_path / "set.npz")
    assert loaded[2] == ["3", "7", "10"] and found(loaded, pictures) == ["7", "3", "7", "10"]
    assert found(load(tmp_path / "set.npz", classes=["7"]), pictures) == ["7", None, "7", None]


# ---- Trees of files ------------------------------------------------------------------------------


def test_links_to_folders_and_files_are_followed(tmp_path, load):
    names = [f"store/dogs/{i}.png" for i in range(8)] + [f"set/cats/{i}.png" for i in range(7)]
    pictures = folder_of(tmp_path, [*names, "store/one.png"])
    link(tmp_path / "set" / "dogs", tmp_path / "store" / "dogs")
    link(tmp_path / "set" / "cats" / "linked.png", tmp_path / "store" / "one.png")
    loaded = load(tmp_path / "set")
    assert len(loaded[0]) == 16 and found(loaded, pictures) == ["dogs"] * 8 + ["cats"] * 8


def test_links_in_a_circle_end(tmp_path, load):
    """cat/dog and dog/cat lead to each other, cat/up and cat/out to folders that hold them."""
    pictures = folder_of(tmp_path, ["set/cat/1.png", "set/dog/2.png", "other/3.png"])
    for path, target in (
        ("up", ".."),
        ("out", "../.."),
        ("dog", "../dog"),
        ("../dog/cat", "../cat"),
    ):
        link(tmp_path / "set" / "cat" / path, target)
    images, labels, names = load(tmp_path / "set")
    assert names == ["cat", "dog"] and labels.tolist() == [0, 0, 1, 1]
    assert same_set(images, pictures[:2] * 2)


@pytest.mark.parametrize("name", ["link.png", "link.txt", "dog"])
@pytest.mark.parametrize("target", ["gone.png", "itself"])
def test_a_link_to_nowhere_is_an_unreadable_image(name, target, tmp_path, load, refusal):
    pictures = folder_of(tmp_path / "set", ["cat/a.png"])
    link(tmp_path / "set" / "cat" / name, name if target == "itself" else target)
    message = refusal(tmp_path / "set")
    assert f"\n    cat/{name}: " in message and "--skip-corrupt" in message
    assert same_set(load(tmp_path / "set", skip_corrupt=True)[0], pictures)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_unreadable_and_not_waited_for(tmp_path, load, refusal):
    pictures = folder_of(tmp_path / "set", ["a.png"])
    os.mkfifo(tmp_path / "set" / "pipe.png")
    assert "1 unreadable" in (message := refusal(tmp_path / "set")) and "pipe.png" in message
    assert same_set(load(tmp_path / "set", skip_corrupt=True)[0], pictures)


def test_unreadable_folders(tmp_path, load, refusal, monkeypatch):
    """One of the file system's is left out, a class is an error that names it. Simulated: where
    root runs the tests, every folder may be opened."""
    scan, closed = os.scandir, ["lost+found", "@eaDir", ".Trash-0"]
    pictures = folder_of(tmp_path / "set", ["cat/1.png", "dog/1.png"])
    for name in closed:
        (tmp_path / "set" / name).mkdir()

    def guarded(path="."):
        if Path(os.fsdecode(path)).name in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert found(load(tmp_path / "set"), pictures) == ["cat", "dog"]
    closed.append("dog")
    message = refusal(tmp_path / "set")
    assert "Permission denied" in message and str(tmp_path / "set" / "dog") in message


def test_pictures_that_are_not_read_are_counted_in_one_line(pack, load, refusal, capsys):
    pictures = noise(9, 16, 16, 3)
    members = {f"{i}.png": encoded(p) for i, p in enumerate(pictures[:8])}
    second = [Image.fromarray(pictures[0])]
    members["8.mpo"] = encoded(pictures[8], "MPO", save_all=True, append_images=second)
    others = {f"IMG_{i}.HEIC": b"ftypheic" for i in range(30)}
    images, _, _ = load(pack(members | others))
    assert same_set(images, [*pictures[:8], decoded(members["8.mpo"])])
    assert sum("30 .heic" in line for line in capsys.readouterr().out.split("\n")) == 1
    message = refusal(pack(others, "none"))
    assert "no images in it" in message and "30 .heic" in message and "\n" not in message


Image.init()
SUFFIXES = {kind: suffix for suffix, kind in Image.registered_extensions().items()}


def own_reading(kind):
    """A file of this kind and the pixels that Pillow sees in it, or None where it cannot."""
    for mode in ("RGB", "P", "1"):
        with warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore")  # some kinds are on their way out
            content = saved(Image.fromarray(noise(16, 16, 3)).convert(mode), kind)
            return content, decoded(content)


@pytest.mark.parametrize("kind", sorted({*Image.SAVE} & {*SUFFIXES}))
def test_what_pillow_can_write_and_read_is_read_and_the_rest_is_no_picture(
    kind, tmp_path, load, capsys
):
    pictures, own = folder_of(tmp_path / "set", ["a.png"]), own_reading(kind)
    if kind in ("EPS", "WMF") or own is None:  # a program, or not to be read here
        own = (b"content", None)
    files_of(tmp_path / "set", {f"b{SUFFIXES[kind]}": own[0]})
    images, _, _ = load(tmp_path / "set")
    assert same_set(images, pictures if own[1] is None else [*pictures, own[1]])
    assert (f"1 {SUFFIXES[kind]}" in capsys.readouterr().out) == (own[1] is None)


def test_suffixes_of_data_are_no_pictures(tmp_path, load, capsys):
    pictures = folder_of(tmp_path / "set", ["a.png"])
    suffixes = "h5 hdf mpg grib bufr wmf emf eps ps pdf".split()
    files_of(tmp_path / "set", {f"x.{suffix}": b"data" for suffix in suffixes})
    assert same_set(load(tmp_path / "set")[0], pictures)
    assert ", 1 .hdf, " in capsys.readouterr().out


def test_a_pillow_without_one_of_the_formats(tmp_path, load, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    pixels = noise(16, 16, 3)
    files_of(tmp_path / "set", {"a.tga": encoded(pixels, "TGA")})  # later than AVIF in the list
    assert same_set(load(tmp_path / "set")[0], [pixels])


@pytest.mark.parametrize("name", ["sprites", "cifar10"])
def test_a_name_wins_over_a_folder_and_says_so(name, tmp_path, load, monkeypatch, capsys):
    pictures = folder_of(tmp_path / name, ["a.png"])
    monkeypatch.chdir(tmp_path)
    if name == "sprites":
        assert len(load(name)[0]) == 2048
    else:
        with pytest.raises(SystemExit, match="no network"):
            load(name)
    assert f"{name}: " in (line := capsys.readouterr().out.split("\n")[0]) and f"./{name}" in line
    assert same_set(load(f"./{name}")[0], pictures)
    assert f"./{name} for" not in capsys.readouterr().out


# ---- Cache ---------------------------------------------------------------------------------------


def never(*args, **kwargs):
    raise AssertionError("decoded again")


def test_the_result_is_mapped_from_a_file_in_the_cache(tmp_path, cache, load):
    pictures = folder_of(tmp_path / "set", ["a/a.png", "b/b.png", "b/c.png"], side=20)
    images, labels, _ = load(tmp_path / "set", 28)
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 28, 28)
    (file,) = cache.glob("*.u8")
    pixels = b"".join(by_hand(p, 28).tobytes() for p in pictures)
    assert file.read_bytes() == pixels + labels.numpy().tobytes() and labels.tolist() == [0, 1, 1]
    assert set(listing(cache)) == {file.name}
    with open(file, "r+b") as opened:  # a change of the file is seen through the map
        opened.write(bytes([255 - pixels[0]]))
    assert int(images[0, 0, 0, 0]) == 255 - pixels[0]


@pytest.mark.parametrize("name", ["set", "set.zip", "set.npy", "set.npz"])
def test_a_second_load_decodes_nothing(name, tmp_path, load, monkeypatch):
    pictures = noise(4, 20, 20, 3)
    files_of(tmp_path / "set", {f"{i % 2}/{i}.png": encoded(p) for i, p in enumerate(pictures)})
    zip_of(tmp_path / "set.zip", {f"{i}.png": encoded(p) for i, p in enumerate(pictures)})
    np.save(tmp_path / "set.npy", pictures)
    np.savez(tmp_path / "set.npz", images=pictures, labels=[2, 1, 2, 1])
    first = load(tmp_path / name)
    monkeypatch.setattr(dcgan, "to_rgb", never)
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
    (folder / "cat/b.bmp").write_bytes(encoded(noise(16, 16, 3, seed=50), "BMP"))
    os.utime(folder / "cat/b.bmp", (1e9 + 3600, 1e9 + 3600))


EDITS = {
    "change": change,
    "add": lambda folder: shutil.copy(folder.parent / "new.bmp", folder / "dog/d.bmp"),
    "remove": lambda folder: (folder / "cat/a.bmp").unlink(),
    "move": lambda folder: (folder / "cat/a.bmp").rename(folder / "dog/z.bmp"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_folder_is_decoded_anew(edit, tmp_path, load):
    names = ("set/cat/a.bmp", "set/cat/b.bmp", "set/dog/c.bmp", "new.bmp")
    files_of(tmp_path, {n: encoded(noise(16, 16, 3, seed=i), "BMP") for i, n in enumerate(names)})
    for name in names:
        os.utime(tmp_path / name, (1e9, 1e9))  # one time for all, as in an unpacked archive
    load(tmp_path / "set")
    EDITS[edit](tmp_path / "set")
    paths = list((tmp_path / "set").rglob("*.bmp"))
    pictures, loaded = [decoded(path.read_bytes()) for path in paths], load(tmp_path / "set")
    assert same_set(loaded[0], pictures)
    assert found(loaded, pictures) == [path.parent.name for path in paths]


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


def test_nothing_is_written_beside_a_source(tmp_path, load):
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
    to_rgb, calls = dcgan.to_rgb, []

    def interrupted(image, size):
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return to_rgb(image, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dcgan, "to_rgb", interrupted)
        load(tmp_path / "set")
    assert len(calls) > 9 and listing(cache) == {}
    images, _, _ = load(tmp_path / "set")
    assert np.array_equal(images, [by_hand(p, 16) for p in pictures])


def test_a_full_disk_leaves_nothing(tmp_path, cache, load):
    resource = pytest.importorskip("resource")
    pictures = folder_of(tmp_path / "set", [f"{i:02}.png" for i in range(24)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(SystemExit, match="File too large") as info:
            load(tmp_path / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(cache) in info.value.code and "\n" not in info.value.code
    assert listing(cache) == {} and same_set(load(tmp_path / "set")[0], pictures)


@pytest.mark.parametrize("left", [0, 1, 776, 2000, 2327])
def test_a_cache_file_that_was_cut_is_decoded_again(left, tmp_path, cache, load):
    pictures = folder_of(tmp_path / "set", ["a/1.png", "b/2.png", "c/3.png"])
    load(tmp_path / "set")
    (file,) = cache.glob("*.u8")
    os.truncate(file, left)
    assert found(load(tmp_path / "set"), pictures) == ["a", "b", "c"]


LOAD = """
import hashlib, sys, dcgan
images, labels, names = dcgan.load_data(sys.argv[1], 64, cache=sys.argv[2])
print(hashlib.sha256(images.numpy().tobytes()).hexdigest(), labels.tolist(), names)
"""


def test_two_processes_decode_a_set_once_and_remove_what_a_killed_one_left(tmp_path, cache):
    pictures = folder_of(tmp_path / "set", [f"{i % 2}/{i:03}.png" for i in range(400)], side=96)
    files_of(cache, {".decoded-0123456789abcdef.u8.7.tmp": b"left by a killed process"})
    command, root = [sys.executable, "-W", "error", "-c", LOAD], Path(dcgan.__file__).parent
    pipes = {"stdout": subprocess.PIPE, "text": True, "cwd": root}
    both = [subprocess.Popen([*command, tmp_path / "set", cache], **pipes) for _ in range(2)]
    said = [process.communicate(timeout=300)[0].strip().split("\n") for process in both]
    assert sum("decoding" in line for lines in said for line in lines) == 1
    pixels = b"".join(by_hand(p, 64).tobytes() for p in [*pictures[::2], *pictures[1::2]])
    labels = [0] * 200 + [1] * 200
    expected = f"{hashlib.sha256(pixels).hexdigest()} {labels} {['0', '1']}"
    assert [lines[-1] for lines in said] == [expected] * 2
    assert [Path(name).suffix for name in listing(cache)] == [".u8"]


@pytest.mark.parametrize("cache", ["taken", "taken/deeper", "locked/deeper"])
def test_a_cache_folder_that_cannot_be_made(cache, tmp_path):
    folder_of(tmp_path / "set", ["a.png"])
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "locked").mkdir(mode=0)
    if cache.startswith("locked") and os.access(tmp_path / "locked", os.X_OK):
        pytest.skip("nothing is forbidden here")
    with pytest.raises(SystemExit) as info:
        dcgan.load_data(str(tmp_path / "set"), 16, cache=str(tmp_path / cache))
    assert str(tmp_path / cache) in info.value.code and "\n" not in info.value.code
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_lock_that_is_no_lock(tmp_path, cache):
    files_of(cache, {".lock": b"something else" * 400})
    with pytest.raises(SystemExit) as info:
        dcgan.load_data("sprites", 16, cache=cache)
    assert str(cache) in info.value.code and "\n" not in info.value.code


def test_a_read_only_cache_serves_what_is_in_it(tmp_path, cache, load, refusal, monkeypatch):
    """Simulated as well, for root may write everywhere."""
    pictures = folder_of(tmp_path / "set", ["a.png", "b.png"])
    load(tmp_path / "set")
    access, connect = os.access, sqlite3.connect
    before = listing(cache)

    def read_only(path, *args, **options):
        if str(path).startswith(str(cache)):
            raise sqlite3.OperationalError("attempt to write a readonly database")
        return connect(path, *args, **options)

    monkeypatch.setattr(os, "access", lambda p, m: m != os.W_OK and access(p, m))
    monkeypatch.setattr(sqlite3, "connect", read_only)
    monkeypatch.setattr(os, "replace", lambda *paths: never())
    cache.chmod(0o555)
    try:
        assert same_set(load(tmp_path / "set")[0], pictures)
        assert listing(cache) == before
    finally:
        cache.chmod(0o755)


# ---- What cannot be read -------------------------------------------------------------------------


def test_a_folder_without_images(tmp_path, refusal):
    (tmp_path / "set").mkdir()
    assert "no images" in refusal(tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("notes")
    assert "no images" in (message := refusal(tmp_path / "set")) and "1 .txt" in message


PIXELS = noise(32, 32, 3, seed=1)
BAD = {
    "text": b"this is no picture\n" * 20,
    "half a JPEG": encoded(PIXELS, "JPEG", quality=95)[:1500],
    "half a PNG": encoded(PIXELS)[:1500],
    "nothing": b"",
    "4.8 GB of pixels": raw_png(40000, 40000, 8, 2, bytes(40000)),
    "floats": encoded(PIXELS[..., 0].astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_unreadable_image_is_named_or_left_out(kind, pack, load, refusal, capsys, monkeypatch):
    pictures = [noise(32, 32, 3, seed=i) for i in range(3)]
    members = {"cat/1.png": encoded(pictures[0]), "dog/bad.png": BAD[kind]}
    members["owl/2.png"] = encoded(pictures[2])
    prepare, sizes, data = ImageFile.ImageFile.load_prepare, set(), pack(members)

    def spy(image):
        sizes.add(image.size)  # a picture's memory is allocated here
        prepare(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", spy)
    message = refusal(data)
    assert "1 unreadable" in message and "--skip-corrupt" in message
    _, *listed = message.split("\n")
    assert len(listed) == 1 and listed[0].strip().startswith("dog/bad.png: ")
    assert (40000, 40000) not in sizes and (32, 32) in sizes

    capsys.readouterr()
    loaded = load(data, skip_corrupt=True)
    assert "1 unreadable" in capsys.readouterr().out
    assert found(loaded, pictures) == ["cat", None, "owl"] and loaded[2] == ["cat", "dog", "owl"]
    refusal(data)  # what was left out once is not forgotten


def test_postscript_is_never_run(tmp_path, refusal, monkeypatch):
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: ran.append(args))
    folder_of(tmp_path / "set", ["a.png"])
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    files_of(tmp_path / "set", {"b.png": program, "c.eps": program})
    message = refusal(tmp_path / "set")
    assert "b.png" in message and "c.eps" not in message and not ran


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_nothing_but_unreadable_images(skip_corrupt, tmp_path, cache, refusal):
    files_of(tmp_path / "set", {"a.png": b"text", "b.png": b"text"})
    message = refusal(tmp_path / "set", skip_corrupt=skip_corrupt)
    assert "2 unreadable" in message and "no image" in message
    assert "a.png" in message and "b.png" in message and listing(cache) == {}


def test_a_long_list_of_unreadable_images_is_cut(tmp_path, load, refusal, capsys):
    pictures = folder_of(tmp_path / "set", ["good.png"])
    files_of(tmp_path / "set", {f"bad{i:02}.png": b"text" for i in range(25)})
    message = refusal(tmp_path / "set")
    shown = [line.strip()[:5] for line in message.split("\n")[1:]]
    assert shown == [f"bad{i:02}" for i in range(20)] + ["and 5"] and "25 unreadable" in message
    capsys.readouterr()
    assert same_set(load(tmp_path / "set", skip_corrupt=True)[0], pictures)
    assert "25 unreadable" in capsys.readouterr().out


# ---- Archives and arrays that are damaged or hostile ---------------------------------------------


def zip_of_a_later_version():
    file = io.BytesIO()
    zip_of(file, {"a.png": encoded(PIXELS)})
    content = bytearray(file.getvalue())
    content[content.index(b"PK\1\2") + 6] = 99  # the version needed to extract
    return bytes(content)


PATHS = [(name, None, "no such file, sprites, cifar10") for name in ("no", "no.zip", "no.npz")]
PATHS += [(name, encoded(PIXELS), "folder, .zip, .npy, .npz") for name in ("a", "a.tar", "a.png")]
PATHS += [
    ("a.zip", content, "cannot be read") for content in (b"", b"no zip" * 20, encoded(PIXELS))
]
PATHS += [("a.zip", zip_of_a_later_version(), "cannot be read")]


@pytest.mark.parametrize("name, content, words", PATHS)
def test_a_path_that_is_no_set_is_refused_in_one_line(name, content, words, tmp_path, refusal):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert all(word in message for word in words.split(", ")) and "\n" not in message


def encrypt(content, local, central):
    content[local + 6] |= 1
    content[central + 8] |= 1


def damage(content, local, central):
    middle = slice(local + 400, local + 408)
    content[middle] = bytes(b ^ 255 for b in content[middle])


def inflate(content, local, central):
    content[central + 24 : central + 28] = struct.pack("<I", 2**28 + 1)  # the size when unpacked


SPOILED = [(encrypt, "encrypted"), (damage, "CRC"), (inflate, "256 MiB")]


@pytest.mark.parametrize("spoil, reason", SPOILED)
def test_a_bad_member_of_a_zip_is_named_or_left_out(spoil, reason, tmp_path, load, refusal):
    pictures = [noise(16, 16, 3, seed=i) for i in range(3)]
    names = ["one.png", "two.png", "three.png"]
    path = zip_of(tmp_path / "set.zip", {n: encoded(p) for n, p in zip(names, pictures)})
    content = bytearray(path.read_bytes())
    spoil(content, content.index(b"two.png") - 30, content.rindex(b"two.png") - 46)
    path.write_bytes(content)
    message = refusal(path)
    assert "1 unreadable" in message and "two.png" in message and reason in message
    assert "one.png" not in message and "three.png" not in message
    assert same_set(load(path, skip_corrupt=True)[0], [pictures[0], pictures[2]])


def test_names_in_a_zip_never_become_paths(tmp_path, load):
    paths = ["/absolute/a.png", "../../outside.png", "cat/../../b.png", "dog/c.png"]
    paths += ["..\\..\\windows.png", "C:\\drive\\d.png"]
    pictures = [noise(16, 16, 3, seed=i) for i in range(len(paths))]
    (tmp_path / "some" / "where").mkdir(parents=True)
    members = {name: encoded(p) for name, p in zip(paths, pictures)}
    data = zip_of(tmp_path / "some" / "where" / "set.zip", members)
    before = listing(tmp_path)
    loaded = load(data)
    assert found(loaded, pictures) == ["absolute", ".", "cat", "dog", ".", "C:"]
    written = {n for n in listing(tmp_path).items() - before.items() if "cache" not in n[0]}
    assert written == set() and not (tmp_path.parent / "outside.png").exists()
    assert not Path("/absolute").exists()


def test_backslashes_in_a_zip_part_folders(tmp_path, load):
    pictures = [noise(16, 16, 3, seed=i) for i in range(2)]
    members = {f"top\\{n}\\1.png": encoded(p) for n, p in zip(("cat", "dog"), pictures)}
    data = zip_of(tmp_path / "set.zip", members)
    assert found(load(data), pictures) == ["cat", "dog"]
    assert len(load(data, classes=["cat"])[0]) == 1


@pytest.mark.parametrize("name", ["Gänse", "猫"])
def test_utf_8_names_in_a_zip_that_does_not_say_so(name, tmp_path, load):
    """As macOS writes them."""
    pictures, raw = [noise(16, 16, 3, seed=i) for i in range(2)], name.encode()
    stand_in = "X" * len(raw)
    members = {f"{n}/1.png": encoded(p) for n, p in zip((stand_in, "dog"), pictures)}
    path = zip_of(tmp_path / "set.zip", members)
    path.write_bytes(path.read_bytes().replace(stand_in.encode() + b"/", raw + b"/"))
    assert found(load(path), pictures) == [name, "dog"]
    path.write_bytes(path.read_bytes().replace(raw + b"/", b"\x82" * len(raw) + b"/"))
    assert found(load(path), pictures) == ["é" * len(raw), "dog"]  # the names of MS-DOS


def test_of_two_entries_of_one_name_the_later_counts(tmp_path, load):
    pictures = [noise(16, 16, 3, seed=i) for i in range(2)]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.png", encoded(pictures[0]))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", encoded(pictures[1]))
    assert same_set(load(tmp_path / "set.zip")[0], pictures[1:])


GOOD = noise(4, 16, 16, 3)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"a": GOOD, "b": GOOD}, "images"),
        ({"labels": np.arange(4)}, "images"),
        ({"images": GOOD.astype(np.float32)}, "float32"),
        ({"images": GOOD.astype(np.float32), "other": GOOD}, "float32"),
        ({"images": GOOD[..., :1]}, "(4, 16, 16, 1)"),
        ({"images": GOOD.transpose(0, 3, 1, 2)}, "(4, 3, 16, 16)"),
        ({"images": GOOD[0, 0, 0, 0]}, "images"),
        ({"images": GOOD[:0]}, "(0, 16, 16, 3)"),
        ({"images": GOOD, "labels": np.arange(3)}, "labels"),
        ({"images": GOOD, "labels": np.zeros((4, 1), int)}, "labels"),
        ({"images": GOOD, "labels": np.zeros(4)}, "labels"),
        ({"images": GOOD, "labels": np.array(list("abcd"))}, "labels"),
        ({"images": GOOD, "labels": np.int64(0)}, "labels"),
        (GOOD.astype(np.float32), "float32"),
        (GOOD[0], "(16, 16, 3)"),
        (GOOD.transpose(0, 3, 1, 2), "(4, 3, 16, 16)"),
    ],
)
def test_other_arrays_are_refused_in_one_line(arrays, words, tmp_path, refusal):
    path = tmp_path / ("set.npz" if isinstance(arrays, dict) else "set.npy")
    np.savez(path, **arrays) if isinstance(arrays, dict) else np.save(path, arrays)
    message = refusal(path)
    assert words in message and "must be" in message and "\n" not in message


def bad_block(content):
    """An undefined kind of block at the start of the compressed images."""
    start = content.index(b"images.npy") + 10 + 20  # name and the 64-bit sizes after it
    return content[:start] + b"\xff" * 8 + content[start + 8 :]


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"this is no array\n" * 20,
    "open header": lambda content: content.replace(b"3), }", b"3    "),
    "bad block": bad_block,
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # numpy's own
@pytest.mark.parametrize("name", ["set.npy", "set.npz"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_array_file(name, kind, tmp_path, refusal):
    if (name, kind) in (("set.npz", "open header"), ("set.npy", "bad block")):
        pytest.skip("compressed, or not")
    file = io.BytesIO()
    np.save(file, GOOD) if name == "set.npy" else np.savez_compressed(file, images=GOOD)
    spoiled = DAMAGE[kind](file.getvalue())
    assert spoiled != file.getvalue()
    (tmp_path / name).write_bytes(spoiled)
    assert "\n" not in refusal(tmp_path / name)


@pytest.mark.parametrize("name, other", [("set.npy", "set.npz"), ("set.npz", "set.npy")])
def test_an_array_file_with_the_suffix_of_the_other(name, other, tmp_path, load):
    np.save(tmp_path / "set.npy", GOOD)
    np.savez(tmp_path / "set.npz", images=GOOD)
    shutil.copyfile(tmp_path / name, tmp_path / "copy")
    (tmp_path / "copy").replace(tmp_path / other)
    assert same_set(load(tmp_path / other)[0], GOOD)


class Payload:
    """Unpickled, it makes the folder `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["images", "labels", "npy", "pickle"])
def test_pickled_objects_are_refused_and_not_run(kind, tmp_path, refusal):
    objects = np.array([Payload(str(tmp_path / "ran"))], object)
    path = tmp_path / ("set.npz" if kind in ("images", "labels") else "set.npy")
    if path.suffix == ".npz":
        np.savez(path, **{"images": GOOD[:1]} | {kind: objects})
    elif kind == "npy":
        np.save(path, objects)
    else:
        path.write_bytes(pickle.dumps(objects))
    assert "\n" not in refusal(path) and not (tmp_path / "ran").exists()
    array = np.load(path, allow_pickle=True)  # the trap is a real one
    if path.suffix == ".npz":
        with array:
            array[kind]
    assert (tmp_path / "ran").exists()


# ---- Sprites -------------------------------------------------------------------------------------


def sprites(n, size):
    return np.stack([np.asarray(dcgan.sprite(size, i)) for i in range(n)])


def test_sprites_are_the_same_everywhere():
    images = sprites(64, 32)
    assert np.array_equal(images, sprites(64, 32)) and len({i.tobytes() for i in images}) == 64
    # pinned as far as rounding in other versions of Pillow and numpy can be left open
    assert images.mean((0, 1, 2)) == pytest.approx([154.113, 166.896, 157.744], abs=0.05)
    for i, color in ((3, [216.477, 101.184, 160.301]), (63, [96.352, 211.025, 168.752])):
        assert images[i].mean((0, 1)) == pytest.approx(color, abs=0.5)


@pytest.mark.parametrize("size", [16, 20, 28, 32, 40, 48, 56, 64, 96, 112, 256])
def test_sprites_are_mirrored(size):
    images = sprites(24, size)
    assert images.shape == (24, size, size, 3) and images.dtype == np.uint8
    assert np.array_equal(images, images[:, :, ::-1])


def test_sprites_load_like_any_set(load):
    images, labels, names = load("sprites", 28)
    pixels = sprites(2048, 28).transpose(0, 3, 1, 2)
    assert names == ["ghost", "beetle", "robot", "cat"] and np.array_equal(images, pixels)
    assert labels.tolist() == [0, 1, 2, 3] * 512
    images, labels, _ = load("sprites", 28, classes=[names[2]])
    assert np.array_equal(images, pixels[2::4]) and set(labels.tolist()) == {2}


# ---- Sets of torchvision -------------------------------------------------------------------------


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def archive_of(cache, monkeypatch):
    """archive_of(kind, {name: content}): the archive of a torchvision set, as it expects it."""

    def make(kind, members):
        cache.mkdir(exist_ok=True)
        with tarfile.open(cache / kind.filename, "w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(f"{kind.base_folder}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for part in ("train_list", "test_list"):
            sums = [[name, md5(members[name])] for name, _ in getattr(kind, part)]
            monkeypatch.setattr(kind, part, sums)
        monkeypatch.setattr(kind, "tgz_md5", md5((cache / kind.filename).read_bytes()))
        return cache / kind.filename

    return make


@pytest.fixture
def tiny_cifar10(archive_of, monkeypatch):
    """An archive of 5 batches of 2 images in the official layout, and what is in it."""
    kind, names = torchvision.datasets.CIFAR10, "plane car bird cat deer dog frog horse ship truck"
    pictures, labels = noise(10, 32, 32, 3), [3, 8, 8, 0, 6, 6, 1, 6, 3, 9]
    members = {"batches.meta": pickle.dumps({"label_names": names.split()}, 2)}
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        part = slice(2 * i % 10, 2 * i % 10 + 2)
        planes = pictures[part].transpose(0, 3, 1, 2).reshape(2, 3072)
        members[name] = pickle.dumps({"data": planes, "labels": labels[part]}, 2)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(members["batches.meta"])})
    return archive_of(kind, members), pictures, labels, names.split()


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


def test_stl10_with_its_unlabeled_images(archive_of, load):
    pictures, classes = noise(5, 96, 96, 3), [f"class{i}" for i in range(10)]
    columns = pictures.transpose(0, 3, 2, 1)  # stored by columns
    members = {"train_X.bin": columns[:3].tobytes(), "train_y.bin": bytes([10, 1, 4])}
    members |= {"unlabeled_X.bin": columns[3:].tobytes(), "test_X.bin": b"", "test_y.bin": b""}
    members["class_names.txt"] = "\n".join(classes).encode()
    archive_of(torchvision.datasets.STL10, members)
    images, labels, names = load("stl10", 96)
    assert np.array_equal(images, pictures.transpose(0, 3, 1, 2))
    assert names == [*classes, "unlabeled"] and labels.tolist() == [9, 0, 3, 10, 10]


def test_celeba_unpacked_by_hand(cache, load, monkeypatch):
    kind = torchvision.datasets.CelebA
    files = [f"{i:06}.jpg" for i in range(1, 4)]
    columns = {"list_attr_celeba.txt": ("Young", "1"), "list_bbox_celeba.txt": ("x_1", "5")}
    columns |= {"list_landmarks_align_celeba.txt": ("lefteye_x", "5")}
    pictures = []
    for i, name in enumerate(files):
        content = encoded(noise(28, 20, 3, seed=i))
        files_of(cache / "celeba" / "img_align_celeba", {name: content})
        pictures.append(decoded(content))
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


class LmdbError(Exception):
    """As in the real one, no OSError."""


def fake_lmdb(databases):
    """The part of the lmdb package that torchvision uses; databases: folder -> {key: value}."""

    def opened(path, **options):
        if path not in databases:
            raise LmdbError(f"{path}: No such file or directory")
        rows = databases[path]
        transaction = types.SimpleNamespace(get=rows.get, stat=lambda: {"entries": len(rows)})
        transaction.cursor = lambda: types.SimpleNamespace(iternext=lambda **_: iter(rows))
        return types.SimpleNamespace(begin=lambda write: nullcontext(transaction))

    return types.SimpleNamespace(Error=LmdbError, open=opened)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # torchvision's own
def test_lsun_from_its_database(tmp_path, cache, load, monkeypatch):
    pictures = [noise(20, 16, 3, seed=i) for i in range(5)]
    rows = {b"%d" % i: encoded(p) for i, p in enumerate(pictures)}
    lmdb = fake_lmdb({os.path.join(str(cache), "bedroom_train_lmdb"): rows})
    monkeypatch.setitem(sys.modules, "lmdb", lmdb)
    monkeypatch.chdir(tmp_path)  # torchvision keeps a list of keys in the working folder
    images, labels, names = load("lsun-bedroom")
    assert np.array_equal(images, [by_hand(p, 16) for p in pictures])
    assert labels.tolist() == [0] * 5 and names == ["bedroom_train"]


@pytest.mark.parametrize("installed", [False, True])
def test_lsun_without_its_files(installed, cache, refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", fake_lmdb({}) if installed else None)
    message = refusal("lsun-bedroom")
    assert str(cache / "bedroom_train_lmdb") in message and "pip install lmdb" in message


def test_an_unknown_lsun_set_names_the_known_ones(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", fake_lmdb({}))
    message = refusal("lsun-spaceship")
    assert "bedroom" in message and "church_outdoor" in message


@pytest.mark.parametrize("installed", [False, True])
def test_celeba_without_its_files(installed, cache, refusal, monkeypatch):
    """Google Drive refuses its archive on most days."""

    def download(**options):
        raise LmdbError("Too many users have viewed or downloaded this file recently.")

    gdown = types.SimpleNamespace(download=download) if installed else None
    monkeypatch.setitem(sys.modules, "gdown", gdown)
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
def test_a_download_that_fails(
    answer, tiny_cifar10, cache, load, refusal, monkeypatch, impatient, tmp_path
):
    """It says what to put where, and what was put there then serves, whatever was left behind."""
    archive, pictures, _, _ = tiny_cifar10
    archive.replace(tmp_path / "elsewhere")
    with server(ANSWERS[answer]) as url:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        start = time.monotonic()
        message = refusal("cifar10")
        assert time.monotonic() - start < 2.5
    assert str(archive) in message and torchvision.datasets.CIFAR10.tgz_md5 in message
    assert impatient and 5 <= impatient[0] <= 120
    (tmp_path / "elsewhere").replace(archive)
    assert np.array_equal(load("cifar10", 32)[0], pictures.transpose(0, 3, 1, 2))


def test_a_damaged_archive_is_not_read(tiny_cifar10, refusal, monkeypatch, impatient):
    archive, _, _, _ = tiny_cifar10
    archive.write_bytes(archive.read_bytes()[:-9])
    with server(ANSWERS["a part, then silence"]) as url:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        assert torchvision.datasets.CIFAR10.tgz_md5 in refusal("cifar10")
    assert impatient


# ---- From the set to the networks ----------------------------------------------------------------


def test_bytes_are_mapped_onto_minus_one_to_one_and_back():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    x = dcgan.to_input(images)
    assert x.dtype == torch.float32 and x.shape == images.shape and x.min() == -1 and x.max() == 1
    expected = np.arange(256) / 127.5 - 1
    np.testing.assert_allclose(x[0, 0].flatten().numpy(), expected, atol=1e-6)
    identity = torch.nn.PReLU(init=1)  # a generator that returns its input
    assert torch.equal(dcgan.sample(identity, x.repeat(3, 1, 1, 1)), images.repeat(3, 1, 1, 1))


def test_hflip_mirrors_about_half_and_does_nothing_else():
    images = torch.from_numpy(noise(400, 3, 4, 4))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plain = dcgan.to_input(images)
    assert torch.equal(torch.get_rng_state(), before)  # only hflip uses random numbers
    x, again = (dcgan.to_input(images, hflip=True) for _ in range(2))
    kept, mirrored = ((x == y).flatten(1).all(1) for y in (plain, plain.flip(3)))
    assert (kept ^ mirrored).all() and not torch.equal(x, again)
    assert 150 < mirrored.sum() < 250  # 5 standard deviations around 200
