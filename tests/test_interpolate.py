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

SCRIPT = Path(interpolate.__file__)
TRAINERS = {"dcgan.py": dcgan, "wgan.py": wgan, "wgan_gp.py": wgan_gp}


def generator(size=16, z_dim=8, width=4, norm="batch", trainer=dcgan):
    """A generator whose images differ: batch-norm statistics as after some training."""
    torch.manual_seed(1)
    G = trainer.Generator(size, z_dim, width, norm)
    for parameter in G.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for module in G.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.1 * torch.randn_like(module.running_mean)
            module.running_var *= torch.rand_like(module.running_var) + 0.5
    return G.eval()


def snapshot(path, script="dcgan.py", key="G_ema", **shape):
    """Write the snapshot of generator(**shape), and return that generator."""
    shape = {"size": 16, "z_dim": 8, "width": 4, "norm": "batch"} | shape
    G = generator(**shape, trainer=TRAINERS[script])
    saved = {"format": 1, "script": script, "generator": shape, "args": {}, "epoch": 3, "step": 9}
    torch.save(saved | {key: G.state_dict()}, path)
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


def read(path):
    """A picture as uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def images_of(G, z):
    """Images by hand: uint8 (N, H, W, 3)."""
    with torch.no_grad():
        x = ((G.eval()(z) + 1) * 127.5).round().clamp(0, 255)
    return x.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def large(image, scale):
    return np.kron(image, np.ones((scale, scale, 1), np.uint8))


def find(page, image):
    """(row, column) of the top left corner of an image in a page, or None."""
    H, W, _ = image.shape
    windows = np.lib.stride_tricks.sliding_window_view(page[..., 0], (H, W))
    for y, x in np.argwhere(windows[:, :, 0, 0] == image[0, 0, 0]):
        if (page[y : y + H, x : x + W] == image).all():
            return y, x
    return None


# ---- Latents ------------------------------------------------------------------------------------

VECTORS = st.integers(0, 10_000).map(lambda seed: dcgan.latents([seed], 20)[0].double())


@settings(max_examples=50, deadline=None)
@given(VECTORS, VECTORS, st.floats(0.1, 10))
def test_slerp_turns_evenly_and_changes_its_length_evenly(a, b, factor):
    b = b * factor
    t = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    z = interpolate.slerp(a, b, t)
    lengths = z.norm(dim=1)
    torch.testing.assert_close(lengths, a.norm() + t[:, 0] * (b.norm() - a.norm()))
    units = z / lengths[:, None]
    steps = 2 * torch.asin((units[1:] - units[:-1]).norm(dim=1) / 2)  # chord to angle
    whole = 2 * torch.asin((b / b.norm() - a / a.norm()).norm() / 2)
    torch.testing.assert_close(steps, whole.expand(6) / 6, atol=1e-7, rtol=1e-7)
    plane = torch.linalg.svdvals(torch.stack([a, b, *z]))
    assert plane[2] < 1e-9 * plane[0]  # no arc leaves the plane of its ends


def test_slerp_agrees_with_the_formula_by_sines():
    a, b = torch.tensor([1.0, 0, 0]).double(), torch.tensor([0.6, 0.8, 0]).double()
    angle, t = math.acos(0.6), torch.tensor([[0.3]]).double()
    sines = (math.sin(0.7 * angle) * a + math.sin(0.3 * angle) * b) / math.sin(angle)
    torch.testing.assert_close(interpolate.slerp(a, b, t)[0], sines)


X = torch.tensor([3.0, -1, 2, 0.5])


@pytest.mark.parametrize("path", ["slerp", "lerp"])
@pytest.mark.parametrize(
    "a, b",
    [
        (X, X),
        (X, 2 * X),
        (X, -X),
        (X, -3 * X),
        (X, 0 * X),
        (0 * X, X),
        (0 * X, 0 * X),
        (X, X + 1e-7),
        (X, -X + 1e-7),
        (1e-30 * X, 1e30 * X),
        (X[:1], -X[:1]),
    ],
)
def test_degenerate_pairs_stay_finite_and_keep_their_ends(path, a, b):
    z = interpolate.walk(a, b, 9, path)
    assert z.shape == (9, len(a)) and z.dtype == a.dtype and z.isfinite().all()
    assert torch.equal(z[0], a) and torch.equal(z[-1], b)
    assert (z.norm(dim=1) <= max(a.norm(), b.norm()) * (1 + 1e-6)).all()


def test_an_antipodal_arc_is_a_half_circle_and_a_parallel_one_a_line():
    z = interpolate.walk(X, -X, 9)
    torch.testing.assert_close(z.norm(dim=1), X.norm().expand(9))
    torch.testing.assert_close(z @ X / X.norm() ** 2, torch.linspace(0, math.pi, 9).cos())
    torch.testing.assert_close(interpolate.walk(X, 3 * X, 5), torch.linspace(1, 3, 5)[:, None] * X)


@settings(max_examples=50, deadline=None)
@given(VECTORS, VECTORS)
def test_ends_are_exact_in_any_precision(a, b):
    z = interpolate.walk(a / 3, b / 3, 3)  # float64, which the arc's own rounding would show in
    assert torch.equal(z[0], a / 3) and torch.equal(z[2], b / 3)


def test_lerp_is_the_straight_line():
    z = interpolate.walk(X, X.flip(0), 5, "lerp")
    torch.testing.assert_close(z[1], 0.75 * X + 0.25 * X.flip(0))


@pytest.mark.parametrize("path", ["slerp", "lerp"])
def test_the_plane_has_its_seeds_in_its_corners(path):
    a, b, c = dcgan.latents([3, 17, 42], 100)
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
    directions = interpolate.principal_directions(G, 5)
    assert np.allclose(abs((directions.double().numpy() * expected[:5]).sum(1)), 1, atol=1e-4)
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
    tree = interpolate.parse_arithmetic(text)
    return interpolate.evaluate(tree, lambda k: torch.tensor([float(k)])).item()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("3", 3),
        ("3+17-42", -22),
        ("3-17-42", -56),
        ("3-(17-42)", 28),
        ("3-(17-(42-1))", 27),
        ("-3+17", 14),
        ("(3,5,8)", 16 / 3),
        ("(3,5,8)-(17,18,19)+(42,43,44)", 16 / 3 - 18 + 43),
        ("(3+5,8)", 8),
        ("((1,3),6)", 4),
        ("1+0.5*10", 6),
        ("0.5*(10-4)-1", 2),
        ("2*-3", -6),
        (" 3 +\t17 ", 20),
    ],
)
def test_expressions_mean_what_they_say(text, expected):
    assert value(interpolate.expression(text)) == pytest.approx(expected)


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
    assert value(interpolate.expression(text)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "text, under",
    [
        ("3++*17", "*"),
        ("3 4", "4"),
        ("17+foo", "foo"),
        ("17+3.5", "3.5"),
        ("17+2**3", "2**3"),
        ("17-3/2", "3/2"),
        ("3-(17,(18,19)", "(17"),
        ("3)", ")"),
        ("17+()", "()"),
        ("3+'a'", "'a'"),
        ("17+open(3)", "open"),
        ("1+True", "True"),
        ("3−17", "−"),
        ("3+99999999999999999999", "9999"),
        ("3+1e999*4", "1e999"),
        ("3+", ""),
        ("", ""),
    ],
)
def test_a_bad_expression_has_a_caret_under_its_fault(capsys, text, under):
    lines = usage_error(capsys, f"--arithmetic={text}").splitlines()
    assert lines[0].startswith("argument --arithmetic: ") and len(lines) == 3
    column = text.index(under) if under else len(text)
    assert lines[1:] == ["    " + text, "    " + " " * column + "^"]


@pytest.mark.parametrize("text", ["(" * 300 + "3" + ")" * 300, "-" * 9000 + "3", "3" + "+3" * 9000])
def test_nesting_too_deep_for_the_parser(text):
    with pytest.raises(argparse.ArgumentTypeError, match="nested"):
        interpolate.expression(text)


def test_terms_keep_their_signs():
    tree = interpolate.parse_arithmetic("-3-(17-(5,8))+2*4")
    found = [(sign, ast.unparse(node)) for sign, node in interpolate.terms(tree)]
    assert found == [("-", "3"), ("-", "17"), ("+", "(5, 8)"), ("+", "2 * 4")]


def test_the_picture_of_an_expression(G):
    latent = dict(zip(range(60), dcgan.latents(range(60), 8))).get
    draw = lambda z: dcgan.sample(G, z)  # noqa: E731
    rows, labels, result = interpolate.arithmetic("(3,5,8) - 17 + (42,43)", latent, draw)
    z3, z5, z8, z17, z42, z43 = dcgan.latents([3, 5, 8, 17, 42, 43], 8)
    torch.testing.assert_close(result, (z3 + z5 + z8) / 3 - z17 + (z42 + z43) / 2)
    texts = [["3", "", ""], ["5", "", "42"], ["8", "", "43"], ["+ (3,5,8)", "- 17", "+ (42,43)"]]
    assert [row[:3] for row in labels] == [*texts, ["", "", ""]]
    assert labels[3][3:] == ["", "= result", ""]
    expected = {(0, 0): z3, (2, 0): z8, (3, 0): (z3 + z5 + z8) / 3, (3, 1): z17, (1, 2): z42}
    expected |= {(3, 2): (z42 + z43) / 2, (3, 4): result}
    for (row, column), z in expected.items():
        assert torch.equal(rows[row][column], draw(z[None])[0])
    assert rows[0][1] is None and rows[1][3] is None and rows[4][0] is None
    around = torch.stack([rows[r][c] for r in (2, 3, 4) for c in (3, 4, 5)]).double()
    off = (around - around[4]).abs().mean((1, 2, 3))
    assert (off[[0, 1, 2, 3, 5, 6, 7, 8]] > 0).all() and len({*off.tolist()}) == 9


# ---- Pictures -----------------------------------------------------------------------------------


def test_a_row_per_pair_with_the_seeds_at_its_ends(G, capsys):
    run("--seeds", "3,17,42", "--steps", 4, "--out", "walk.png")
    said = capsys.readouterr().out
    assert "dcgan.py, epoch 3, averaged weights, 16x16, latents of 8" in said
    page, scale = read("walk.png"), 8  # 128 / 16
    assert f"walk.png: {page.shape[1]} x {page.shape[0]} pixels" in said
    z3, z17, z42 = dcgan.latents([3, 17, 42], 8)
    a, b, c = (large(image, scale) for image in images_of(G, torch.stack([z3, z17, z42])))
    rows = [find(page, a)[0], find(page[find(page, a)[0] + 1 :], b)[0] + find(page, a)[0] + 1]
    assert rows[0] < rows[1]
    side, left, right = 128, 4, 4 + 3 * 132
    for top, first, last in ((rows[0], a, b), (rows[1], b, c)):
        assert (page[top : top + side, left : left + side] == first).all()
        assert (page[top : top + side, right : right + side] == last).all()
    inner = large(images_of(G, interpolate.walk(z3, z17, 4)[1:2])[0], scale)
    assert find(page, inner) == (rows[0], 4 + 132)


def test_loop_closes_the_way(G):
    run("--seeds", "3,17,42", "--steps", 2, "--loop")
    last = [large(image, 8) for image in images_of(G, dcgan.latents([42, 3], 8))]
    page = read("walk.png")[-132:]
    assert [find(page, image)[1] for image in last] == [4, 136]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("loop, fps", [(True, 20), (False, 30)])
def test_an_animation_has_its_images_and_lasts_as_long_as_it_should(G, suffix, loop, fps):
    out = f"walk{suffix}"
    flags = ["--loop"] * loop
    run("--seeds", "3,17,42", "--steps", 6, "--fps", fps, "--out", out, *flags)
    images = 3 * 5 if loop else 2 * 5 + 1  # a seed between two ways is shown once
    with Image.open(out) as animation:
        assert animation.n_frames == images and animation.info["loop"] == 0
        durations, frames = [], []
        for i in range(images):
            animation.seek(i)
            animation.load()  # its duration is known from here on
            durations.append(animation.info["duration"])
            frames.append(np.asarray(animation.convert("RGB")))
    assert sum(durations) == pytest.approx(1000 * images / fps, abs=5)
    expected = large(images_of(G, dcgan.latents([17], 8))[0], 16)
    error = abs(frames[5].astype(int) - expected).max()
    assert error == 0 if suffix == ".webp" else error < 40  # a palette of 256 colours


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script")
def test_an_mp4_is_left_to_ffmpeg(G, tmp_path, monkeypatch, capsys):
    """A stand-in keeps its command line and what it was fed, and fails where it is told to."""
    stub = tmp_path / "bin" / "ffmpeg"
    stub.parent.mkdir()
    stub.write_text(
        f"#!{sys.executable}\nimport os, sys\nfrom pathlib import Path\n"
        "Path(sys.argv[-1]).write_bytes(repr(sys.argv[1:]).encode() + sys.stdin.buffer.read())\n"
        "sys.exit('no such encoder' if 'FAIL' in os.environ else 0)\n"
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(stub.parent))
    run("--seeds", "3,17", "--steps", 3, "--fps", 12, "--out", "walk.mp4")
    written = Path("walk.mp4").read_bytes()
    pixels = large(images_of(G, dcgan.latents([3], 8))[0], 16)
    assert b"'-s', '256x256', '-r', '12'" in written and pixels.tobytes() in written
    assert written.endswith(large(images_of(G, dcgan.latents([17], 8))[0], 16).tobytes())
    monkeypatch.setenv("FAIL", "1")
    assert "walk.mp4: cannot be written (ffmpeg: no such encoder); what was there" in refusal(
        "--out", "walk.mp4"
    )
    assert Path("walk.mp4").read_bytes() == written
    monkeypatch.setenv("PATH", "")
    assert "takes ffmpeg on the PATH" in usage_error(capsys, "--out", "walk.mp4")


def test_a_traversal_moves_along_one_direction_per_row(G):
    run("--traverse", 5, "--dims", 2, "--steps", 3, "--span", 2.5)
    page = read("traverse.png")
    directions = interpolate.principal_directions(G, 2)
    z = dcgan.latents([5], 8)
    for row in range(2):
        for column, s in enumerate((-2.5, 0, 2.5)):
            image = large(images_of(G, z + s * directions[row])[0], 8)
            top = 4 + 149 * row  # a row is 4 of gap, 17 of text and 128 of image high
            assert find(page[top : top + 149], image)[1] == 4 + 132 * column
    run("--traverse", 5, "--dims", 1, "--steps", 3, "--basis", "axes", "--out", "axes.png")
    moved = z + 4 * torch.eye(8)[0]
    assert find(read("axes.png"), large(images_of(G, moved)[0], 8)) is not None


def test_the_plane_and_the_grid_of_samples(G):
    run("--grid", "3,17,42", "--steps", 3)
    page = read("grid.png")
    corners = [large(image, 8) for image in images_of(G, dcgan.latents([3, 17, 42], 8))]
    assert [find(page, image)[1] for image in corners] == [4, 268, 4]
    run("--samples", 6)
    page = read("samples.png")
    assert page.shape == (4 + 2 * 132, 4 + 3 * 132, 3)
    cells = [large(image, 8) for image in images_of(G, dcgan.latents(range(6), 8))]
    places = [(4 + 132 * row, 4 + 132 * column) for row in range(2) for column in range(3)]
    assert [find(page, cell) for cell in cells] == places


def test_a_label_too_long_for_its_image_is_cut():
    image = torch.zeros(3, 128, 128, dtype=torch.uint8)
    short, long = (interpolate.sheet([[image] * 2], [[text, ""]]) for text in ("W" * 8, "W" * 80))
    assert np.asarray(short)[:17, 4:132].min() < 99
    assert np.asarray(long)[:17, 4:132].min() < 99 and np.asarray(long)[:17, 132:].min() == 255


# ---- Samples ------------------------------------------------------------------------------------


def samples(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix == ".png"}


def test_a_seed_is_the_same_image_at_every_batch_size(G):
    """On a CPU in fp32 a convolution's sums may round otherwise in another batch: one level."""
    for n in (1, 3, 64):
        run("--samples", 7, "--out", f"{n}.npz", "--batch-size", n)
    one, three, many = (np.load(f"{n}.npz")["images"].astype(int) for n in (1, 3, 64))
    assert one.shape == (7, 16, 16, 3)
    for other in (three, many):
        assert abs(other - one).max() <= 1 and (other != one).mean() < 1e-3
    assert len(np.unique(one.reshape(7, -1), axis=0)) == 7
    assert abs(one - images_of(G, dcgan.latents(range(7), 8))).max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_seed_is_the_same_image_on_every_device(G):
    run("--samples", 32, "--out", "cpu.npz")
    run("--samples", 32, "--out", "cuda.npz", "--device", "cuda")
    on_cpu, on_cuda = (np.load(f"{d}.npz")["images"].astype(int) for d in ("cpu", "cuda"))
    assert abs(on_cpu - on_cuda).max() <= 1 and (on_cpu != on_cuda).mean() < 1e-2


def test_a_folder_and_an_array_hold_the_images_of_their_seeds(G, capsys):
    run("--samples", 20, "--out", "fake/", "--batch-size", 8)
    assert "fake: 20 images" in capsys.readouterr().out
    assert sorted(samples("fake")) == [f"{seed:06}.png" for seed in range(20)]
    run("--samples", 20, "--out", "fake.npz", "--batch-size", 8)
    pixels = np.load("fake.npz", allow_pickle=False)["images"]
    by_name = np.stack([read(f"fake/{seed:06}.png") for seed in range(20)])
    assert pixels.dtype == np.uint8 and (pixels == by_name).all()
    loaded, _, _ = dcgan.load_data("fake", 16, cache="cache")
    assert (loaded.permute(0, 2, 3, 1).numpy() == pixels).all()
    assert (dcgan.load_data("fake.npz", 16, cache="cache")[0] == loaded).all()


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
    said, there = capsys.readouterr().out, samples("parts")
    assert ("the same command goes on" in said) == (interruption is KeyboardInterrupt)
    assert 100 < len(there) < 200 and there.items() <= samples("whole").items()
    for name in random.Random(0).sample(sorted(there), 20):
        Path("parts", name).unlink()
    before = {p: p.stat().st_mtime_ns for p in Path("parts").glob("*.png")}
    run("--samples", 200, "--out", "parts", "--batch-size", 16)
    assert f"parts: 200 images ({len(before)} were there)" in capsys.readouterr().out
    assert samples("parts") == samples("whole")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    names = {p.name for p in Path("parts").iterdir()}
    assert names == {*samples("whole"), "samples.json"}


def test_the_images_are_written_by_several_threads(G, monkeypatch):
    write, threads = interpolate.write_file, set()

    def spy(path, fill):
        threads.add(threading.get_ident())
        write(path, fill)

    monkeypatch.setattr(interpolate, "write_file", spy)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    run("--samples", 64, "--out", "fake")
    assert len(threads) > 2


def test_a_folder_of_other_images_is_refused(G, capsys):
    run("--samples", 5, "--out", "fake")
    before = samples("fake")
    snapshot("other.pt", z_dim=9)
    words = "--out fake: holds other files than samples of this generator, or more than"
    assert f"{words} 5;" in refusal("--samples", 5, "--out", "fake", checkpoint="other.pt")
    assert f"{words} 4;" in refusal("--samples", 4, "--out", "fake")
    assert samples("fake") == before
    run("--samples", 6, "--out", "fake")
    assert before.items() < samples("fake").items() and len(samples("fake")) == 6
    Path("photos").mkdir()
    Image.new("RGB", (4, 4)).save("photos/a.png")
    assert "--out photos: holds other files" in refusal("--samples", 4, "--out", "photos")
    assert [p.name for p in Path("photos").iterdir()] == ["a.png"]
    Path("fake/samples.json").write_text("{")
    assert "--out fake: cannot be read" in refusal("--samples", 5, "--out", "fake")


# ---- Neighbours ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_neighbours_are_those_of_brute_force(dtype):
    rng = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (3000, 3, 32, 32), generator=rng, dtype=torch.uint8).to(dtype)
    x = torch.randint(0, 256, (6, 3, 32, 32), generator=rng, dtype=torch.uint8).to(dtype)
    data[1500], data[2900] = x[2], x[2]  # of equals the first
    data[2500] = data[100]
    x[4] = data[100]
    distances, index = interpolate.neighbours(x, data, 4)
    squares = np.stack(
        [((data.numpy().astype(np.float64) - i) ** 2).sum((1, 2, 3)) for i in x.numpy()]
    )
    order = np.argsort(squares, axis=1, kind="stable")[:, :4]
    assert (index.numpy() == order).all()
    expected = np.sqrt(np.take_along_axis(squares, order, 1) / 3072)
    if dtype == torch.uint8:
        assert (distances.numpy() == expected).all()
    assert np.allclose(distances.numpy(), expected, atol=1e-5)
    assert index[2, :2].tolist() == [1500, 2900] and distances[2, :2].tolist() == [0, 0]


def test_a_generator_that_knows_its_set_by_heart_is_found_out(G, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8)
    pixels[33] = images_of(G, dcgan.latents([4, 5], 8))[1]
    np.save("data.npy", pixels)
    run("--nearest", "data.npy", "--seeds", "4,5", "--k", 2, "--cache", "cache")
    said = re.search("samples (.+), its own images (.+)\n", capsys.readouterr().out)
    assert float(said[1]) < 40 and 60 < float(said[2]) < 110  # one of the two is known by heart
    row, twin = read("nearest.png")[-132:], large(pixels[33], 8)
    assert (row[:128, 4:132] == twin).all() and (row[:128, 136:264] == twin).all()
    assert not (row[:128, 268:396] == twin).all()


class MeanColour:
    """Stands for the Inception network with weights of 768 features: an image's mean colour."""

    def __init__(self, weights, dims, device):
        if dims != 768:
            raise ValueError("Mixed_7b.branch1x1.conv.weight is missing")
        self.dims, self.device = dims, device

    def __call__(self, images):
        return images.double().mean((2, 3)).repeat(1, 256), None


def test_features_find_other_neighbours_than_pixels(G, monkeypatch, capsys):
    sample = images_of(G, dcgan.latents([4, 5], 8))[0]
    noise = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8)
    near, shuffled = sample // 2 + 64, sample.reshape(-1, 3)[::-1].reshape(sample.shape)
    np.save("data.npy", np.concatenate([noise, [near, shuffled]]))
    torch.save({}, "weights.pth")
    monkeypatch.setattr(interpolate, "Inception", MeanColour)
    flags = ["--k", 1, "--cache", "cache", "--weights", "weights.pth"]
    run("--nearest", "data.npy", "--seeds", "4,5", *flags)
    row = read("nearest.png")[21:149]
    for column, image in enumerate((sample, near, shuffled)):
        assert (row[:, 4 + 132 * column :][:, :128] == large(image, 8)).all()
    said = capsys.readouterr().out
    assert said.index("pixels: root mean square") < said.index("features: root mean square")
    assert "weights.pth: features of width 768" in said


def test_weights_of_another_network_are_refused(G):
    for weights in ({}, {"Conv2d_1a_3x3.conv.weight": torch.zeros(3)}):
        torch.save(weights, "weights.pth")
        message = refusal("--nearest", "sprites", "--weights", "weights.pth")
        assert message.startswith("--weights weights.pth: not the Inception network in pytorch-fid")
        assert "Conv2d_1a_3x3.conv.weight is" in message
    assert "no such" in refusal("--nearest", "sprites", "--weights", "nowhere.pth")
    assert not Path("data").exists()  # the weights are looked at before the images are decoded


# ---- Generators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_a_checkpoint_and_a_snapshot_of_each_trainer(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, stem = TRAINERS[name], Path(name).stem
    np.save("images.npy", np.random.default_rng(1).integers(0, 256, (64, 16, 16, 3), np.uint8))
    flags = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 8 --epochs 1 --lr 0.01"
    trainer.main(["--data", "images.npy", "--device", "cpu", *flags.split()])
    checkpoint, shot = f"runs/{stem}/checkpoint.pt", f"runs/{stem}/snapshots/epoch_0001.pt"
    saved, pictures = torch.load(checkpoint, weights_only=True), {}
    for key, path, flags in (
        ("G_ema", checkpoint, []),
        ("G_ema", shot, []),
        ("G", checkpoint, ["--raw"]),
    ):
        run("--samples", 4, "--out", "s.npz", *flags, checkpoint=path)
        pictures[key] = np.load("s.npz")["images"]
        G = trainer.Generator(**saved["generator"])
        G.load_state_dict(saved[key])
        expected = trainer.sample(G, trainer.latents(range(4), 8)).permute(0, 2, 3, 1)
        assert (pictures[key] == expected.numpy()).all()
    assert (pictures["G"] != pictures["G_ema"]).any()
    assert "holds the averaged weights alone; leave --raw out" in refusal("--raw", checkpoint=shot)


@pytest.mark.parametrize("script", TRAINERS)
@pytest.mark.parametrize(
    "shape",
    [
        {"size": 32, "z_dim": 100, "width": 128},
        {"size": 32, "z_dim": 100, "width": 64},
        {"size": 64, "width": 16},
        {"size": 28, "width": 4, "norm": "none"},
        {"size": 16, "z_dim": 1, "width": 1},
        {"size": 256, "z_dim": 3, "width": 2},
    ],
)
def test_every_generator_of_the_trainers_is_read_off_its_tensors(tmp_path, script, shape):
    G = snapshot(tmp_path / "g.pt", script, **shape)
    found, words = interpolate.load_generator(tmp_path / "g.pt")
    assert words == f"{script}, epoch 3, averaged weights"
    z = dcgan.latents([1, 2], shape.get("z_dim", 8))
    with torch.no_grad():
        assert torch.equal(found(z), G(z))


def test_without_an_average_the_raw_weights_are_taken(tmp_path):
    snapshot(tmp_path / "g.pt", key="G")
    _, words = interpolate.load_generator(tmp_path / "g.pt")
    assert words == "dcgan.py, epoch 3, raw weights"


def examples_generator(nz=100, ngf=64, nc=3):
    """The layout of pytorch/examples' DCGAN at 64x64: no biases, (B, nz, 1, 1) in."""

    def up(c_in, c_out, *shape):
        conv = nn.ConvTranspose2d(c_in, c_out, *shape, bias=False)
        return [conv, nn.BatchNorm2d(c_out), nn.ReLU(True)] if c_out != nc else [conv, nn.Tanh()]

    G, widths = nn.Module(), [nz, 8 * ngf, 4 * ngf, 2 * ngf, ngf, nc]
    shapes = [(4, 1, 0), *[(4, 2, 1)] * 4]
    layers = [m for a, b, s in zip(widths, widths[1:], shapes) for m in up(a, b, *s)]
    G.main = nn.Sequential(*layers)
    for module in G.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return G.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("shape", [{}, {"nz": 7, "ngf": 5}, {"nz": 7, "ngf": 5, "nc": 1}])
def test_a_state_dict_of_pytorch_examples_gives_its_own_pixels(tmp_path, capsys, prefix, shape):
    torch.manual_seed(0)
    G, path = examples_generator(**shape), tmp_path / "netG_epoch_24.pth"
    state = G.state_dict()
    assert [*state][:2] == ["main.0.weight", "main.1.weight"] and "main.12.bias" not in state
    torch.save({prefix + name: value for name, value in state.items()}, path)
    run("--samples", 3, "--out", tmp_path / "s.npz", checkpoint=str(path))
    z = dcgan.latents(range(3), shape.get("nz", 100))
    expected = images_of(G.main, z[:, :, None, None])
    images = np.load(tmp_path / "s.npz")["images"]
    assert images.shape == (3, 64, 64, 3) and (images == expected).all()
    assert "netG_epoch_24.pth: a state dict, 64x64, latents of" in capsys.readouterr().out


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
    net = nn.Linear(6, 600)
    torch.save({f"fc.{name}": value for name, value in net.state_dict().items()}, "other.pt")
    expected = torch.tanh(net(dcgan.latents(range(4), 6))).view(-1, 3, 20, 10)
    for name in ("Net", "Tall"):
        run(
            "--samples",
            4,
            "--out",
            "s.npz",
            "--generator",
            f"other.py:{name}",
            checkpoint="other.pt",
        )
        assert "running the code of other.py" in capsys.readouterr().out
        images = np.load("s.npz")["images"]
        assert (images == images_of(nn.Identity(), expected)).all()
    run("--generator", "other.py:Net", checkpoint="other.pt")
    assert read("walk.png").shape[:2] == (4 + 5 * (4 + 17 + 120), 4 + 9 * (4 + 60))
    narrow = ["--generator", "other.py:Net", "--nearest", "sprites"]
    assert "takes square images; these are 10x20" in refusal(*narrow, checkpoint="other.pt")
    run("--generator", f"{Path(dcgan.__file__)}:Generator", "--samples", 4, "--out", "own.npz")
    assert (np.load("own.npz")["images"] == images_of(G, dcgan.latents(range(4), 8))).all()
    for name, words in (
        ("None", "AttributeError"),
        ("Flat", "of two latents it makes (2, 600)"),
        ("Picky", "does not fit other.py:Picky"),
    ):
        assert words in refusal("--generator", f"other.py:{name}", checkpoint="other.pt")
    assert "unexpected keyword argument 'size'" in refusal("--generator", "other.py:Net")
    assert "FileNotFoundError" in refusal("--generator", "nowhere.py:Net")


# ---- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--steps 1", "--steps 1: a way has two ends; 2 or more"),
        ("--steps 0", "--steps: 0 is less than 1"),
        ("--seeds 3", "--seeds 3: a way has two ends; name two seeds or more"),
        ("--seeds 3,x", "--seeds: 'x' in '3,x' is not like 3,17,42 or 0-5"),
        ("--seeds 5-3", "is not like 3,17,42 or 0-5"),
        ("--seeds 0-99999999", "is not like 3,17,42 or 0-5"),
        ("--seeds ,", "is not like 3,17,42 or 0-5"),
        ("--seeds ²,3", "is not like 3,17,42 or 0-5"),
        ("--seeds 3,9999999999999999999", "is no seed"),
        ("--grid 3,17", "a plane takes three seeds, '3,17' has 2"),
        ("--traverse -1", "'-1' is no seed: a whole number, 0 or more"),
        ("--traverse 1.5", "'1.5' is no seed: a whole number, 0 or more"),
        ("--samples 0", "--samples: 0 is less than 1"),
        ("--samples 9 --grid 1,2,3", "not allowed with argument"),
        ("--grid 1,2,3 --loop", "--loop has no effect on --grid"),
        ("--dims 3", "--dims has no effect on ways"),
        ("--samples 9 --weights w.pth", "--weights has no effect on --samples"),
        ("--samples 9 --seeds 1,2", "--seeds has no effect on --samples"),
        ("--path cubic", "--path: invalid choice"),
        ("--fps 60", "--fps 60: 50 at most"),
        ("--span 0", "--span: 0 is not above 0"),
        ("--out walk.bmp", "--out walk.bmp: give it one of the suffixes .png .gif .webp .mp4"),
        ("--out walk", "give it one of the suffixes"),
        ("--grid 1,2,3 --out walk.gif", "give it one of the suffixes .png"),
        ("--samples 9 --out a.tar", "give it one of the suffixes .png .npz, or a folder"),
        ("--generator Net", "--generator Net: is not like path/to/file.py:ClassName"),
    ],
)
def test_wrong_flags_end_in_one_line_and_exit_2(capsys, flags, words):
    message = usage_error(capsys, *flags.split())
    assert words in message and len(message.splitlines()) == 1


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile-code-ran",))


def changed(**values):
    def change(path):
        torch.save(torch.load(path, weights_only=True) | values, path)

    return change


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.write_text("hello"), "not a checkpoint"),
        (lambda path: path.write_bytes(b""), "not a checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cut short"),
        (lambda path: path.write_bytes(pickle.dumps(Hostile())), "nothing in it was run"),
        (lambda path: torch.save({"main.0.weight": Hostile()}, path), "nothing in it was run"),
        (changed(format=99), "format 99, newer than this script can read"),
        (changed(format="x"), "does not fit"),
        (changed(G_ema={}), "'main.0.weight'"),
        (changed(G_ema=None), "does not fit a DCGAN generator"),
        (changed(G_ema={"main.0.weight": torch.zeros(3)}), "does not fit a DCGAN generator"),
        (lambda path: torch.save([1, 2], path), "neither a checkpoint nor a state dict"),
        (lambda path: torch.save(dcgan.Discriminator(16, 4).state_dict(), path), "does not fit"),
        (lambda path: torch.save({"fc.weight": torch.zeros(3, 3)}, path), "--generator FILE.py:CL"),
        (Path.unlink, "no such checkpoint"),
        (lambda path: (path.unlink(), path.mkdir()), "not a checkpoint"),
    ],
)
def test_what_is_no_generator_is_refused_in_one_line(G, damage, words):
    damage(Path("g.pt"))
    message = refusal()
    assert message.startswith("g.pt: ") and words in message
    assert not Path("hostile-code-ran").exists() and not Path("walk.png").exists()


def test_other_data_that_cannot_be_had(G):
    assert "nowhere: no such file or folder" in refusal("--nearest", "nowhere")
    assert "--dims 9: the latents have 8" in refusal("--traverse", 1, "--dims", 9)
    assert "--device toaster" in refusal("--device", "toaster")


@pytest.mark.parametrize("flags", [[], ["--samples", 4]])
def test_a_place_that_cannot_be_written_to(G, flags):
    Path("file").write_text("in the way")
    assert "cannot be written" in refusal(*flags, "--out", "file/walk.png")
    if flags:
        assert refusal(*flags, "--out", "file").startswith("--out file: cannot be read")
        assert "cannot be written" in refusal(*flags, "--out", "file/fake")
    assert Path("file").read_text() == "in the way"


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
@pytest.mark.parametrize("out", ["fake.npz", "walk.gif", "fake"])
def test_a_full_disk_leaves_nothing_half_written(G, out):
    """A limit on the size of files stands for the full disk: writes fail in mid-file."""
    kept = b"whole" if out != "fake" else None
    if kept:
        Path(out).write_bytes(kept)
    flags = ["--samples", "9"] if out != "walk.gif" else ["--seeds", "1,2"]
    code = (
        "import resource, sys, interpolate;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400));"
        "interpolate.main(sys.argv[1:])"
    )
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, "g.pt", "--device", "cpu", *flags, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "cannot be written" in done.stderr
    if kept:
        assert Path(out).read_bytes() == kept
    else:
        made_by = json.loads(Path("fake/samples.json").read_text())
        assert len(made_by["weights"]) == 64 and samples("fake") == {}
    assert not list(Path().rglob("*.tmp"))
