"""interpolate.py: its latents, its parser, its pictures, and every generator that it can load."""

import argparse
import ast
import json
import math
import os
import pickle
import random
import re
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import dcgan
import interpolate
import wgan
import wgan_gp
from interpolate import latents

SCRIPT = Path(interpolate.__file__)
TRAINERS = {"dcgan.py": dcgan, "wgan.py": wgan, "wgan_gp.py": wgan_gp}


def generator(size=16, z_dim=8, width=4, norm="batch", trainer=dcgan, seed=1):
    """A generator whose images differ: batch-norm statistics as after some training."""
    torch.manual_seed(seed)
    return varied(trainer.Generator(size, z_dim, width, norm))


def varied(G):
    for parameter in G.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for module in G.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.1 * torch.randn_like(module.running_mean)
            module.running_var *= torch.rand_like(module.running_var) + 0.5
    return G.eval()


def snapshot(path, script="dcgan.py", **shape):
    """Write the snapshot of generator(**shape), and return that generator."""
    shape = {"size": 16, "z_dim": 8, "width": 4, "norm": "batch"} | shape
    G = generator(**shape, trainer=TRAINERS[script])
    saved = {"format": 2, "script": script, "generator": shape, "args": {}}
    torch.save(saved | {"G_ema": G.state_dict(), "epoch": 3, "step": 9}, path)
    return G


@pytest.fixture
def G(tmp_path, monkeypatch):
    """The generator in g.pt of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return snapshot("g.pt")


def run(*flags, checkpoint="g.pt"):
    interpolate.main([checkpoint, "--device", "cpu", *map(str, flags)])


def refusal(*flags, **options):
    with pytest.raises(SystemExit) as stop:
        run(*flags, **options)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def usage_error(capsys, *flags):
    with pytest.raises(SystemExit) as stop:
        interpolate.parse_args(["g.pt", *flags])
    assert stop.value.code == 2
    return capsys.readouterr().err.split("interpolate.py: error: ")[1]


def process(*command, **options):
    """Run Python in a process of its own, with interpolate.py on its path."""
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= options.pop("env", {})
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=env, **options
    )


def read(path):
    """A picture as uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def images_of(G, z):
    """Images by hand: uint8 (N, H, W, 3)."""
    with torch.no_grad():
        x = ((G.eval()(z) + 1) * 127.5).round().clamp(0, 255)
    return x.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy().astype(np.uint8)


def saved_images(n, *flags, **options):
    run("--samples", n, "--out", "s.npz", *flags, **options)
    with np.load("s.npz") as arrays:
        return arrays["images"]


def large(image, scale):
    return np.kron(image, np.ones((scale, scale, 1), np.uint8))


def same(a, b):
    """Equal but for rare pixels one level off: float32 sums rounded in another order."""
    difference = abs(a.astype(int) - b)
    return difference.max() <= 1 and (difference > 0).mean() < 1e-2


def cell(page, row, column, label=17, side=128):
    """The image in a cell of a labelled grid, and the place where its label is."""
    top, left = 4 + row * (side + 4 + label), 4 + column * (side + 4)
    image = page[top + label : top + label + side, left : left + side]
    return image, page[top - 2 : top + label - 2, left : left + side]


# ---- Latents ------------------------------------------------------------------------------------

VECTORS = st.integers(0, 10_000).map(lambda seed: latents([seed], 20)[0])


@settings(max_examples=50, deadline=None)
@given(VECTORS, VECTORS, st.floats(0.1, 10))
def test_slerp_turns_evenly_and_changes_its_length_evenly(a, b, factor):
    a, b = a.double(), b.double() * factor
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    z = interpolate.interpolation(a, b, 7)
    lengths = z.norm(dim=1)
    torch.testing.assert_close(lengths, a.norm() + t * (b.norm() - a.norm()))
    units = z / lengths[:, None]
    steps = 2 * torch.asin((units[1:] - units[:-1]).norm(dim=1) / 2)  # chord to angle
    whole = 2 * torch.asin((b / b.norm() - a / a.norm()).norm() / 2)
    torch.testing.assert_close(steps, whole.expand(6) / 6, atol=1e-7, rtol=1e-7)
    plane = torch.linalg.svdvals(torch.stack([a, b, *z]))
    assert plane[2] < 1e-9 * plane[0]  # no arc leaves the plane of its ends


X = torch.tensor([3.0, -1, 2, 0.5])
PAIRS = [(X, X), (X, 2 * X), (X, -X), (X, -3 * X), (X, 0 * X), (0 * X, X), (0 * X, 0 * X)]
PAIRS += [(X, X + 1e-7), (X, -X + 1e-7), (1e-30 * X, 1e30 * X), (X[:1], -X[:1])]


@pytest.mark.parametrize("path", ["slerp", "lerp"])
@pytest.mark.parametrize("a, b", PAIRS)
def test_degenerate_pairs_stay_finite_and_keep_their_ends(path, a, b):
    z = interpolate.interpolation(a, b, 9, path)
    assert z.shape == (9, len(a)) and z.dtype == a.dtype and z.isfinite().all()
    assert torch.equal(z[0], a)
    torch.testing.assert_close(z[-1], b)
    assert (z.norm(dim=1) <= max(a.norm(), b.norm()) * (1 + 1e-6)).all()


def test_parallel_latents_are_joined_by_a_line_and_lerp_is_one():
    z = interpolate.interpolation(X, 3 * X, 5)
    torch.testing.assert_close(z, torch.linspace(1, 3, 5)[:, None] * X)
    z = interpolate.interpolation(X, X.flip(0), 5, "lerp")
    torch.testing.assert_close(z[1], 0.75 * X + 0.25 * X.flip(0))


@pytest.mark.parametrize("path", ["slerp", "lerp"])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(VECTORS, VECTORS)
def test_the_ends_of_an_interpolation_are_its_seeds_to_the_bit(path, a, b):
    z = interpolate.interpolation(a, b, 3, path)
    assert torch.equal(z[0], a) and torch.equal(z[2], b)


@pytest.mark.parametrize("path", ["slerp", "lerp"])
def test_the_plane_has_its_seeds_in_its_corners(path):
    a, b, c = latents([3, 17, 42], 100)
    z = interpolate.plane(a, b, c, 5, path)
    assert torch.equal(torch.stack([z[0, 0], z[0, -1], z[-1, 0]]), torch.stack([a, b, c]))
    opposite, middle = b + c - a, (b + c) / 2
    if path == "slerp":
        opposite *= (b.norm() + c.norm() - a.norm()) / opposite.norm()
        middle *= (b.norm() + c.norm()) / 2 / middle.norm()
    torch.testing.assert_close(z[-1, -1], opposite)
    torch.testing.assert_close(z[2, 2], middle)
    assert interpolate.plane(a, a, -a, 5, path).isfinite().all()


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_principal_directions_are_those_of_the_response(norm):
    """The response by the layer itself, its directions by a singular value decomposition."""
    G = generator(norm=norm)
    layer, zero = G.main[0], torch.zeros(1, 8, 1, 1)
    with torch.no_grad():
        response = (layer(torch.eye(8)[:, :, None, None]) - layer(zero)).flatten(1).double()
    _, _, expected = np.linalg.svd(response.T.numpy(), full_matrices=False)
    directions = interpolate.principal_directions(G)
    assert np.allclose(abs((directions.double().numpy() * expected).sum(1)), 1, atol=1e-4)
    moved = (directions.double() @ response).norm(dim=1)
    assert (moved.diff() < 0).all()
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("first", [nn.Linear(6, 10), nn.Conv2d(6, 10, 1)])
def test_the_first_layer_may_be_linear_or_a_convolution(first):
    z_dim, A = interpolate.first_layer(nn.Sequential(nn.ReLU(), first, nn.Linear(2, 3)))
    assert z_dim == 6
    assert torch.equal(A, first.weight.detach().double().flatten(1))


# ---- Arithmetic ---------------------------------------------------------------------------------


def value(text):
    """What an expression comes to if the latent of seed k is the number k."""
    tree = ast.parse(interpolate.expression(text), mode="eval").body
    return interpolate.evaluate(tree, lambda k: torch.tensor([float(k)])).item()


# fmt: off
MEANINGS = [
    ("3", 3), ("3+17-42", -22), ("3-17-42", -56), ("3-(17-42)", 28), ("3-(17-(42-1))", 27),
    ("-3+17", 14), ("-(3-17)", 14), ("(3,5,8)", 16 / 3),
    ("(3,5,8)-(17,18,19)+(42,43,44)", 16 / 3 - 18 + 43), ("(3+5,8)", 8), ("((1,3),6)", 4),
    ("1+0.5*10", 6), ("0.5*(10-4)-1", 2), ("2*-3", -6), (" 3 +\t17 ", 20),
]
# fmt: on


@pytest.mark.parametrize("text, expected", MEANINGS)
def test_expressions_mean_what_they_say(text, expected):
    assert value(text) == pytest.approx(expected)


def grown(draw, depth):
    """A random expression and its value, computed beside it."""
    kind = draw(st.sampled_from("sum difference mean factor seed".split() if depth else ["seed"]))
    if kind == "seed":
        seed = draw(st.integers(0, 99))
        return str(seed), seed
    (a, x), (b, y) = grown(draw, depth - 1), grown(draw, depth - 1)
    return {
        "sum": (f"({a})+({b})", x + y),
        "difference": (f"({a})-({b})", x - y),
        "mean": (f"({a},{b})", (x + y) / 2),
        "factor": (f"0.25*({a})", 0.25 * x),
    }[kind]


@settings(max_examples=100, deadline=None)
@given(st.composite(lambda draw: grown(draw, 4))())
def test_nested_expressions(case):
    text, expected = case
    assert value(text) == pytest.approx(expected, abs=1e-4)


# fmt: off
FAULTS = [
    ("3++*17", "*"), ("3 4", "4"), ("17+foo", "foo"), ("17+3.5", "3.5"), ("17+2**3", "2**3"),
    ("17-3/2", "3/2"), ("3-(17,(18,19)", "(17"), ("3)", ")"), ("17+()", "()"), ("3+'a'", "'a'"),
    ("17+open(3)", "open"), ("1+True", "True"), ("1+~3", "~3"), ("3 −17", "−"),
    ("3+99999999999999999999", "9999"), ("3+1e999*4", "1e999"), ("3+", ""), ("", ""),
]
# fmt: on


@pytest.mark.parametrize("text, under", FAULTS)
def test_a_bad_expression_has_a_caret_under_its_fault(capsys, text, under):
    lines = usage_error(capsys, f"--arithmetic={text}").splitlines()
    assert lines[0].startswith("argument --arithmetic: ") and len(lines) == 3
    column = text.index(under) if under else len(text)
    assert lines[1:] == ["    " + text, "    " + " " * column + "^"]


@pytest.mark.parametrize("text", ["(" * 300 + "3" + ")" * 300, "-" * 9000 + "3", "3" + "+3" * 9000])
def test_nesting_too_deep_for_the_parser(text):
    with pytest.raises(argparse.ArgumentTypeError, match="nested"):
        interpolate.expression(text)


def test_the_picture_of_an_expression(G):
    latent = dict(zip(range(60), latents(range(60), 8))).get

    def generate(z):
        return interpolate.sample(G, z)

    rows, labels, result = interpolate.arithmetic("(3,5,8) - 17 + (42,43)", latent, generate)
    z3, z5, z8, z17, z42, z43 = latents([3, 5, 8, 17, 42, 43], 8)
    torch.testing.assert_close(result, (z3 + z5 + z8) / 3 - z17 + (z42 + z43) / 2)
    texts = [("3", "", ""), ("5", "", "42"), ("8", "", "43"), ("+ (3,5,8)", "- 17", "+ (42,43)")]
    assert [row[:3] for row in labels] == [*texts, ("", "", "")]
    assert labels[3][3:] == ("", "= result", "")
    expected = {(0, 0): z3, (2, 0): z8, (3, 0): (z3 + z5 + z8) / 3, (3, 1): z17, (1, 2): z42}
    expected |= {(3, 2): (z42 + z43) / 2, (3, 4): result}
    for (row, column), z in expected.items():
        assert torch.equal(rows[row][column], generate(z[None])[0])
    assert rows[0][1] is None and rows[1][3] is None and rows[4][0] is None
    around = torch.stack([rows[r][c] for r in (2, 3, 4) for c in (3, 4, 5)]).double()
    off = (around - around[4]).abs().mean((1, 2, 3))
    assert (off[[0, 1, 2, 3, 5, 6, 7, 8]] > 0).all() and len({*off.tolist()}) == 9
    run("--arithmetic", "(3,5,8)-17+(42,43)")
    page = read("arithmetic.png")
    assert page.shape == (4 + 4 * 149 + 132, 4 + 6 * 132, 3)
    assert same(cell(page, 3, 4)[0], large(images_of(G, result[None])[0], 8))


# ---- Pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [False, True])
def test_a_row_per_pair_with_the_seeds_at_its_ends(G, capsys, loop):
    run("--seeds", "3,17,42", "--steps", 4, "--out", "i.png", *["--loop"] * loop)
    page, said = read("i.png"), capsys.readouterr().out
    assert re.search(r"^g\.pt: .*dcgan\.py, epoch 3.*16x16.*latents of 8; cpu", said)
    assert f"i.png: {page.shape[1]} x {page.shape[0]} pixels" in said
    assert page.shape == (4 + (2 + loop) * 149, 4 + 4 * 132, 3)
    z = latents([3, 17, 42, 3], 8)
    for row in range(2 + loop):
        for column, point in enumerate(interpolate.interpolation(*z[row : row + 2], 4)):
            image, label = cell(page, row, column)
            assert same(image, large(images_of(G, point[None])[0], 8))
            assert (label.min() < 99) == (column in (0, 3))


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("loop, fps", [(True, 20), (False, 30)])
def test_an_animation_has_its_images_and_lasts_as_long_as_it_should(G, suffix, loop, fps):
    out = f"i{suffix}"
    flags = ["--loop"] * loop
    run("--seeds", "3,17,42", "--steps", 6, "--fps", fps, "--out", out, *flags)
    images = 3 * 5 if loop else 2 * 5 + 1  # a seed between two rows is shown once
    with Image.open(out) as animation:
        assert animation.n_frames == images and animation.info["loop"] == 0
        durations, frames = [], []
        for i in range(images):
            animation.seek(i)
            animation.load()  # its duration is known from here on
            durations.append(animation.info["duration"])
            frames.append(np.asarray(animation.convert("RGB")))
    assert sum(durations) == pytest.approx(1000 * images / fps, abs=5)
    expected = large(images_of(G, latents([17], 8))[0], 16)
    error = abs(frames[5].astype(int) - expected).max()
    assert error <= (1 if suffix == ".webp" else 40)  # a palette of 256 colours


@pytest.mark.parametrize("basis", ["sefa", "axes"])
def test_a_traversal_moves_along_one_direction_per_row(G, basis):
    flags = [] if basis == "sefa" else ["--basis", "axes"]
    run("--traverse", 5, "--dims", 2, "--steps", 3, "--span", 2.5, *flags)
    page, z = read("traverse.png"), latents([5], 8)
    directions = interpolate.principal_directions(G) if basis == "sefa" else torch.eye(8)
    for row in range(2):
        for column, s in enumerate((-2.5, 0, 2.5)):
            image, label = cell(page, row, column)
            assert same(image, large(images_of(G, z + s * directions[row])[0], 8))
            assert label.min() < 99


def test_the_plane_and_the_grid_of_samples(G):
    run("--grid", "3,17,42", "--steps", 3)
    page = read("grid.png")
    assert page.shape == (4 + 2 * 149 + 132, 4 + 3 * 132, 3)  # the row between has no labels
    corners = [cell(page, 0, 0)[0], cell(page, 0, 2)[0], page[-132:-4, 4:132]]
    for image, expected in zip(corners, images_of(G, latents([3, 17, 42], 8))):
        assert same(image, large(expected, 8))
    run("--samples", 5)
    page = read("samples.png")
    assert page.shape == (4 + 2 * 132, 4 + 3 * 132, 3)
    for i, image in enumerate(images_of(G, latents(range(5), 8))):
        assert same(cell(page, *divmod(i, 3), label=0)[0], large(image, 8))
    assert cell(page, 1, 2, label=0)[0].min() == 255


def test_a_label_too_long_for_its_image_is_cut():
    image = torch.zeros(3, 128, 128, dtype=torch.uint8)
    for text in ("W" * 8, "W" * 80):
        page = np.asarray(interpolate.labelled_grid([[image] * 2], [[text, ""]]))
        assert page[:17, 4:132].min() < 99 and page[:17, 132:].min() == 255
    narrow = [image[:, :4, :4]] * 600  # not even "..." fits
    page = interpolate.labelled_grid([narrow], [["W" * 8] * 600])
    assert page.size == (4 + 600 * 8, 4 + 17 + 8)


# ---- Samples ------------------------------------------------------------------------------------


def samples(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix == ".png"}


def test_a_seed_is_the_same_image_at_every_batch_size(G):
    """On a CPU in fp32 a convolution's sums may round otherwise in another batch: one level."""
    one, three, many = (saved_images(7, "--batch-size", n) for n in (1, 3, 64))
    assert one.shape == (7, 16, 16, 3) and one.dtype == np.uint8
    assert same(one, three) and same(one, many)
    assert same(one, images_of(G, latents(range(7), 8)))
    assert len(np.unique(one.reshape(7, -1), axis=0)) == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_seed_is_the_same_image_on_every_device(G):
    assert same(saved_images(32), saved_images(32, "--device", "cuda"))


def test_a_folder_and_an_array_hold_the_images_of_their_seeds(G, capsys):
    run("--samples", 20, "--out", "fake/", "--batch-size", 8)
    assert "fake: 20 images\n" in capsys.readouterr().out
    assert sorted(samples("fake")) == [f"{seed:06}.png" for seed in range(20)]
    by_name = np.stack([read(f"fake/{seed:06}.png") for seed in range(20)])
    assert (saved_images(20, "--batch-size", 8) == by_name).all()
    assert "s.npz: 20 images\n" in capsys.readouterr().out


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_200_interrupted_samples_resumed_are_the_same_200_files(
    G, monkeypatch, capsys, interruption
):
    run("--samples", 200, "--out", "whole", "--batch-size", 16)
    sample, count = interpolate.sample, []

    def interrupted(*args):
        count.append(1)
        if len(count) == 9:
            raise interruption
        return sample(*args)

    monkeypatch.setattr(interpolate, "sample", interrupted)
    with pytest.raises(interruption):
        run("--samples", 200, "--out", "parts", "--batch-size", 16)
    monkeypatch.setattr(interpolate, "sample", sample)
    there = samples("parts")
    assert 100 < len(there) < 200 and there.items() <= samples("whole").items()
    for name in random.Random(0).sample(sorted(there), 20):
        Path("parts", name).unlink()
    before = {p: p.stat().st_mtime_ns for p in Path("parts").glob("*.png")}
    capsys.readouterr()
    run("--samples", 200, "--out", "parts", "--batch-size", 16)
    assert f"parts: 200 images ({len(before)} were there)" in capsys.readouterr().out
    assert samples("parts") == samples("whole")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    names = {p.name for p in Path("parts").iterdir()}
    assert names == {*samples("whole"), "samples.json"}


def test_the_images_are_written_by_several_threads(G, monkeypatch):
    write, threads = interpolate.atomic_write, set()

    def spy(path, fill):
        threads.add(threading.get_ident())
        write(path, fill)

    monkeypatch.setattr(interpolate, "atomic_write", spy)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    run("--samples", 64, "--out", "fake")
    assert len(threads) > 2


def test_a_folder_of_other_images_is_refused(G, capsys):
    run("--samples", 5, "--out", "fake")
    before = samples("fake")
    snapshot("other.pt", z_dim=9)
    words = "--out fake: has other images than these"
    assert f"{words} 5;" in refusal("--samples", 5, "--out", "fake", checkpoint="other.pt")
    assert f"{words} 4;" in refusal("--samples", 4, "--out", "fake")
    assert samples("fake") == before
    Path("fake/notes.txt").write_text("of my own")
    Path("fake/._000000.png").write_text("of macOS")
    run("--samples", 6, "--out", "fake")
    Path("fake/._000000.png").unlink()
    assert before.items() < samples("fake").items() and len(samples("fake")) == 6
    Image.new("RGB", (4, 4)).save("fake/photo.jpg")
    assert f"{words} 6;" in refusal("--samples", 6, "--out", "fake")
    Path("photos").mkdir()
    Image.new("RGB", (4, 4)).save("photos/a.png")
    assert "--out photos: is no folder of samples" in refusal("--samples", 4, "--out", "photos")
    assert [p.name for p in Path("photos").iterdir()] == ["a.png"]
    for text in ("{", "[]", "{}"):
        Path("fake/samples.json").write_text(text)
        assert "--out fake: is no folder of samples" in refusal("--samples", 6, "--out", "fake")


def test_the_fingerprint_is_of_the_weights_alone(G):
    run("--samples", 2, "--out", "fake")
    torch.save({"netG": G.state_dict()}, "same.pt")
    run("--samples", 3, "--out", "fake", checkpoint="same.pt")
    assert len(samples("fake")) == 3


# ---- Generators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_a_checkpoint_and_a_snapshot_of_each_trainer(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, stem = TRAINERS[name], Path(name).stem
    np.save("images.npy", np.random.default_rng(1).integers(0, 256, (64, 16, 16, 3), np.uint8))
    flags = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 8 --epochs 1 --lr 0.01"
    trainer.main(["--data", "images.npy", "--device", "cpu", *flags.split()])
    checkpoint, shot = f"runs/{stem}/checkpoint.pt", f"runs/{stem}/snapshots/epoch_0001.pt"
    saved, images = torch.load(checkpoint, weights_only=True), {}
    for key, path, flags in (
        ("G_ema", checkpoint, []),
        ("G_ema", shot, []),
        ("G", checkpoint, ["--raw"]),
        ("G", checkpoint, ["--key", "G"]),
    ):
        images[key] = saved_images(4, *flags, checkpoint=path)
        G = trainer.Generator(**saved["generator"])
        G.load_state_dict(saved[key])
        assert same(images[key], images_of(G, latents(range(4), 8)))
    assert (images["G"] != images["G_ema"]).any()
    assert "has no G; leave --raw out" in refusal("--raw", checkpoint=shot)


SHAPES = [{"size": 32, "z_dim": 100, "width": 128}, {"size": 28, "norm": "none"}]
SHAPES += [{"size": 256, "z_dim": 3, "width": 2}, {"size": 20, "z_dim": 1, "width": 1}]


@pytest.mark.parametrize("script", TRAINERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_generator_of_the_trainers_is_read_off_its_tensors(tmp_path, script, shape):
    G = snapshot(tmp_path / "g.pt", script, **shape)
    found, info = interpolate.load_generator(tmp_path / "g.pt")
    z_dim = shape.get("z_dim", 8)
    assert (info["script"], info["epoch"], info["step"], info["z_dim"]) == (script, 3, 9, z_dim)
    z = latents([1, 2], z_dim)
    with torch.no_grad():
        assert torch.equal(found(z), G(z))


def examples_generator(nz=8, ngf=4, nc=3, kernel=4, last=None):
    """The layout of pytorch/examples' DCGAN at 64x64: no biases, (B, nz, 1, 1) in."""
    torch.manual_seed(0)
    widths, doubling = [nz, 8 * ngf, 4 * ngf, 2 * ngf, ngf, nc], (kernel, 2, (kernel - 1) // 2)
    layers = []
    for i, (a, b) in enumerate(pairwise(widths)):
        shape = doubling if i else (4, 1, 0)
        layers += [nn.ConvTranspose2d(a, b, *(last if last and i == 4 else shape), bias=False)]
        layers += [nn.BatchNorm2d(b), nn.ReLU(True)] if i < 4 else [nn.Tanh()]
    G = nn.Module()
    G.main = nn.Sequential(*layers)
    return varied(G)


@pytest.mark.parametrize("shape", [{}, {"nz": 100, "ngf": 8}, {"nz": 7, "ngf": 5, "nc": 1}])
def test_a_state_dict_of_pytorch_examples_gives_its_own_pixels(G, capsys, shape):
    other = examples_generator(**shape)
    state = other.state_dict()
    assert [*state][:2] == ["main.0.weight", "main.1.weight"] and "main.12.bias" not in state
    torch.save(state, "netG_epoch_24.pth")
    images = saved_images(3, checkpoint="netG_epoch_24.pth")
    z = latents(range(3), shape.get("nz", 8))
    assert images.shape == (3, 64, 64, 3)
    assert same(images, images_of(other.main, z[:, :, None, None]))
    said = capsys.readouterr().out
    assert "pytorch/examples" in said and "64x64" in said and "latents of" in said


@pytest.mark.parametrize("options", [{"kernel": 3}, {"kernel": 5}, {"last": (1, 1, 0)}])
def test_a_dcgan_of_other_kernels_is_refused(G, options):
    """Its shapes do not tell stride and padding: as (4, 2, 1) it would make wrong images."""
    torch.save(examples_generator(**options).state_dict(), "other.pt")
    assert "interpolate.py --generator FILE.py:CLASS" in refusal(checkpoint="other.pt")
    assert not Path("interpolation.png").exists()


WRAPPERS = {
    "training": lambda sd: {"epoch": 3, "netG": sd, "netD": {}},
    "compiled": lambda sd: {"_orig_mod." + name: value for name, value in sd.items()},
    "parallel": lambda sd: {"module." + name: value for name, value in sd.items()},
    "both": lambda sd: {"netG": {"module._orig_mod." + k: value for k, value in sd.items()}},
    "lightning": lambda sd: {
        "state_dict": {
            **{"generator." + name: value for name, value in sd.items()},
            "discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    },
    "deep": lambda sd: {"models": {"G": {"weights": sd}}, "step": 7, "loss": [1.0]},
}
NAMES = "netG G generator state_dict model_state_dict G_state g_ema params_ema ema shadow"


@pytest.mark.parametrize("flags", [[], ["--generator", "small.py:Small"]])
@pytest.mark.parametrize("wrapper", [*WRAPPERS, *NAMES.split()])
def test_a_state_dict_is_found_in_whatever_wraps_it(G, wrapper, flags):
    torch.save(WRAPPERS.get(wrapper, lambda sd: {wrapper: sd})(G.state_dict()), "wrapped.pt")
    Path("small.py").write_text(
        "import dcgan\nclass Small(dcgan.Generator):\n"
        "    def __init__(self):\n        super().__init__(16, 8, 4)\n"
    )
    images = saved_images(3, *flags, checkpoint="wrapped.pt")
    assert same(images, images_of(G, latents(range(3), 8)))


def test_of_two_generators_a_key_picks_one(G):
    nets = {"netG": generator(seed=1), "ema": generator(seed=2)}
    torch.save({key: net.state_dict() for key, net in nets.items()}, "two.pt")
    message = refusal(checkpoint="two.pt")
    assert "several generators" in message and "--key" in message
    assert all(re.search(rf"\b{key}\b", message) for key in nets)
    for key, net in nets.items():
        images = saved_images(3, "--key", key, checkpoint="two.pt")
        assert same(images, images_of(net, latents(range(3), 8)))
    assert "two.pt: " in refusal("--key", "nothing", checkpoint="two.pt")


OTHER = """
import argparse, sys
import torch
from torch import nn
argparse.ArgumentParser().parse_args()  # the flags are another script's

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2 * 10 * 10 * 3)

    def forward(self, z):
        return torch.tanh(self.fc(z)).view(-1, 3, 20, 10)

class Tall(Net):
    def forward(self, z):
        assert z.shape[2:] == (1, 1)
        return super().forward(z.flatten(1))

class Flat(Net):
    def forward(self, z):
        return self.fc(z)

class Picky(Net):
    def __init__(self, size):
        super().__init__()
"""


def test_any_class_of_a_file(G, capsys):
    Path("other.py").write_text(OTHER)
    argv, net = [*sys.argv], nn.Linear(6, 600)
    torch.save({f"fc.{name}": value for name, value in net.state_dict().items()}, "other.pt")
    expected = torch.tanh(net(latents(range(4), 6))).view(-1, 3, 20, 10)
    for name in ("Net", "Tall"):
        images = saved_images(4, "--generator", f"other.py:{name}", checkpoint="other.pt")
        assert "running the code of other.py" in capsys.readouterr().out
        assert same(images, images_of(nn.Identity(), expected))
    run("--generator", "other.py:Net", checkpoint="other.pt")
    assert read("interpolation.png").shape[:2] == (4 + 5 * (4 + 17 + 120), 4 + 9 * (4 + 60))
    own = saved_images(4, "--generator", f"{Path(dcgan.__file__)}:Generator")
    assert same(own, images_of(G, latents(range(4), 8)))
    assert sys.argv == argv


@pytest.mark.parametrize(
    "code, words",
    [
        ("other.py:Nowhere", "--generator other.py:Nowhere: KeyError"),
        ("nowhere.py:Net", "FileNotFoundError"),
        ("broken.py:Net", "broken.py:Net: SyntaxError"),
        ("other.py:Flat", "of two latents it makes (2, 600)"),
        ("other.py:Picky", "missing 1 required positional argument: 'size'"),
    ],
)
def test_a_class_that_does_not_fit_is_refused(G, code, words):
    Path("other.py").write_text(OTHER)
    Path("broken.py").write_text("class Net(:")
    state = nn.Linear(6, 600).state_dict()
    torch.save({f"fc.{name}": value for name, value in state.items()}, "other.pt")
    assert words in refusal("--generator", code, checkpoint="other.pt")


# ---- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--steps 1", "--steps: takes 2 to 1,000, not 1"),
        ("--steps 0", "--steps: takes 2 to 1,000, not 0"),
        ("--seeds 3", "--seeds: takes 2 to 1,000 seeds, not 1"),
        ("--seeds 3,x", "--seeds: '3,x' is not like 3,17,42 or 0-5"),
        ("--seeds 5-3", "is not like 3,17,42 or 0-5"),
        ("--seeds 0-99999999", "is not like 3,17,42 or 0-5"),
        ("--seeds ²,3", "is not like 3,17,42 or 0-5"),
        ("--seeds 3,9999999999999999999", "is not like 3,17,42 or 0-5"),
        ("--grid 3,17", "--grid: takes 3 seeds, not 2"),
        ("--traverse 3,17", "--traverse: takes 1 seeds, not 2"),
        ("--samples 0", "--samples: takes 1 to 10,000,000, not 0"),
        ("--samples 9 --grid 1,2,3", "not allowed with argument"),
        ("--grid 1,2,3 --loop", "--loop: has no effect on grid"),
        ("--dims 3", "--dims: has no effect on interpolation"),
        ("--samples 9 --seeds 1,2", "--seeds: has no effect on samples"),
        ("--path cubic", "--path: invalid choice"),
        ("--fps 60", "--fps: takes 1 to 50, not 60"),
        ("--traverse 1 --span 0", "--span: takes 0.001 to 1,000, not 0.0"),
        ("--traverse 1 --span nan", "--span: takes 0.001 to 1,000, not nan"),
        ("--traverse 1 --dims 0", "--dims: takes 1 to 1,000, not 0"),
        ("--batch-size 0", "--batch-size: takes 1 to 100,000, not 0"),
        ("--out i.mp4", "--out i.mp4: takes .png .gif .webp"),
        ("--out i", "--out i: takes .png .gif .webp"),
        ("--grid 1,2,3 --out i.gif", "--out i.gif: takes .png"),
        ("--samples 9 --out a.tar", "--out a.tar: takes .png .npz, or a folder"),
        ("--generator Net", "--generator Net: is not like path/to/file.py:ClassName"),
        ("--nearest cifar10", "unrecognized arguments: --nearest"),
    ],
)
def test_wrong_flags_end_in_one_line_and_exit_2(capsys, flags, words):
    message = usage_error(capsys, *flags.split())
    assert words in message and len(message.splitlines()) == 1


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile-code-ran",))


def saving(value):
    return lambda path: torch.save(value, path)


def changed(**values):
    return lambda path: torch.save(torch.load(path, weights_only=True) | values, path)


def safetensors(path):
    header = b'{"main.0.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.write_text("hello"), "not a file of torch.save"),
        (lambda path: path.write_bytes(b""), "not a file of torch.save"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cut short"),
        (lambda path: path.write_bytes(pickle.dumps(Hostile())), "nothing in it was run"),
        (saving({"main.0.weight": Hostile()}), "nothing in it was run"),
        (saving({"netG": {}, "args": argparse.Namespace(lr=1)}), "argparse.Namespace"),
        (saving({"netG": {}, "loss": np.float64(1)}), "numpy"),
        (saving(nn.Linear(2, 3)), "torch.nn.modules.linear.Linear"),
        (safetensors, "cannot be read"),
        (changed(format=99), "format 99, newer than this script can read"),
        (changed(format="x"), "format x, newer than this script can read"),
        (changed(G_ema={}), "no tensors"),
        (changed(G_ema=None), "no tensors"),
        (changed(G_ema={"main.0.weight": torch.zeros(3)}), "holds no generator"),
        (saving([1, 2]), "holds no generator"),
        (saving({}), "holds no generator"),
        (saving(dcgan.Discriminator(16, 4).state_dict()), "holds no generator"),
        (saving({"fc.weight": torch.zeros(3, 3)}), "interpolate.py --generator FILE.py:CLASS"),
        (Path.unlink, "no such checkpoint"),
    ],
)
def test_what_is_no_generator_is_refused_in_one_line(G, damage, words):
    damage(Path("g.pt"))
    message = refusal()
    assert message.startswith("g.pt: ") and words in message
    assert not Path("hostile-code-ran").exists() and not Path("interpolation.png").exists()


def test_a_run_folder_stands_for_its_checkpoint(G):
    expected = saved_images(3)
    Path("run").mkdir()
    missing = str(Path("run", "checkpoint.pt"))
    assert refusal(checkpoint="run").startswith(f"{missing}: no such checkpoint")
    Path("g.pt").rename(missing)
    assert (saved_images(3, checkpoint="run") == expected).all()


def test_a_safetensors_file_is_named_as_such(G):
    safetensors(Path("g.safetensors"))
    assert "a safetensors file; save its" in refusal(checkpoint="g.safetensors")


def test_a_file_that_may_not_be_read(G, monkeypatch):
    """root may read any file, so that open() itself refuses here."""

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", refuse)
    assert "g.pt: cannot be read: Permission denied" in refusal()


def test_weights_that_are_not_finite_are_refused(G):
    G.main[0].weight.data[0, 0] = math.nan
    torch.save(G.state_dict(), "g.pt")
    assert "g.pt: its weights are not finite" in refusal()


def test_other_flags_that_do_not_fit(G):
    assert "--dims 9: the latents have 8" in refusal("--traverse", 1, "--dims", 9)
    assert "--device toaster" in refusal("--device", "toaster")


@pytest.mark.parametrize("flags", [[], ["--samples", 4]])
def test_a_path_that_cannot_be_written_to(G, flags):
    Path("file").write_text("in the way")
    assert ": not written" in refusal(*flags, "--out", "file/i.png")
    if flags:
        assert refusal(*flags, "--out", "file").startswith("--out file: is no folder")
        assert ": not written" in refusal(*flags, "--out", "file/fake")
    assert Path("file").read_text() == "in the way"


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
@pytest.mark.parametrize("out", ["fake.npz", "i.gif", "fake"])
def test_a_full_disk_leaves_nothing_half_written(G, out):
    """A limit on the size of files stands for the full disk: writes fail in mid-file."""
    kept = b"whole" if out != "fake" else None
    if kept:
        Path(out).write_bytes(kept)
    flags = ["--samples", "9"] if out != "i.gif" else ["--seeds", "1,2"]
    code = (
        "import resource, sys, interpolate;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400));"
        "interpolate.main(sys.argv[1:])"
    )
    done = process("-c", code, "g.pt", "--device", "cpu", *flags, "--out", out)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert ": not written" in done.stderr
    if kept:
        assert Path(out).read_bytes() == kept
    else:
        made_by = json.loads(Path("fake/samples.json").read_text())
        assert len(made_by["sha256"]) == 64 and samples("fake") == {}
    assert not list(Path().rglob("*.tmp"))


# ---- Standard output, threads -------------------------------------------------------------------


def test_a_name_that_standard_output_cannot_show_ends_no_run(G):
    Path("g.pt").rename("gé→.pt")
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = process(SCRIPT, "gé→.pt", "--device", "cpu", "--out", "é.png", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "g??.pt: " in done.stdout and read("é.png").shape[2] == 3


@pytest.mark.skipif(os.name == "nt", reason="pipes of a POSIX shell")
def test_a_closed_pipe_ends_no_run(G):
    command = [sys.executable, str(SCRIPT), "g.pt", "--device", "cpu", "--samples", "9"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()  # like `| head -0`
        assert running.wait() == 0 and running.stderr.read() == b""
    assert read("samples.png").shape == (4 + 3 * 132, 4 + 3 * 132, 3)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("piped", [False, True])
def test_ctrl_c_says_how_to_go_on_and_exits_130(G, piped):
    """Sent from within, when 3 of 20 batches are made; `| tee` has ended by then."""
    code = (
        "import os, runpy, signal, sys\n"
        "import torch\n"
        "count, cat = [], torch.cat\n"
        "def stop(*args):\n"
        "    count.append(1)\n"
        "    if len(count) == 4: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return cat(*args)\n"
        "torch.cat = stop\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    flags = ["--device", "cpu", "--samples", "40", "--batch-size", "2", "--out", "fake"]
    command = [sys.executable, "-c", code, str(SCRIPT), "g.pt", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        said = b""
        if piped:
            running.stdout.readline()
            running.stdout.close()
        else:
            said = running.stdout.read()
        assert running.stderr.read() == b"" and running.wait() == 130
    assert piped or b"stopped; what is written is complete" in said
    assert 0 < len(samples("fake")) < 40
    run("--samples", 40, "--out", "fake")
    assert len(samples("fake")) == 40


def test_it_runs_in_a_thread(G):
    thread = threading.Thread(target=run, args=("--samples", 4, "--out", "fake"))
    thread.start()
    thread.join()
    assert len(samples("fake")) == 4
