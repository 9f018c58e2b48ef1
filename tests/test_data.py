"""The data contract: any set of pictures in, uint8 (N, 3, size, size), labels and class names out.

The Data section is the same in the trainers and fid.py, and is tested in wgan_gp.py.
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
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from PIL import EpsImagePlugin, Image

import wgan_gp

PICKLE = b"cos\nmkdir\n(S'ran'\ntR."  # unpickled, it makes a folder

# ---- Helpers -------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(cache):
    def call(data, size=16, classes=None):
        return wgan_gp.load_data(str(data), size, classes, str(cache))

    return call


@pytest.fixture
def refusal(load):
    """The one line that loading ends in."""

    def call(data, classes=None):
        with pytest.raises(SystemExit) as stop:
            load(data, 16, classes)
        assert "\n" not in stop.value.code
        return stop.value.code

    return call


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_hand(pixels, size=16):
    """(H, W, 3) -> (3, size, size): center square, then Pillow's antialiased Lanczos."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.LANCZOS)).transpose(2, 0, 1)


def files_of(folder, members):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zip_of(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pictures_of(names):
    """For each name a picture of noise; {name: content} and {name: pixels (3, 16, 16)}."""
    pictures = {name: noise(16, 16, 3, seed=i) for i, name in enumerate(names)}
    members = {name: encoded(pixels) for name, pixels in pictures.items()}
    return members, {name: by_hand(pixels) for name, pixels in pictures.items()}


def classes_of(loaded, pictures):
    """The class that each of these pictures has among the loaded ones; each must be there once."""
    images, labels, classes = loaded
    found = {image.numpy().tobytes(): classes[label] for image, label in zip(images, labels)}
    assert len(found) == len(images) == len(labels)
    return {name: found.pop(pixels.tobytes(), None) for name, pixels in pictures.items()}


# ---- Pixels --------------------------------------------------------------------------------------


def grey3(values):
    return np.repeat(values[..., None], 3, axis=-1)


def on_white(pixels, alpha):
    cover = alpha[..., None] / 255
    return pixels * cover + 255 * (1 - cover)


def modes():
    """{name: (a file of 16 x 16 pixels, the RGB pixels that it stands for)}."""
    pixels = {}
    grey = noise(16, 16)
    pixels["1 bit"] = encoded(grey > 127), grey3((grey > 127) * 255)
    few = grey // 64 * 64
    clear = np.where(few == 64, 255, few)
    pixels["grey, one transparent"] = encoded(few, transparency=64), grey3(clear)
    rgba = noise(16, 16, 4)
    image = Image.frombytes("LA", (16, 16), rgba[..., 2:].tobytes())
    pixels["grey, alpha"] = encoded(image), on_white(grey3(rgba[..., 2]), rgba[..., 3])
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(rgba[..., :3], exif=exif)
    pixels["rgb, a quarter turn by exif"] = content, np.rot90(rgba[..., :3], 3)
    pixels["rgba"] = encoded(rgba), on_white(rgba[..., :3], rgba[..., 3])
    image = Image.frombytes("CMYK", (16, 16), rgba.tobytes())
    ink = 255 - rgba.astype(float)
    pixels["cmyk"] = encoded(image, "TIFF"), ink[..., :3] * ink[..., 3:] / 255
    deep = noise(16, 16, 2).view("<u2")[..., 0]
    deep[0, 0] = 65535
    sixteen = grey3(np.rint(deep / 257))
    pixels["16 bits"] = encoded(deep), sixteen
    pixels["16 bits, big-endian"] = encoded(deep.astype(">u2"), "TIFF"), sixteen
    pixels["16 bits, pgm"] = b"P5 16 16 65535\n" + deep.astype(">u2").tobytes(), sixteen
    index = grey % 8
    colors = noise(8, 3)
    alpha = noise(8)
    image = Image.frombytes("P", (16, 16), index.tobytes())
    image.putpalette(colors.tobytes())
    content = encoded(image, transparency=alpha.tobytes())
    pixels["palette, alpha"] = content, on_white(colors[index], alpha[index])
    content = encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)])
    pixels["the first frame of a gif"] = content, colors[index]
    return pixels


@pytest.mark.parametrize("content, expected", modes().values(), ids=modes())
def test_every_mode_and_turn_becomes_the_rgb_it_stands_for(content, expected, tmp_path, load):
    folder = files_of(tmp_path / "set", {"a.png": content})  # what counts is what the file holds
    images, _, _ = load(folder)
    assert images.dtype == torch.uint8
    assert images.shape == (1, 3, 16, 16)
    assert abs(images[0].numpy() - expected.transpose(2, 0, 1)).max() <= 1


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("exif", [b"Exif\0\0XX", b"Exif\0\0II*\0\xff\xff\0\0"])
def test_large_photos_and_damaged_exif_raise_no_warning(exif, tmp_path, load, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # it has more, but not twice as many
    pixels = noise(16, 24, 3)
    images, _, _ = load(files_of(tmp_path / "set", {"a.png": encoded(pixels, exif=exif)}))
    assert np.array_equal(images[0], by_hand(pixels))
    assert not recwarn


@pytest.mark.parametrize("size", [16, 28])
@pytest.mark.parametrize("shape", [(16, 16), (24, 40), (41, 23), (1, 1), (1, 9), (64, 16)])
def test_the_center_square_is_resized_with_lanczos(shape, size):
    pixels = noise(*shape, 3)
    assert np.array_equal(wgan_gp.to_rgb(Image.fromarray(pixels), size), by_hand(pixels, size))
    assert np.array_equal(wgan_gp.to_rgb(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))


def test_transparency_is_composed_before_resizing():
    pixels = np.zeros((32, 32, 4), np.uint8)  # black that is hidden does not bleed into edges
    pixels[:, :16] = 255
    assert (wgan_gp.to_rgb(Image.fromarray(pixels), 16) == 255).all()


# ---- Containers ----------------------------------------------------------------------------------


def test_a_folder_zip_npy_and_npz_give_the_same_tensor(tmp_path, load, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    pictures = noise(6, 20, 24, 3)
    members = {f"{i}.png": encoded(pixels) for i, pixels in enumerate(pictures)}
    files_of(tmp_path / "set", members)
    zip_of(tmp_path / "set.zip", members)
    zip_of(tmp_path / "small.ZIP", members, compression=zipfile.ZIP_DEFLATED)
    np.save(tmp_path / "set.npy", pictures)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(pictures))
    np.savez(tmp_path / "set.npz", other=pictures[::-1], images=pictures)
    np.savez_compressed(tmp_path / "small.npz", pictures)
    np.savez(tmp_path / "adm.npz", pictures, mu=np.zeros(6), sigma=np.zeros((6, 6)))
    shutil.copy(tmp_path / "set.npy", tmp_path / "npy.npz")
    shutil.copy(tmp_path / "set.npz", tmp_path / "npz.npy")
    expected = np.stack([by_hand(pixels) for pixels in pictures])
    names = "set set.zip small.ZIP set.npy fortran.npy set.npz small.npz adm.npz npy.npz npz.npy"
    for name in names.split():
        images, labels, _ = load(f"~/{name}")
        assert np.array_equal(images, expected), name
        assert labels.dtype == torch.int64
        assert labels.tolist() == [0] * 6


def test_an_npz_may_be_grey_and_its_labels_are_classes_in_the_order_of_its_images(tmp_path, load):
    numbers = np.arange(1100)  # more than are decoded at a time
    shades = (numbers % 251).astype(np.uint8)
    values = np.array([7, 3, 10])[numbers % 3]
    np.savez(tmp_path / "set.npz", images=np.tile(shades, (4, 4, 1)).T, labels=values)
    images, labels, classes = load(tmp_path / "set.npz")
    assert np.array_equal(images[:, :, 5, 7], grey3(shades))
    assert classes == ["3", "7", "10"]
    assert np.array_equal(np.array([3, 7, 10])[labels], values)


# ---- Classes -------------------------------------------------------------------------------------

CLASSES = {
    "the first folders": "cat/1.png=cat dog/x/deep/1.png=dog dog/2.PNG=dog cat/y/2.png=cat",
    "no folders": "b.png=. a.png=.",
    "one folder": "cat/b.png=cat cat/a.png=cat",
    "two top folders": "a/b/dog/0.png=dog a/b/cat/x/0.png=cat",
    "a dot for a top folder": "./cat/0.png=cat ./dog/0.png=dog",
    "a picture beside folders": "top/1.png=. top/cat/1.png=cat top/dog/1.png=dog",
    "all letters": "Gänse/1.png=Gänse 猫/1.png=猫 [x]/1.png=[x]",
    "hidden files": ".git/1.png=None cat/1.png=cat dog/._1.png=None __MACOSX/dog/1.png=None",
}


@pytest.mark.parametrize("case", CLASSES)
def test_folders_at_the_first_level_where_paths_differ_are_the_classes(case, tmp_path, load):
    expected = dict(pair.split("=") for pair in CLASSES[case].split())
    members, pictures = pictures_of(expected)
    files_of(tmp_path / "set", members)
    zip_of(tmp_path / "set.zip", members)
    for data in ("set", "set.zip"):
        loaded = load(tmp_path / data)
        found = classes_of(loaded, pictures)
        assert {name: str(found[name]) for name in found} == expected
        assert loaded[2] == sorted({*expected.values()} - {"None"})


def test_classes_keeps_those_alone_and_numbers_them_anew(tmp_path, load, refusal):
    members, pictures = pictures_of(["top/cat/1.png", "top/dog/1.png", "top/owl/1.png"])
    data = files_of(tmp_path / "set", members)
    images, labels, classes = load(data, classes=["owl", "dog", "owl"])
    assert np.array_equal(images, [*pictures.values()][1:])
    assert labels.tolist() == [0, 1]
    assert classes == ["dog", "owl"]
    assert len(load(data)[0]) == 3  # the cache of the few does not stand for all
    assert refusal(data, ["cat", "zebra"]) == f"--classes: {data} has cat dog owl"


def test_classes_are_counted_doubtful_ones_asked_about_and_one_alone_is_refused(capsys):
    counts = {".": 20, "cat": 10, "dog": 9, "train": 50}
    labels = torch.arange(4).repeat_interleave(torch.tensor([*counts.values()]))
    wgan_gp.check_classes(labels, [*counts])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"classes: {counts}"
    doubted = [line.split(" a class? If not, ")[0] for line in printed[1:]]
    assert doubted == ["is .", "is dog", "is train"]
    with pytest.raises(SystemExit, match="--conditional: there is one class"):
        wgan_gp.check_classes(labels, ["cat"])


# ---- Trees of files ------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_links_are_followed_circles_end_and_a_broken_one_is_named(tmp_path, load, refusal):
    """cat/dog and dog/cat lead to each other, cat/up and cat/out to folders that hold them."""
    members, pictures = pictures_of(["set/cat/1.png", "set/dog/2.png", "store/3.png"])
    folder = files_of(tmp_path, members) / "set"
    targets = {"cat/dog": "../dog", "dog/cat": "../cat", "cat/up": "..", "cat/out": "../.."}
    targets |= {"owl": "../store", "cat/4.png": "../../store/3.png"}
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    images, labels, classes = load(folder)
    assert classes == ["cat", "dog", "owl"]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    first, second, third = pictures.values()
    assert np.array_equal(images, [first, third, second, second, first, third, third])
    (folder / "owl/5.png").symlink_to("gone")
    assert str(folder / "owl/5.png") in refusal(folder)


def test_a_run_folder_and_the_cache_may_lie_among_the_images(tmp_path, monkeypatch, capsys):
    members, pictures = pictures_of(["1.png", "runs/x/samples/2.png", "runs/x/3.png"])
    folder = files_of(tmp_path / "photos", members)
    (folder / "runs/x/checkpoint.pt").write_bytes(b"")
    monkeypatch.chdir(folder)
    for data in (folder, folder, "../photos"):
        images, *_ = wgan_gp.load_data(str(data), 16, None, str(folder))
        assert np.array_equal(images, [pictures["1.png"]])
    assert len(list(folder.glob("*.u8"))) == 2  # one for each way to name the folder


def test_a_folder_that_may_not_be_opened_is_named(tmp_path, refusal, monkeypatch, capsys):
    error = PermissionError(13, "Permission denied", "cat")
    monkeypatch.setattr(os, "scandir", Mock(side_effect=error))
    assert "is an image" in refusal(tmp_path)
    assert "Permission denied: 'cat'" in capsys.readouterr().out


def test_other_files_and_small_images_are_counted(tmp_path, load, refusal, capsys):
    names = [f"cat/1{suffix}" for suffix in (".png", ".JPG", ".gif", ".avif", ".webp", ".tiff")]
    members, _ = pictures_of(names)
    members["cat/2.png"] = encoded(noise(40, 15, 3))
    others = {name: b"" for name in ("cat/", "cat/notes.txt", "cat/2.pdf", "cat/3.HEIC")}
    data = zip_of(tmp_path / "set.zip", members | others)
    assert len(load(data)[0]) == 7
    first, _, last = capsys.readouterr().out.splitlines()
    assert first == f"{data}: 7 images, 3 other files"
    assert last == "1 of them are smaller than 16x16 and are enlarged"
    message = refusal(zip_of(tmp_path / "none.zip", others))
    assert message.endswith("cannot be read (none of the 3 files in it is an image)")


def test_postscript_is_never_run(tmp_path, load, monkeypatch):
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    run = Mock()
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    members, pictures = pictures_of(["a.png"])
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    folder = files_of(tmp_path / "set", {**members, "b.png": program, "c.eps": program})
    assert classes_of(load(folder), pictures) == {"a.png": "."}
    run.assert_not_called()


# ---- Cache ---------------------------------------------------------------------------------------


def test_the_result_is_mapped_from_a_file_which_is_never_written_to(tmp_path, cache, load):
    members, pictures = pictures_of(["a/a.png", "b/b.png", "b/c.png"])
    images, labels, _ = load(files_of(tmp_path / "set", members))
    (file,) = cache.iterdir()
    content = b"".join(pixels.tobytes() for pixels in pictures.values())
    assert file.read_bytes() == content + labels.numpy().tobytes()
    with open(file, "r+b") as opened:  # what is written to the file is seen in the map
        opened.write(bytes([255 - content[0]]))
    assert images[0, 0, 0, 0] == 255 - content[0]
    if sys.platform == "linux":  # where a private map that can be written to counts as memory
        maps = Path("/proc/self/maps").read_text().splitlines()
        maps = [line for line in maps if file.name in line]
        assert maps and all(" r--" in line for line in maps)


@pytest.mark.parametrize("name", ["set", "set.zip", "set.npz"])
def test_a_set_is_decoded_once_and_anew_when_it_changes(name, tmp_path, load, monkeypatch):
    members, _ = pictures_of(["a/a.png", "b/b.png"])
    files_of(tmp_path / "set", members)
    zip_of(tmp_path / "set.zip", members)
    np.savez(tmp_path / "set.npz", images=noise(2, 20, 20, 3), labels=[2, 1])
    decode = Mock(wraps=wgan_gp.decode)
    monkeypatch.setattr(wgan_gp, "decode", decode)
    monkeypatch.chdir(tmp_path)
    for once, again in zip(load(tmp_path / name), load(name)):
        assert np.array_equal(once, again)
    assert decode.call_count == 1
    for path in (tmp_path / name, tmp_path / "set/a/a.png"):
        os.utime(path, (1e9, 1e9))
    load(tmp_path / name)
    assert decode.call_count == 2


def test_a_moved_and_a_changed_image_are_seen_though_their_times_stay(tmp_path, load):
    members, pictures = pictures_of(["cat/a.png", "cat/b.png", "dog/c.png"])
    folder = files_of(tmp_path / "set", members)
    load(folder)
    (folder / "cat/b.png").rename(folder / "dog/b.png")
    assert [*classes_of(load(folder), pictures).values()] == ["cat", "dog", "dog"]
    time = (folder / "cat/a.png").stat().st_mtime_ns
    pixels = noise(20, 20, 3)
    files_of(folder, {"cat/a.png": encoded(pixels)})
    os.utime(folder / "cat/a.png", ns=(time, time))
    assert np.array_equal(load(folder)[0][0], by_hand(pixels))


def test_images_are_decoded_in_several_threads(tmp_path, cache, load, monkeypatch):
    """And if they are interrupted, they leave nothing."""
    meeting = threading.Barrier(2)

    def meet(image, size):
        meeting.wait(timeout=60)  # until another thread is here too
        return np.zeros((3, size, size), np.uint8)

    monkeypatch.setattr(os, "cpu_count", Mock(return_value=2))
    monkeypatch.setattr(wgan_gp, "to_rgb", meet)
    members, _ = pictures_of(["a.png", "b.png"])
    monkeypatch.setattr(wgan_gp, "to_rgb", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load(files_of(tmp_path / "set", members))
    assert not [*cache.iterdir()]
    monkeypatch.setattr(wgan_gp, "to_rgb", meet)
    assert len(load(tmp_path / "set")[0]) == 2


def test_a_read_only_cache_serves_what_is_in_it(tmp_path, cache, load, refusal, monkeypatch):
    members, pictures = pictures_of(["a.png"])
    folder = files_of(tmp_path / "set", members)
    load(folder)
    monkeypatch.setattr(wgan_gp, "atomic", Mock(side_effect=OSError("Read-only file system")))
    assert classes_of(load(folder), pictures) == {"a.png": "."}
    advice = "images cannot be kept there; name another folder (Read-only file system)"
    assert refusal("sprites") == f"--cache {cache}: {advice}"


# ---- What cannot be read -------------------------------------------------------------------------

PIXELS = noise(32, 32, 3)
HUGE = bytearray(encoded(PIXELS, "BMP"))
HUGE[18:26] = struct.pack("<II", 40000, 40000)  # 4.8 GB of pixels, so the header says
BAD = {"dog/1.png": b"text", "dog/2.png": HUGE, "dog/3.png": encoded(PIXELS)[:900]}
BAD |= {"dog/4.png": b"", "dog/5.jpg": encoded(PIXELS, "JPEG")[:900]}


def test_unreadable_images_are_left_out_and_the_first_are_named(tmp_path, load, capsys):
    members, pictures = pictures_of(["cat/1.png", "owl/2.png"])
    loaded = load(files_of(tmp_path / "set", members | BAD))
    assert [*classes_of(loaded, pictures).values()] == ["cat", "owl"]
    first, second, third = capsys.readouterr().out.splitlines()[1].split(", dog/")
    assert first == "5 of them cannot be read: dog/1.png (cannot identify image file)"
    assert second.startswith("2.png (Image size (1600000000 pixels) exceeds limit")
    assert third.startswith("3.png (") and "truncated" in third


def test_an_error_of_the_disk_is_no_damaged_image(tmp_path, load, refusal, monkeypatch):
    members, _ = pictures_of(["a.png", "b.png"])
    folder = files_of(tmp_path / "set", members)
    with monkeypatch.context() as context:
        context.setattr(Image, "open", Mock(side_effect=OSError(5, "Input/output error")))
        assert "a.png cannot be read ([Errno 5] Input/output error)" in refusal(folder)
    assert len(load(folder)[0]) == 2


def test_unpacking_a_zip_is_advised_where_no_image_of_it_can_be_read(tmp_path, refusal, capsys):
    members, _ = pictures_of(["a.png"])
    path = zip_of(tmp_path / "set.zip", members)
    path.write_bytes(path.read_bytes().replace(members["a.png"], bytes(len(members["a.png"]))))
    assert refusal(path) == "no image could be read; if they are in a .zip, unpack it"
    assert "1 of them cannot be read: a.png (Bad CRC-32 for file" in capsys.readouterr().out


PATHS = [("no", None, "no such file or folder, and none of sprites, cifar10, stl10")]
PATHS += [("a.png", encoded(PIXELS), "neither a folder nor a .zip, .npy or .npz")]
PATHS += [("a.zip", b"text" * 20, "not a zip file"), ("a.npy", b"\x93NUMPY\1\0v\0{'", "header")]


@pytest.mark.parametrize("name, content, cause", PATHS)
def test_a_path_that_is_no_set_is_refused_in_one_line(name, content, cause, tmp_path, refusal):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert message.startswith(f"--data {tmp_path / name}: cannot be read (")
    assert cause in message


GOOD = noise(4, 16, 16, 3)
ARRAYS = [
    ({"images": GOOD.astype(np.float32)}, "images float32 (4, 16, 16, 3)"),
    ({"images": GOOD.transpose(0, 3, 1, 2)}, "images uint8 (4, 3, 16, 16)"),
    ({"images": GOOD[0]}, "images uint8 (16, 16, 3)"),
    ({"images": GOOD, "labels": np.arange(3, dtype=np.int64)}, "labels int64 (3,)"),
    ({"images": GOOD, "labels": np.zeros(4)}, "labels float64 (4,)"),
    ({"images": np.float32(1)}, "unsized"),
    ({}, "empty"),
]


@pytest.mark.parametrize("arrays, cause", ARRAYS)
def test_other_arrays_are_refused_in_one_line(arrays, cause, tmp_path, refusal):
    np.savez(tmp_path / "set.npz", **arrays)
    assert cause in refusal(tmp_path / "set.npz")


def test_the_lines_of_numpy_in_the_message_mend_floats_and_channels_first(tmp_path, refusal):
    path = tmp_path / "set.npy"
    np.save(path, np.zeros((4, 3, 16, 16)))
    to_bytes = "(255 * x).round().astype('uint8')"
    channels_last = "x.transpose(0, 2, 3, 1)"
    assert f"Try {to_bytes} of floats, {channels_last} of channels first" in refusal(path)
    assert np.array_equal(eval(to_bytes, {"x": GOOD / np.float32(255)}), GOOD)
    assert np.array_equal(eval(channels_last, {"x": GOOD.transpose(0, 3, 1, 2)}), GOOD)


def test_pickles_are_refused_and_not_run(tmp_path, refusal, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("objects.npy", np.array([{}], object))
    Path("pickle.npy").write_bytes(PICKLE)
    Path("pickle.npz").write_bytes(PICKLE)
    for name in ("objects.npy", "pickle.npy", "pickle.npz"):
        assert f"--data {name}: cannot be read" in refusal(name)
    assert not Path("ran").exists()


# ---- Sprites, sets of torchvision, LSUN ----------------------------------------------------------


def test_sprites_are_the_same_everywhere():
    """Pinned as far as rounding in other versions of Pillow and numpy can be left open."""
    images = np.stack([wgan_gp.sprite(32, i) for i in range(64)])
    assert len(np.unique(images, axis=0)) == 64
    assert images.mean((0, 1, 2)) == pytest.approx([154.113, 166.896, 157.744], abs=0.05)
    assert images[3].mean((0, 1)) == pytest.approx([216.477, 101.184, 160.301], abs=0.5)
    assert images[63].mean((0, 1)) == pytest.approx([96.352, 211.025, 168.752], abs=0.5)
    for size in (16, 20, 28, 48, 256):
        pixels = np.asarray(wgan_gp.sprite(size, size))
        assert pixels.shape == (size, size, 3)
        assert np.array_equal(pixels, pixels[:, ::-1])


def test_sprites_load_like_any_set(load):
    images, labels, classes = load("sprites", 28)
    assert classes == ["ghost", "beetle", "robot", "cat"]
    assert labels.tolist() == [0, 1, 2, 3] * 512
    assert np.array_equal(images[6], wgan_gp.to_rgb(wgan_gp.sprite(28, 6)))


def md5(content):
    return hashlib.md5(content).hexdigest()


def archive_of(kind, members, cache, monkeypatch):
    """The archive {name: content} of a set of torchvision's, which will expect its checksums."""
    cache.mkdir()
    path = cache / kind.filename
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for part in ("train_list", "test_list"):
        sums = [[name, md5(members[name])] for name, _ in getattr(kind, part)]
        monkeypatch.setattr(kind, part, sums)
    monkeypatch.setattr(kind, "tgz_md5", md5(path.read_bytes()))
    return path


@pytest.fixture
def cifar10(cache, monkeypatch):
    """An archive of 5 batches of 2 images in the official layout, those images, and labels; there
    is no network."""
    error = socket.gaierror("no network in tests")
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=error))
    kind, pictures, labels = torchvision.datasets.CIFAR10, noise(10, 3072), noise(10) % 10
    meta = pickle.dumps({"label_names": [*"abcdefghij"]})
    members = {"batches.meta": meta, "test_batch": b""}
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        batch = {"data": pictures[part], "labels": labels[part].tolist()}
        members[f"data_batch_{i + 1}"] = pickle.dumps(batch)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})
    archive = archive_of(kind, members, cache, monkeypatch)
    return archive, pictures.reshape(10, 3, 32, 32), labels


def test_an_archive_of_cifar10_put_into_the_cache_is_used(cifar10, load):
    archive, pictures, targets = cifar10
    for size in (32, 16):  # unpacked by the first, the second does not need the archive
        images, labels, classes = load("cifar10", size)
        expected = [by_hand(pixels.transpose(1, 2, 0), size) for pixels in pictures]
        assert np.array_equal(images, expected)
        assert [classes[i] for i in labels] == ["abcdefghij"[i] for i in targets]
        archive.unlink(missing_ok=True)


def test_without_a_network_it_is_said_which_archive_to_put_where(cifar10, refusal):
    archive, *_ = cifar10
    wanted = f"{archive.name} with md5 {md5(archive.read_bytes())} into --cache {archive.parent}"
    cause = "(<urlopen error no network in tests>)"
    archive.unlink()
    assert refusal("cifar10") == f"cifar10: no download; put {wanted} {cause}"
    archive.write_bytes(b"text")
    assert f"{wanted}: the file there may have another md5 {cause}" in refusal("cifar10")
    assert archive.read_bytes() == b"text"


def test_stl10_has_its_unlabeled_images_too(cache, load, monkeypatch, capsys):
    pictures = noise(5, 3, 96, 96)
    columns = pictures.transpose(0, 1, 3, 2)  # stored by columns
    members = {"train_X.bin": columns[:3].tobytes(), "train_y.bin": bytes([10, 1, 4])}
    members |= {"unlabeled_X.bin": columns[3:].tobytes(), "test_X.bin": b"", "test_y.bin": b""}
    members["class_names.txt"] = "\n".join("abcdefghij").encode()
    archive_of(torchvision.datasets.STL10, members, cache, monkeypatch)
    monkeypatch.chdir(cache)
    Path("stl10").mkdir()
    images, labels, classes = load("stl10", 96)
    assert capsys.readouterr().out.startswith("stl10: the data set of that name; ./stl10 is y")
    assert np.array_equal(images, pictures)
    assert [classes[label] for label in labels] == ["j", "a", "d", "unlabeled", "unlabeled"]


def test_lsun_is_read_through_lmdb_alone(tmp_path, load, refusal, monkeypatch):
    """With a stand-in for the package. torchvision would unpickle a list of keys."""
    folder = tmp_path / "bedroom"
    letters = "".join(filter(str.isalpha, str(folder)))
    monkeypatch.chdir(tmp_path)
    Path(f"_cache_{letters}").write_bytes(PICKLE)
    members, pictures = pictures_of([b"key 1", b"key 2"])
    lmdb = Mock()
    transaction = lmdb.open.return_value.begin.return_value
    transaction.get = members.get
    monkeypatch.setitem(sys.modules, "lmdb", lmdb)
    for keys in ([b"key 1"], [b"key 1", b"key 2"]):  # the database grows
        files_of(folder, {"data.mdb": bytes(len(keys))})
        transaction.cursor.return_value.iternext.return_value = keys
        assert [*classes_of(load(folder), pictures).values()].count("bedroom") == len(keys)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert "lmdb" in refusal(folder)
    assert not Path("ran").exists()
