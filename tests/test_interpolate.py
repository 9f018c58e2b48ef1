"""interpolate.py: its latents, its flags, its pictures, and every generator that it can load."""

import argparse
import io
import os
import pickle
import runpy
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dcgan
import interpolate
from interpolate import latents, load_generator, sample

SCRIPT = interpolate.__file__
SHAPE = {"size": 16, "z_dim": 8, "width": 4, "norm": "batch"}


def varied(G, seed=1):
    """G with the numbers of a network after some training: its images differ."""
    torch.manual_seed(seed)
    for tensor in G.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.randn_like(tensor)
    return G.eval().requires_grad_(False)


def generator(seed=1, **shape):
    return varied(dcgan.Generator(**SHAPE | shape), seed)


def snapshot(path, names=(), **shape):
    """Write a trainer's snapshot, and return its generator."""
    shape = SHAPE | shape | {"classes": len(names)}
    G = generator(**shape)
    saved = {"format": 2, "script": "dcgan.py", "generator": shape, "args": {}}
    saved |= {"G_ema": G.state_dict(), "epoch": 3, "step": 9, "classes": list(names)}
    torch.save(saved, path)
    return G


@pytest.fixture
def G(tmp_path, monkeypatch):
    """The generator in g.pt of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return snapshot("g.pt")


@pytest.fixture
def conditional(tmp_path, monkeypatch):
    """The generator of cats, dogs and ships in g.pt of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return snapshot("g.pt", ["cat", "dog", "ship"])


def run(*flags, checkpoint="g.pt"):
    interpolate.main([str(checkpoint), "--device", "cpu", *map(str, flags)])


def refusal(*flags, checkpoint="g.pt"):
    """The one line with which a run ends."""
    with pytest.raises(SystemExit) as stop:
        run(*flags, checkpoint=checkpoint)
    assert "\n" not in stop.value.code
    return stop.value.code


def inputs(flags, names=("",), onehots=None, G=None):
    """What G is given for a picture, and the labels."""
    args = interpolate.parse_args(["g.pt", *flags.split()])
    onehots = torch.zeros(1, 0) if onehots is None else onehots
    return interpolate.make_inputs(args, G, 8, names, onehots)


def read(path):
    """A picture as uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def images_of(G, z):
    """Images by hand: uint8 (N, H, W, 3)."""
    x = ((G(z) + 1) * 127.5).round().clamp(0, 255)
    return x.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy().astype(np.uint8)


def close(a, b):
    """Equal but for rare pixels one level off: float32 sums rounded in another order."""
    difference = abs(a.astype(int) - b)
    return difference.max() <= 1 and (difference > 0).mean() < 1e-2


def samples_of(n, *flags, checkpoint="g.pt"):
    """The images of --samples n, uint8 (n, H, W, 3)."""
    run("--samples", n, "--out", "s.npz", *flags, checkpoint=checkpoint)
    with np.load("s.npz") as arrays:
        return arrays["images"]


def files(folder):
    """{name: bytes} of a folder's visible PNGs."""
    return {path.name: path.read_bytes() for path in Path(folder).glob("[!.]*.png")}


# ---- Latents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.1, 1, 10])
def test_slerp_turns_evenly_and_changes_its_length_evenly(factor):
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    for a, b in pairwise(latents(range(20), 20).double()):
        z = interpolate.interpolation(a, factor * b, 7)
        lengths = z.norm(dim=1)
        torch.testing.assert_close(lengths, torch.lerp(a.norm(), factor * b.norm(), t))
        units = z / lengths[:, None]
        angles = 2 * torch.asin((units[1:] - units[:-1]).norm(dim=1) / 2)  # of chords
        whole = torch.acos((a @ b) / (a.norm() * b.norm()))
        torch.testing.assert_close(angles, whole.expand(6) / 6)
        plane = torch.linalg.svdvals(torch.stack([a, b, *z]))
        assert plane[2] < 1e-9 * plane[0]  # the arc stays in the plane of its ends


X = torch.tensor([3.0, -1, 2, 0.5])
PAIRS = [(X, X), (X, -X), (X, -3 * X), (X, 0 * X), (0 * X, 0 * X), (X[:1], -X[:1])]
PAIRS += [(X, X + 1e-7), (X, -X + 1e-7), (1e-30 * X, 1e30 * X)]


@pytest.mark.parametrize("path", ["slerp", "lerp"])
@pytest.mark.parametrize("a, b", PAIRS)
def test_degenerate_pairs_stay_finite_and_keep_their_ends(path, a, b):
    z = interpolate.interpolation(a, b, 9, path)
    assert z.shape == (9, len(a))
    assert z.isfinite().all()
    assert torch.equal(z[0], a)
    torch.testing.assert_close(z[-1], b)
    assert (z.norm(dim=1) <= max(a.norm(), b.norm()) * (1 + 1e-6)).all()


@pytest.mark.parametrize("path", ["slerp", "lerp"])
def test_the_ends_of_an_interpolation_are_its_seeds_to_the_bit(path):
    for a, b in pairwise(latents(range(100), 20)):
        z = interpolate.interpolation(a, b, 3, path)
        assert torch.equal(z[[0, 2]], torch.stack([a, b]))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_principal_directions_are_those_of_the_response(norm):
    """The response by the layer itself, its directions by a singular value decomposition."""
    layer = generator(norm=norm).main[0]
    response = layer(torch.eye(8)[:, :, None, None]) - layer(torch.zeros(1, 8, 1, 1))
    response = response.flatten(1).double()
    expected = torch.linalg.svd(response.T, full_matrices=False).Vh
    directions = interpolate.principal_directions(nn.Sequential(layer), 8).double()
    torch.testing.assert_close(abs((directions * expected).sum(1)), torch.ones(8).double())
    assert ((directions @ response).norm(dim=1).diff() < 0).all()  # the strongest comes first
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()


# ---- Arithmetic ---------------------------------------------------------------------------------


def test_a_sum_is_read_term_by_term():
    terms = interpolate.expression(" 3 -\t17+0.5*42 -2*(1,2, 8)")
    assert terms == [
        (1, 1, [3], "+ 3"),
        (-1, 1, [17], "- 17"),
        (1, 0.5, [42], "+ 0.5*42"),
        (-1, 2, [1, 2, 8], "- 2*(1,2, 8)"),
    ]
    assert interpolate.expression("-3") == [(-1, 1, [3], "- 3")]


@pytest.mark.parametrize(
    "text, rest",
    [
        ("3++*17", "++*17"),
        ("3 4", "4"),
        ("17+3.5", ".5"),
        ("3-(17,(18,19)", "-(17,(18,19)"),
        ("", "+"),
        ("3 \u221217", "\u221217"),
        ("3+9999*4", "*4"),
    ],
)
def test_what_is_no_sum_is_refused_from_where_it_is_not_understood(text, rest):
    with pytest.raises(argparse.ArgumentTypeError) as fault:
        interpolate.expression(text)
    assert str(fault.value) == f"{rest!r} is not understood; (3,5)-17+0.5*42 is"


def test_a_sum_has_a_column_per_term_and_its_result_among_eight_neighbours():
    z, labels = interpolate.arithmetic(interpolate.expression("(3,5,8)-17+0.5*(42,43)"), 8)
    assert labels.tolist() == [
        ["3", None, None, None, None, None],
        ["5", None, "42", None, None, None],
        ["8", None, "43", "", "", ""],
        ["+ (3,5,8)", "- 17", "+ 0.5*(42,43)", "", "= result", ""],
        [None, None, None, "", "", ""],
    ]
    seeds = latents([3, 5, 8, 17, 42, 43], 8)
    assert torch.equal(z[:3, 0], seeds[:3])
    assert torch.equal(z[1:3, 2], seeds[4:])
    torch.testing.assert_close(z[3, 0], seeds[:3].mean(0))
    assert torch.equal(z[3, 1], seeds[3])
    torch.testing.assert_close(z[3, 2], 0.5 * seeds[4:].mean(0))
    off = (z[2:, 3:] - (z[3, 0] - z[3, 1] + z[3, 2])).flatten(0, 1).abs()
    assert off[4].max() < 1e-6
    assert off.max() <= 0.25 + 1e-6
    assert (off.amax(1) > 0.1).sum() == 8


# ---- Pictures -----------------------------------------------------------------------------------


def test_a_row_leads_from_each_seed_to_the_next():
    x, labels = inputs("--seeds 3,17,42 --steps 4 --loop")
    z = latents([3, 17, 42, 3], 8)
    arcs = [interpolate.interpolation(a, b, 4) for a, b in pairwise(z)]
    assert torch.equal(x, torch.cat(arcs))
    assert labels[0] == ["seed 3 ", "", "", "seed 17"]
    assert labels[2] == ["seed 42 ", "", "", "seed 3"]
    x, _ = inputs("--seeds 3,17 --steps 3 --path lerp")
    torch.testing.assert_close(x[1], z[:2].mean(0))


def test_a_traversal_moves_along_one_direction_per_row():
    G = generator()
    x, labels = inputs("--traverse 5 --dims 2 --steps 3", G=G)
    z, directions = latents([5], 8), interpolate.principal_directions(G, 8)
    for row in range(2):
        moved = torch.cat([z - 4 * directions[row], z, z + 4 * directions[row]])
        torch.testing.assert_close(x[3 * row : 3 * row + 3], moved)
    assert labels[1] == ["direction 2: -4", "", "+4"]


def test_rows_take_the_classes_by_turns_and_so_do_samples():
    onehots = torch.eye(3)[[2, 0]]
    x, labels = inputs("--seeds 1-4 --steps 2", ["ship", "cat"], onehots)
    assert torch.equal(x[:, 8:], onehots[[0, 0, 1, 1, 0, 0]])
    assert [row[0] for row in labels] == ["seed 1 ship", "seed 2 cat", "seed 3 ship"]
    x, _ = inputs("--samples 5", ["ship", "cat"], onehots)
    assert torch.equal(x, torch.cat([latents(range(5), 8), onehots[[0, 1, 0, 1, 0]]], 1))


def test_between_two_classes_the_latent_stays():
    flags = "--between cat ship --seeds 5,6 --steps 3"
    x, labels = inputs(flags, ["cat", "ship"], torch.eye(3)[[0, 2]])
    assert torch.equal(x[:, :8], latents([5, 5, 5, 6, 6, 6], 8))
    turned = torch.tensor([[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]])
    assert torch.equal(x[:, 8:], turned.repeat(2, 1))
    assert labels[1] == ["seed 6 cat", "", "ship"]


@pytest.mark.parametrize("text, line", [("a", 17), ("", 0)])
def test_a_picture_has_images_below_their_labels_and_blanks(tmp_path, text, line):
    images = torch.randint(0, 256, (2, 3, 3, 20, 10), dtype=torch.uint8)
    labels = [[text, "", None], ["", text * 80, ""]]
    interpolate.write_picture(tmp_path / "p.png", images, labels)
    page = read(tmp_path / "p.png")
    assert page.shape == (4 + 2 * (120 + 4 + line), 4 + 3 * (60 + 4), 3)
    places = page[4:].reshape(2, 124 + line, -1, 3)[:, :, 4:].reshape(2, -1, 3, 64, 3)
    for row, column in np.ndindex(2, 3):
        place = places[row, :, column]
        label, shown = place[:line, :60], place[line : line + 120 : 6, :60:6]
        if labels[row][column] is None:
            assert place.min() == 255
        else:
            assert np.array_equal(shown, images[row, column].permute(1, 2, 0))
            assert (label < 99).any() == bool(labels[row][column])  # one too long is cut


@pytest.mark.parametrize(
    "flags, row, column, line, seed",
    [
        ("--seeds 3,4,5 --steps 3", 1, 0, 17, 4),
        ("--samples 5", 1, 1, 0, 4),
        ("--arithmetic 7", 1, 0, 17, 7),
        ("--traverse 8 --steps 3", 0, 1, 17, 8),
    ],
)
def test_each_kind_of_picture_shows_its_images(G, capsys, flags, row, column, line, seed):
    run(*flags.split(), "--out", "p.png")
    top, left = 4 + line + row * (132 + line), 4 + column * 132
    shown = read("p.png")[top : top + 128 : 8, left : left + 128 : 8]
    assert close(shown, images_of(G, latents([seed], 8))[0])
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "g.pt: G_ema of dcgan.py, epoch 3, 16x16x3, latents of 8; cpu"
    assert others == ["wrote p.png"]


@pytest.mark.parametrize("flags", ["--arithmetic 7", "--traverse 7"])
def test_other_pictures_are_of_the_first_class(capsys, flags):
    args = interpolate.parse_args(["g.pt", *flags.split(), "--class", "dog", "cat"])
    names, onehots = interpolate.choose_classes(args, ["cat", "dog", "ship"])
    assert names == ["dog"]
    assert onehots.tolist() == [[0, 1, 0]]
    assert capsys.readouterr().out == "classes: dog\n"


@pytest.mark.parametrize("suffix, error", [(".gif", 40), (".webp", 1)])
@pytest.mark.parametrize("loop, fps, images", [(["--loop"], 20, 15), ([], 30, 11)])
def test_an_animation_shows_a_seed_once_and_is_on_time(G, suffix, error, loop, fps, images):
    out = f"i{suffix}"
    run("--seeds", "3,17,42", "--steps", 6, "--fps", fps, "--out", out, *loop)
    duration = 0
    with Image.open(out) as animation:
        assert animation.n_frames == images
        assert animation.info["loop"] == 0
        for i in range(images):
            animation.seek(i)
            animation.load()  # its duration is known from here on
            duration += animation.info["duration"]
            if i == 5:
                frame = np.asarray(animation.convert("RGB"))[::16, ::16].astype(int)
    assert duration == pytest.approx(1000 * images / fps, abs=5)
    assert abs(frame - images_of(G, latents([17], 8))[0]).max() <= error


def test_an_animation_between_classes_has_every_image_of_its_rows(conditional):
    run("--between", "cat", "dog", "--steps", 3, "--out", "b.gif", "--seeds", "5,6")
    with Image.open("b.gif") as animation:
        assert animation.n_frames == 6


def test_a_class_that_is_not_there_is_named_with_those_that_are(conditional):
    message = refusal("--class", "cat", "horse")
    assert message == "g.pt: has the classes ['cat', 'dog', 'ship'] ('horse' is not in list)"
    snapshot("plain.pt")
    message = refusal("--between", "cat", "dog", checkpoint="plain.pt")
    assert message == "plain.pt: has the classes [] ('cat' is not in list)"


# ---- Samples ------------------------------------------------------------------------------------


def test_a_seed_is_the_same_image_at_every_batch_size(G):
    """On a CPU in float32 a convolution's sums may round otherwise in another batch: one level."""
    expected = images_of(G, latents(range(7), 8))
    assert len(np.unique(expected.reshape(7, -1), axis=0)) == 7
    for batch_size in (1, 3, 64):
        images = samples_of(7, "--batch-size", batch_size)
        assert images.dtype == np.uint8
        assert close(images, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_seed_is_the_same_image_on_every_device(G):
    assert close(samples_of(32), samples_of(32, "--device", "cuda"))


def test_a_folder_and_an_array_hold_the_images_of_their_seeds(conditional, capsys):
    run("--samples", 20, "--out", "fake/", "--batch-size", 8)
    assert "fake: 20 images (0 were there)\n" in capsys.readouterr().out
    assert sorted(files("fake")) == [f"{seed:06}.png" for seed in range(20)]
    by_name = np.stack([read(f"fake/{seed:06}.png") for seed in range(20)])
    assert (samples_of(20, "--batch-size", 8) == by_name).all()
    with np.load("s.npz") as arrays:
        assert arrays["labels"].tolist() == [seed % 3 for seed in range(20)]


def test_interrupted_samples_go_on_and_become_the_same_files(G, monkeypatch, capsys):
    flags = ["--samples", 30, "--batch-size", 8, "--out"]
    run(*flags, "whole")
    batches = []

    def interrupted(*args):
        batches.append(args)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return sample(*args)

    with monkeypatch.context() as patch:
        patch.setattr(interpolate, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(*flags, "parts")
    Path("parts/000007.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("parts").glob("*.png")}
    run(*flags, "parts")
    assert "parts: 30 images (15 were there)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files("parts") == files("whole")
    assert len(os.listdir("parts")) == 31  # and samples.json


def test_a_folder_grows_in_place_after_its_checkpoint_has_moved(G):
    run("--samples", 3, "--out", "fake")
    Path("fake").rename("fake.v2")
    Path("fake.v2/notes.txt").write_text("of my own")
    Path("fake.v2/._000000.png").write_text("of macOS")
    torch.save({"netG": G.state_dict()}, "moved.pt")
    run("--samples", 5, "--out", "fake.v2", checkpoint="moved.pt")
    assert len(files("fake.v2")) == 5


def test_a_folder_of_other_images_is_refused_and_left_alone(conditional):
    run("--samples", 5, "--out", "fake")
    before = files("fake")
    message = refusal("--samples", 5, "--out", "fake", "--class", "cat")
    words = "--out fake: not a folder of these 5 samples; name another"
    assert message == f"{words} (they are of another generator)"
    snapshot("other.pt", ["cat", "dog", "ship"], z_dim=9)
    assert refusal("--samples", 5, "--out", "fake", checkpoint="other.pt") == message
    assert "(it holds 000004.png)" in refusal("--samples", 4, "--out", "fake")
    for text in ("{", "[]", "{}"):
        Path("fake/samples.json").write_text(text)
        assert refusal("--samples", 5, "--out", "fake").startswith(words)
    assert files("fake") == before
    Path("photos").mkdir()
    Image.new("RGB", (4, 4)).save("photos/a.jpg")
    assert "--out photos: not a folder of these" in refusal("--samples", 4, "--out", "photos")
    assert os.listdir("photos") == ["a.jpg"]


# ---- Generators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["dcgan.py", "wgan.py", "wgan_gp.py"])
def test_a_checkpoint_holds_the_average_and_the_raw_generator(G, script):
    nets = {"G": generator(seed=1), "G_ema": generator(seed=2)}
    saved = {key: net.state_dict() for key, net in nets.items()}
    saved |= {"format": 2, "script": script, "generator": SHAPE, "epoch": 4, "step": 7}
    saved["D"] = dcgan.Discriminator(16, 4).state_dict()
    saved["opt_G"] = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    Path("run").mkdir()
    torch.save(saved, "run/checkpoint.pt")
    z = latents(range(4), 8)
    assert close(samples_of(4, checkpoint="run"), images_of(nets["G_ema"], z))
    assert close(samples_of(4, "--raw", checkpoint="run"), images_of(nets["G"], z))
    assert close(samples_of(4, "--key", "G", checkpoint="run"), images_of(nets["G"], z))
    info = load_generator("run")[1]
    assert (info["script"], info["epoch"], info["step"]) == (script, 4, 7)
    assert "(no tensor main.0.weight in G; " in refusal("--raw")


def test_a_snapshot_of_format_1_may_hold_the_raw_generator_alone(G):
    saved = {"format": 1, "script": "dcgan.py", "generator": SHAPE, "G": G.state_dict()}
    torch.save(saved, "old.pt")
    assert close(samples_of(3, checkpoint="old.pt"), images_of(G, latents(range(3), 8)))


SHAPES = [{"size": 32, "z_dim": 100, "width": 128}, {"size": 28, "norm": "none"}]
SHAPES += [{"size": 256, "z_dim": 3, "width": 2}, {"size": 20, "z_dim": 1, "width": 1}]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_generator_of_the_trainers_is_rebuilt_from_its_shapes(tmp_path, shape):
    G = snapshot(tmp_path / "g.pt", ["cat"], **shape)
    found, info = load_generator(tmp_path / "g.pt")
    assert (info["size"], info["z_dim"]) == (shape["size"], shape.get("z_dim", 8))
    assert info["classes"] == ["cat"]
    z = latents([1, 2], info["z_dim"] + 1)
    assert torch.equal(found(z), G(z))


def examples_generator(nz=8, ngf=4, nc=3, kernel=4):
    """The layout of pytorch/examples' DCGAN at 64x64: no biases, (B, nz, 1, 1) in."""
    layers = [nn.ConvTranspose2d(nz, 8 * ngf, 4, 1, 0, bias=False)]
    for a, b in pairwise([8 * ngf, 4 * ngf, 2 * ngf, ngf, nc]):
        layers += [nn.BatchNorm2d(a), nn.ReLU(True)]
        layers.append(nn.ConvTranspose2d(a, b, kernel, 2, (kernel - 1) // 2, bias=False))
    G = nn.Module()
    G.main = nn.Sequential(*layers, nn.Tanh())
    return varied(G)


@pytest.mark.parametrize("shape", [{}, {"nz": 7, "ngf": 5, "nc": 1}])
def test_a_state_dict_of_pytorch_examples_gives_its_own_pixels(G, capsys, shape):
    other = examples_generator(**shape)
    torch.save(other.state_dict(), "netG_epoch_24.pth")
    images = samples_of(3, checkpoint="netG_epoch_24.pth")
    z = latents(range(3), shape.get("nz", 8))
    assert close(images, images_of(other.main, z[:, :, None, None]))
    assert "(assumed: ReLU, batch-norm eps 1e-5, tanh), 64x64" in capsys.readouterr().out
    run("--samples", 3, "--out", "fake", checkpoint="netG_epoch_24.pth")
    assert (read("fake/000002.png") == images[2]).all()


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_dcgan_of_another_kernel_is_refused(G, kernel):
    """Its shapes do not tell stride and padding: as (4, 2, 1) it would make wrong images."""
    torch.save(examples_generator(kernel=kernel).state_dict(), "other.pt")
    message = refusal(checkpoint="other.pt")
    assert f"(main.3 has a kernel of {kernel}, where 4 doubles the size; interpolate" in message


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def lightning(state):
    """A generator and a discriminator in one state dict, and optimizers beside it."""
    judge = dcgan.Discriminator(16, 4).state_dict()
    both = prefixed("generator.", state) | prefixed("discriminator.", judge)
    return {"state_dict": both, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 3, "netG": state, "netD": {}, "loss": [1.0]},
        lambda state: {**state, "epoch": 3},
        lambda state: {"models": {"G": prefixed("module._orig_mod.", state)}},
        lightning,
    ],
)
def test_a_state_dict_is_found_in_whatever_wraps_it(G, wrap):
    torch.save(wrap(G.state_dict()), "wrapped.pt")
    images = samples_of(3, checkpoint="wrapped.pt")
    assert close(images, images_of(G, latents(range(3), 8)))


def test_of_two_generators_a_key_picks_one(G):
    nets = {"netG": generator(seed=1), "ema": generator(seed=2)}
    torch.save({key: net.state_dict() for key, net in nets.items()}, "two.pt")
    message = refusal(checkpoint="two.pt")
    assert "(it holds several; --key takes one of netG, ema)" in message
    for key, net in nets.items():
        images = samples_of(3, "--key", key, checkpoint="two.pt")
        assert close(images, images_of(net, latents(range(3), 8)))
    assert "no tensor main.0.weight in net; " in refusal("--key", "net", checkpoint="two.pt")


OTHER = """
import argparse
import beside, torch
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


@pytest.fixture
def layer(G, monkeypatch):
    """The layer whose weights other.pt holds, for the classes of models/other.py."""
    monkeypatch.setattr(sys, "argv", ["interpolate.py", "g.pt", "--samples"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("models").mkdir()
    Path("models/other.py").write_text(OTHER)
    Path("models/beside.py").write_text("")
    layer = nn.Linear(6, 600).requires_grad_(False)
    torch.save(prefixed("fc.", layer.state_dict()), "other.pt")
    return layer


@pytest.mark.parametrize("name", ["Net", "Tall"])
def test_a_class_of_any_file_takes_two_or_four_dimensions(layer, capsys, name):
    flags = ["--generator", f"models/other.py:{name}"]
    expected = torch.tanh(layer(latents(range(4), 6))).view(-1, 3, 20, 10)
    images = samples_of(4, *flags, checkpoint="other.pt")
    assert close(images, images_of(nn.Identity(), expected))
    assert "assumed" not in capsys.readouterr().out
    run(*flags, "--traverse", 1, "--dims", 2, "--steps", 3, checkpoint="other.pt")
    assert read("traverse.png").shape == (4 + 2 * (4 + 17 + 120), 4 + 3 * (4 + 60), 3)


def test_a_class_is_called_with_the_arguments_of_the_trainer(conditional):
    flags = ["--generator", f"{dcgan.__file__}:Generator"]
    assert close(samples_of(3, *flags), samples_of(3))


@pytest.mark.parametrize(
    "code, words",
    [
        ("models/other.py:Nowhere", "--generator models/other.py:Nowhere: not loaded ('Nowhere')"),
        ("other", "--generator other: not loaded"),
        ("models/other.py:Picky", "missing 1 required positional argument: 'size'"),
        ("models/other.py:Flat", "other.pt: cannot be used as a generator"),
        (f"{dcgan.__file__}:Generator", "no tensor main.0.weight"),
    ],
)
def test_a_class_that_does_not_fit_is_refused(layer, code, words):
    assert words in refusal("--generator", code, checkpoint="other.pt")


# ---- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--steps 0", "--steps 0: must be above 0"),
        ("--batch-size 0", "--batch-size 0: must be above 0"),
        ("--seeds 3", "--seeds: takes two or more"),
        ("--seeds 3,x", "--seeds: invalid seed_list value: '3,x'"),
        ("--seeds 5-3", "--seeds: invalid seed_list value: '5-3'"),
        ("--traverse 0 --seeds 1,2", "--seeds: has no effect on --traverse"),
        ("--samples 9 --traverse 1", "not allowed with argument"),
        ("--arithmetic 3++4", "'++4' is not understood; (3,5)-17+0.5*42 is"),
        ("--out i.mp4", "--out i.mp4: takes .png, .gif, .webp"),
        ("--samples 9 --out a.tar", "--out a.tar: takes .png, .npz, a folder"),
        ("--seed 3", "unrecognized arguments: --seed"),
    ],
)
def test_wrong_flags_end_in_one_line_and_exit_2(capsys, flags, words):
    with pytest.raises(SystemExit) as stop:
        interpolate.parse_args(["g.pt", *flags.split()])
    assert stop.value.code == 2
    usage, message = capsys.readouterr().err.splitlines()
    assert usage == "usage: interpolate.py CHECKPOINT [flags]; --help lists them"
    assert words in message


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile-code-ran",))


def saving(value):
    return lambda path: torch.save(value, path)


def changed(**values):
    return lambda path: torch.save(torch.load(path, weights_only=True) | values, path)


def torchscript(path):
    with pytest.warns():
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), path)


def statistics(path):
    with open(path, "wb") as file:
        np.savez(file, mu=np.zeros(4), sigma=np.zeros((4, 4)))


ITSELF = {}
ITSELF["a"] = ITSELF
DIVERGED = generator()
DIVERGED.main[0].weight[0] = torch.nan
HUGE = torch.zeros(1).expand(10**6, 1024, 4, 4)  # a kilobyte that unfolds to 65 GB


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cut short, damaged, or not"),
        (lambda path: path.write_bytes(pickle.dumps(Hostile())), "no code in it was run"),
        (saving({"main.0.weight": Hostile()}), "mkdir, which could run code"),
        (torchscript, "cannot be read: a TorchScript module"),
        (statistics, "cannot be read: NumPy arrays (mu, ...), such as statistics"),
        (Path.unlink, "cannot be read: No such file or directory"),
        (changed(G_ema=None), "no tensor main.0.weight in G_ema"),
        (changed(G_ema={"main.0.weight": HUGE}), "main.0 is no convolution"),
        (saving([1, 2]), "cannot be used as a generator"),
        (saving({}), "no tensor main.0.weight in it; interpolate.py --generator takes other"),
        (saving(ITSELF), "recursion"),
        (saving(dcgan.Discriminator(16, 4).state_dict()), "cannot be used as a generator"),
        (changed(G_ema=DIVERGED.state_dict()), "its weights are not finite; the training diverged"),
    ],
)
def test_what_is_no_generator_is_refused_in_one_line(G, damage, words):
    damage(Path("g.pt"))
    message = refusal()
    assert message.startswith("g.pt: ")
    assert words in message
    assert set(os.listdir()) <= {"g.pt"}  # no code has made a folder


def test_a_safetensors_file_and_a_missing_checkpoint_are_named_as_such(G):
    Path("g.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert "a safetensors file; save its" in refusal(checkpoint="g.safetensors")
    Path("run").mkdir()
    missing = Path("run", "checkpoint.pt")
    assert refusal(checkpoint="run").startswith(f"{missing}: cannot be read: No such file")


def test_a_path_that_cannot_be_written_to_ends_in_one_line(G):
    Path("file").write_text("in the way")
    for out in (Path("file/i.png"), Path("file/fake")):
        assert f"{out}: not written" in refusal("--samples", 4, "--out", out)


def test_a_lack_of_memory_ends_in_one_line_that_names_the_batch_size(G, monkeypatch):
    def greedy(G, z, batch_size):
        torch.empty(10**15)

    monkeypatch.setattr(interpolate, "sample", greedy)
    for out in ("s.png", "s.npz", "fake"):
        assert "try a smaller --batch-size (" in refusal("--samples", 9, "--out", out)


@pytest.mark.parametrize("out", ["s.npz", "fake"])
def test_a_full_disk_leaves_nothing_half_written(G, monkeypatch, out):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    Path("s.npz").write_bytes(b"whole")
    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refusal("--samples", 9, "--out", out)
    assert Path("s.npz").read_bytes() == b"whole"
    assert {path.name for path in Path().rglob("*")} <= {"g.pt", "s.npz", "fake"}


# ---- Places, notebooks, standard output ---------------------------------------------------------


def test_a_picture_goes_into_the_run_folder(tmp_path):
    run, other = tmp_path / "runs" / "x", tmp_path / "other"
    run.mkdir(parents=True)
    for checkpoint in (run, run / "checkpoint.pt", run / "snapshots" / "epoch_0003.pt"):
        args = interpolate.parse_args([str(checkpoint), "--samples", "9"])
        assert args.out == run / "samples.png"
    assert interpolate.parse_args([str(other / "g.pth")]).out == other / "interpolation.png"


def test_a_tilde_is_the_home_folder(G, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    args = interpolate.parse_args(["~/g.pt", "--samples", "1", "--out=~/fakes"])
    assert (args.checkpoint, args.out) == (tmp_path / "g.pt", tmp_path / "fakes")
    assert load_generator("~/g.pt")[1]["z_dim"] == 8


@pytest.mark.parametrize("stdout", [io.StringIO(), None])
def test_percent_run_works_where_standard_output_is_no_file(G, monkeypatch, stdout):
    monkeypatch.setattr(sys, "argv", [SCRIPT, "g.pt", "--samples", "1"])
    monkeypatch.setattr(sys, "stdout", stdout)
    runpy.run_path(SCRIPT, run_name="__main__")
    assert Path("samples.png").exists()


def test_a_console_that_lacks_a_letter_ends_no_run_from_standard_input(G, monkeypatch):
    Path("g.pt").rename("gé→.pt")
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "argv", ["-", "gé→.pt", "--samples", "1"])
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.delattr(signal, "SIGPIPE", raising=False)  # this process keeps its own
    exec(Path(SCRIPT).read_text(encoding="utf-8"), {"__name__": "__main__"})  # without __file__
    assert b"g??.pt: " in console.buffer.getvalue()


def test_the_flags_of_a_notebooks_kernel_are_not_its_own(G, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["site-packages/ipykernel_launcher.py", "-f", "kernel.json"])
    with pytest.raises(SystemExit):
        interpolate.main()
    assert "required: CHECKPOINT" in capsys.readouterr().err


def test_it_runs_in_a_thread(G):
    thread = threading.Thread(target=run, args=("--samples", 4, "--out", "fake"))
    thread.start()
    thread.join()
    assert len(files("fake")) == 4
