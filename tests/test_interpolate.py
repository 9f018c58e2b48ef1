"""interpolate.py: its latents, its flags, its pictures, and every generator that it can load."""

import argparse
import io
import os
import pickle
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dcgan
import interpolate
from dcgan import latents
from interpolate import load_generator

SCRIPT = interpolate.__file__
NO_CLASSES = torch.zeros(1, 0)
Z = latents([1, 2], 8)
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
    saved = {"format": 2, "script": "dcgan.py", "generator": shape, "classes": list(names)}
    torch.save(saved | {"G_ema": G.state_dict(), "epoch": 3, "step": 9}, path)
    return G


@pytest.fixture
def G(tmp_path, monkeypatch):
    """The generator in g.pt of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return snapshot("g.pt")


def run(command):
    interpolate.main(f"{command} --device cpu".split())


def refusal(command):
    """The one line with which a run ends."""
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert "\n" not in stop.value.code
    return stop.value.code


def inputs(flags, names=("",), onehots=NO_CLASSES, G=None):
    """What G is given for a picture, and the labels."""
    args = interpolate.parse_args(["g.pt", *flags.split()])
    return interpolate.make_inputs(args, G, 8, names, onehots)


def read(path):
    """A picture as uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def images_of(G, z):
    """Images by hand: uint8 (N, H, W, 3)."""
    levels = ((G(z) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def close(a, b):
    """Equal but for rare pixels one level off: float32 sums rounded in another order."""
    difference = abs(a.astype(int) - b)
    return difference.max() <= 1 and (difference > 0).mean() < 1e-2


def samples_of(command):
    """The images of --samples, uint8 (N, H, W, 3)."""
    run(f"{command} --out s.npz")
    with np.load("s.npz") as arrays:
        return arrays["images"]


def files(folder):
    """{name: bytes} of a folder's visible PNGs."""
    return {path.name: path.read_bytes() for path in Path(folder).glob("[!.]*.png")}


# ---- Latents and their arithmetic ---------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.1, 1, 10])
def test_slerp_turns_evenly_and_changes_its_length_evenly(factor):
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    for a, b in pairwise(latents(range(20), 20).double()):
        b = factor * b
        z = interpolate.interpolation(a, b, 7)
        lengths = z.norm(dim=1)
        torch.testing.assert_close(lengths, torch.lerp(a.norm(), b.norm(), t))
        units = z / lengths[:, None]
        angles = torch.acos((units[1:] * units[:-1]).sum(1))
        whole = torch.acos(units[0] @ b / b.norm())
        torch.testing.assert_close(angles, whole.expand(6) / 6)  # so that there is no way round


@pytest.mark.parametrize("path", ["slerp", "lerp"])
@pytest.mark.parametrize("a, b", [(1, 1), (1, -1), (1, -3), (1, 0), (0, 1), (1, 1 + 1e-7)])
def test_degenerate_pairs_stay_finite_and_keep_their_ends(path, a, b):
    a, b = torch.tensor([a, b])[:, None] * torch.tensor([3.0, -1, 2, 0.5])
    z = interpolate.interpolation(a, b, 9, path)
    assert z.isfinite().all()
    assert torch.equal(z[0], a)
    torch.testing.assert_close(z[-1], b)
    assert (z.norm(dim=1) <= max(a.norm(), b.norm()) * (1 + 1e-6)).all()


def test_principal_directions_move_the_first_layer_most_and_at_right_angles():
    layer = generator(classes=3).main[0]
    directions = interpolate.principal_directions(nn.Sequential(layer), 8)
    torch.testing.assert_close(directions @ directions.T, torch.eye(8))
    moved = layer(nn.functional.pad(directions, (0, 3))[:, :, None, None]).flatten(1)
    lengths = moved.norm(dim=1)
    assert (lengths.diff() < 0).all()
    moved = moved / lengths[:, None]
    torch.testing.assert_close(moved @ moved.T, torch.eye(8), atol=1e-4, rtol=0)
    assert (directions.amax(1) > -directions.amin(1)).all()  # of two signs, always the same


def test_a_sum_is_read_term_by_term_and_refused_from_where_it_is_not_understood():
    assert interpolate.expression("-3") == [(-1, 1, [3], "- 3")]
    first, second, third = interpolate.expression(" 3 -\t0.5*42+2*(1,2, 8)")
    assert first == (1, 1, [3], "+ 3")
    assert second == (-1, 0.5, [42], "- 0.5*42")
    assert third == (1, 2, [1, 2, 8], "+ 2*(1,2, 8)")
    rests = {"3++*17": "++*17", "3 4": "4", "17+3.5": ".5", "": "+", "3-(1,(2,8)": "-(1,(2,8)"}
    for text, rest in rests.items():
        with pytest.raises(argparse.ArgumentTypeError) as fault:
            interpolate.expression(text)
        assert str(fault.value) == f"{rest!r} is not a sum such as (3,5)-17+0.5*42"


def test_a_sum_has_a_column_per_term_and_its_result_among_eight_neighbours():
    z, labels = interpolate.arithmetic(interpolate.expression("2*(3,5)-17"), 8)
    assert labels.tolist() == [
        ["3", None, None, None, None],
        ["5", None, "", "", ""],
        ["+ 2*(3,5)", "- 17", "", "= result", ""],
        [None, None, "", "", ""],
    ]
    a, b, c = latents([3, 5, 17], 8)
    torch.testing.assert_close(z[:3, 0], torch.stack([a, b, a + b]))
    assert torch.equal(z[2, 1], c)
    off = (z[1:, 2:] - (a + b - c)).abs().flatten(0, 1)
    assert off[4].max() < 1e-6
    assert off.max() < 0.25 + 1e-6
    assert (off.amax(1) > 0.1).sum() == 8


# ---- Pictures and samples -----------------------------------------------------------------------


def test_a_row_leads_from_each_seed_to_the_next():
    x, labels = inputs("--seeds 3,17,42 --steps 4 --loop")
    a, b, c = latents([3, 17, 42], 8)
    assert torch.equal(x[:4], interpolate.interpolation(a, b, 4))
    assert torch.equal(x[8:], interpolate.interpolation(c, a, 4))
    assert torch.equal(x[[0, 3, 4, 11]], torch.stack([a, b, b, a]))  # to the bit
    assert labels[2] == ["seed 42 ", "", "", "seed 3"]
    x, _ = inputs("--seeds 3,17 --steps 3 --path lerp")
    torch.testing.assert_close(x[1], (a + b) / 2)


def test_a_traversal_moves_along_one_direction_per_row():
    G = generator()
    x, labels = inputs("--traverse 5 --dims 2 --steps 3", G=G)
    moves = 4 * interpolate.principal_directions(G, 8)[:2]
    seed = latents([5, 5], 8)
    torch.testing.assert_close(x[0::3], seed - moves)
    torch.testing.assert_close(x[1::3], seed)
    torch.testing.assert_close(x[2::3], seed + moves)
    assert labels[1] == ["direction 2: -4", "", "+4"]


def test_rows_take_the_classes_by_turns_and_so_do_samples():
    names, onehots = ["ship", "cat"], torch.tensor([[0.0, 1], [1, 0]])
    x, labels = inputs("--seeds 1-4 --steps 2", names, onehots)
    assert x[:, 8].tolist() == [0, 0, 1, 1, 0, 0]
    assert [row[0] for row in labels] == ["seed 1 ship", "seed 2 cat", "seed 3 ship"]
    x, _ = inputs("--samples 5", names, onehots)
    assert torch.equal(x[:, :8], latents(range(5), 8))
    assert x[:, 8].tolist() == [0, 1, 0, 1, 0]


def test_between_two_classes_the_latent_stays_and_an_animation_has_every_image(G):
    flags = "--between cat ship --seeds 5,6 --steps 3"
    x, labels = inputs(flags, ["cat", "ship"], torch.eye(2))
    assert torch.equal(x[:, :8], latents([5, 5, 5, 6, 6, 6], 8))
    assert x[3:, 8].tolist() == [1, 0.5, 0]
    assert x[3:, 9].tolist() == [0, 0.5, 1]
    assert labels[1] == ["seed 6 cat", "", "ship"]
    snapshot("g.pt", ["cat", "ship"])
    for command, frames in ((f"g.pt {flags}", 6), ("g.pt --seeds 3,3", 1)):
        run(f"{command} --out b.gif")
        with Image.open("b.gif") as animation:
            assert animation.n_frames == frames


@pytest.mark.parametrize("text, line", [("a", 17), ("", 0)])
def test_a_picture_has_images_below_their_labels_and_blanks(tmp_path, text, line):
    images = torch.randint(0, 256, (2, 2, 3, 20, 10), dtype=torch.uint8)
    labels = [["", None], [80 * text, ""]]
    interpolate.write_picture(tmp_path / "p.png", images, labels)
    page = read(tmp_path / "p.png")
    height = line + 120 + 4
    assert page.shape == (4 + 2 * height, 4 + 2 * 64, 3)
    assert page[: 4 + height, 64:].min() == 255
    label, shown = page[4 + height :][:line], page[4 + height + line :]
    assert np.array_equal(shown[:120:6, 4:64:6], images[1, 0].permute(1, 2, 0))
    assert np.array_equal(shown[:120:6, 68:128:6], images[1, 1].permute(1, 2, 0))
    assert (label[:, :64] < 99).any() == bool(text)
    assert (label[:, 64:] == 255).all()  # it is cut


@pytest.mark.parametrize("flags, top, left", [
    ("--seeds 6,7,8 --steps 3", 170, 4), ("--samples 8", 268, 136),
    ("--arithmetic 7", 170, 4), ("--traverse 7 --steps 3", 21, 136),
])  # fmt: skip
def test_each_kind_of_picture_shows_seed_7_in_its_place(G, capsys, flags, top, left):
    run(f"g.pt {flags} --out p.png")
    shown = read("p.png")[top : top + 128 : 8, left : left + 128 : 8]
    assert close(shown, images_of(G, latents([7], 8))[0])
    said = "g.pt: G_ema of dcgan.py, epoch 3, 16x16x3, latents of 8; cpu\nwrote p.png\n"
    assert capsys.readouterr().out == said


def test_other_pictures_are_of_the_first_class_and_one_that_is_not_there_is_named(capsys):
    for flags in ("--arithmetic 7", "--traverse 7"):
        args = interpolate.parse_args(["g.pt", *flags.split(), "--class", "dog", "cat"])
        names, onehots = interpolate.choose_classes(args, ["cat", "dog", "ship"])
        assert names == ["dog"]
        assert onehots.tolist() == [[0, 1, 0]]
        assert capsys.readouterr().out == "classes: dog\n"
    with pytest.raises(SystemExit, match=r"^g.pt: its classes are cat \('dog' is not in"):
        interpolate.choose_classes(args, ["cat"])


@pytest.mark.parametrize("suffix, error", [(".gif", 40), (".webp", 1)])
@pytest.mark.parametrize("flags, fps, images", [("--loop", 20, 15), ("", 30, 11), ("", 99, 11)])
def test_an_animation_shows_a_seed_once_and_is_on_time(G, suffix, error, flags, fps, images):
    run(f"g.pt --seeds 3,17,42 --steps 6 --fps {fps} {flags} --out i{suffix}")
    duration = 0
    with Image.open(f"i{suffix}") as animation:
        assert animation.n_frames == images
        assert animation.info["loop"] == 0
        for i in range(images):
            animation.seek(i)
            animation.load()  # its duration is known from here on
            duration += animation.info["duration"]
            if i == 5:
                frame = np.asarray(animation.convert("RGB"))[::16, ::16].astype(int)
    assert duration == pytest.approx(1000 * images / min(fps, 50), abs=5)
    assert abs(frame - images_of(G, latents([17], 8))[0]).max() <= error
    assert interpolate.parse_args(["g.pt", "--out", f"I{suffix.upper()}"]).steps == 30


def test_a_seed_is_the_same_image_at_every_batch_size(G):
    expected = images_of(G, latents(range(7), 8))
    assert len(np.unique(expected.reshape(7, -1), axis=0)) == 7
    for batch_size in (1, 3, 64):
        images = samples_of(f"g.pt --samples 7 --batch-size {batch_size}")
        assert images.dtype == np.uint8
        assert close(images, expected)


def test_a_folder_and_an_array_hold_the_images_of_their_seeds(G, capsys):
    snapshot("g.pt", ["cat", "dog", "ship"])
    run("g.pt --samples 20 --batch-size 8 --out fake/")
    assert "fake: 20 images (0 were there)\n" in capsys.readouterr().out
    by_name = np.stack([read(f"fake/{seed:06}.png") for seed in range(20)])
    assert (samples_of("g.pt --samples 20 --batch-size 8") == by_name).all()
    with np.load("s.npz") as arrays:
        assert arrays["labels"].tolist() == [seed % 3 for seed in range(20)]
    run("g.pt --samples 3 --out of.npz --class ship cat")
    with np.load("of.npz") as arrays:
        assert arrays["labels"].tolist() == [2, 0, 2]  # the model's numbers of the classes
    run("g.pt --samples 20")
    page = read("samples.png")
    assert page.shape == (4 + 4 * 149, 4 + 5 * 132, 3)  # with room for labels
    assert page[4 + 3 * 149 :][:17, -132:].min() < 99


def test_a_folder_goes_on_and_grows_after_it_and_its_checkpoint_have_moved(G, capsys):
    Path("whole").mkdir()
    Path("whole/.DS_Store").write_text("of macOS")
    run("g.pt --samples 12 --out whole")
    run("g.pt --samples 9 --out part")
    Path("part").rename("part.v2")
    Path("part.v2/000003.png").unlink()
    Path("part.v2/notes.txt").write_text("of my own")
    Path("part.v2/._000000.png").write_text("of macOS, too")
    before = {path: path.stat().st_mtime_ns for path in Path("part.v2").glob("0*.png")}
    torch.save({"netG": G.state_dict()}, "moved.pt")
    run("moved.pt --samples 12 --out part.v2")
    assert "part.v2: 12 images (8 were there)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files("part.v2") == files("whole")


def test_a_folder_of_other_images_is_refused_and_left_alone(G):
    snapshot("g.pt", ["cat", "dog"])
    run("g.pt --samples 5 --out fake")
    before = files("fake")
    message = "--out fake: not a folder of these 5 samples; name another"
    other = f"{message} (they are of another generator)"
    assert refusal("g.pt --samples 5 --out fake --class cat") == other
    snapshot("other.pt", ["cat", "dog"], z_dim=9)
    assert refusal("other.pt --samples 5 --out fake") == other
    assert "(it holds 000004.png)" in refusal("g.pt --samples 4 --out fake")
    Path("fake/samples.json").write_text("{")
    assert refusal("g.pt --samples 5 --out fake") == other
    Path("fake/samples.json").unlink()
    assert refusal("g.pt --samples 5 --out fake").startswith(message)
    assert files("fake") == before


# ---- Generators ---------------------------------------------------------------------------------


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


JUDGE = prefixed("discriminator.", dcgan.Discriminator(16, 4).state_dict())


def test_a_checkpoint_holds_the_average_and_the_raw_generator(G):
    raw = generator(seed=2)
    saved = torch.load("g.pt", weights_only=True)
    saved |= {"G": raw.state_dict(), "critic": JUDGE}
    Path("run").mkdir()
    torch.save(saved, "run/checkpoint.pt")
    average, info = load_generator("run")
    assert torch.equal(average(Z), G(Z))
    assert info["script"] == "dcgan.py"
    assert info["step"] == 9
    assert torch.equal(load_generator("run", raw=True)[0](Z), raw(Z))
    assert torch.equal(load_generator("run", key="G")[0](Z), raw(Z))
    assert "no tensor main.0.weight in G)" in refusal("g.pt --raw")
    assert "no tensor main.0.weight in H)" in refusal("run --key H")


@pytest.mark.parametrize("shape", [
    {"size": 28, "norm": "none"}, {"size": 20, "z_dim": 1, "width": 1}, {"size": 256, "width": 2},
])  # fmt: skip
def test_every_generator_of_the_trainers_is_rebuilt_from_its_shapes(tmp_path, shape):
    G = snapshot(tmp_path / "g.pt", ["cat"], **shape)
    found, info = load_generator(tmp_path / "g.pt")
    assert info["size"] == shape["size"]
    assert info["z_dim"] == shape.get("z_dim", 8)
    assert info["classes"] == ["cat"]
    z = latents([1, 2], info["z_dim"] + 1)
    assert torch.equal(found(z), G(z))


def examples_generator(nz=8, ngf=4, nc=3, kernel=4):
    """The layout of pytorch/examples' DCGAN at 64x64: no biases, (B, nz, 1, 1) in."""
    layers = [nn.ConvTranspose2d(nz, 8 * ngf, 4, 1, 0, bias=False)]
    for a, b in pairwise([8 * ngf, 4 * ngf, 2 * ngf, ngf, nc]):
        layers += [nn.BatchNorm2d(a), nn.ReLU(True)]
        layers.append(nn.ConvTranspose2d(a, b, kernel, 2, 1, bias=False))
    G = nn.Module()
    G.main = nn.Sequential(*layers, nn.Tanh())
    return varied(G)


@pytest.mark.parametrize("nz, nc", [(8, 3), (7, 1)])
def test_a_state_dict_of_pytorch_examples_gives_its_own_pixels(G, capsys, nz, nc):
    other = examples_generator(nz, 5, nc)
    torch.save(other.state_dict(), "netG_epoch_24.pth")
    images = samples_of("netG_epoch_24.pth --samples 3")
    assert images.shape == (3, 64, 64, 3)
    z = latents(range(3), nz)[:, :, None, None]
    assert close(images, images_of(other.main, z))
    assert "(assumed: ReLU, batch-norm eps 1e-5, tanh), 64x64" in capsys.readouterr().out
    run("netG_epoch_24.pth --samples 3 --out fake")
    assert (read("fake/000002.png") == images[2]).all()


@pytest.mark.parametrize("wrap", [
    lambda state: {"netG": state, "loss": [1.0]},
    lambda state: {**state, "epoch": 3},
    lambda state: {"models": {"G": prefixed("module._orig_mod.", state)}},
    lambda state: {"state_dict": prefixed("generator.", state) | JUDGE},
    lambda state: {"format": 1, "script": "dcgan.py", "G": state},  # a snapshot of old
])  # fmt: skip
def test_a_state_dict_is_found_in_whatever_wraps_it(G, wrap):
    torch.save(wrap(G.state_dict()), "wrapped.pt")
    assert torch.equal(load_generator("wrapped.pt")[0](Z), G(Z))


OTHER = """
import argparse
import beside
from torch import nn
argparse.ArgumentParser().parse_args()  # the flags are another script's

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 600), nn.Tanh(), nn.Unflatten(1, (3, 20, 10)))
class Tall(Net):
    def forward(self, z):
        assert z.shape[2:] == (1, 1)
        return super().forward(z.flatten(1))
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
    torch.save(prefixed("0.", layer.state_dict()), "other.pt")
    return layer


@pytest.mark.parametrize("name", ["Net", "Tall"])
def test_a_class_of_any_file_takes_two_or_four_dimensions(layer, capsys, name):
    expected = torch.tanh(layer(latents(range(4), 6))).view(-1, 3, 20, 10)
    images = samples_of(f"other.pt --samples 4 --generator models/other.py:{name}")
    assert close(images, images_of(nn.Identity(), expected))
    assert "assumed" not in capsys.readouterr().out
    message = refusal("other.pt --generator models/other.py:Nowhere")
    assert message.endswith(":Nowhere: not loaded; takes FILE.py:CLASS ('Nowhere')")


MINE = """
import dcgan
class Mine(dcgan.Generator):
    def forward(self, z, y=None):
        return -super().forward(z, y)
"""


def test_an_edited_generator_is_refused_without_its_class(layer):
    """It is called with the arguments of the trainer's."""
    Path("mine.py").write_text(MINE)
    args = dcgan.parse_args("--size 16 --z-dim 8 --g-width 4 --out run".split())
    for name, cls in ("own.pt", dcgan.Generator), ("mine.pt", runpy.run_path("mine.py")["Mine"]):
        torch.manual_seed(0)
        state = dcgan.new_state({"G": varied(cls(**SHAPE, classes=2))}, 1, ["cat", "dog"])
        dcgan.save(state, args, name, ["G_ema", "epoch", "step", "classes"])
    own = f"--generator {dcgan.__file__}:Generator"
    images = samples_of("run/own.pt --samples 3")
    assert close(images, samples_of(f"run/own.pt --samples 3 {own}"))
    assert close(255 - images, samples_of("run/mine.pt --samples 3 --generator mine.py:Mine"))
    assert "(its layers were edited; interpolate.py --generator takes " in refusal("run/mine.pt")


# ---- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
    ("--steps 0", "--steps 0: must be above 0"),
    ("--seeds 3", "--seeds: takes two or more"),
    ("--seeds 5-3", "--seeds: '5-3' is not a list such as 3,17,40-42"),
    ("--seeds 99999999999999999999", "is not a list such as 3,17,40-42"),
    ("--traverse 3 --loop", "--loop: is for interpolation, not for traverse"),
    ("--arithmetic (,)+3", "is not a list such as 3,17,40-42"),
    ("--arithmetic 3-4 --out a.gif", "--out a.gif: takes .png"),
    ("--traverse 0 --seeds 1,2", "--seeds: is for interpolation and between, not for traverse"),
    ("--dims 9", "--dims: is for traverse, not for interpolation"),
    ("--out i.mp4", "--out i.mp4: takes .png, .gif, .webp"),
    ("--samples 9 --out a.tar", "--out a.tar: takes .png, .npz, a folder"),
])  # fmt: skip
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


HUGE = torch.zeros(1).expand(10**6, 1024, 4, 4)  # a kilobyte that unfolds to 65 GB
STATE = generator().state_dict()
DIVERGED = STATE | {"main.1.bias": torch.full((8,), torch.nan)}
LARGE_KERNEL = examples_generator(kernel=5).state_dict()


@pytest.mark.parametrize("saved, words", [
    ({"main.0.weight": Hostile()}, "no state dict that torch.save wrote"),
    ({"G_ema": None, "script": "dcgan.py"}, "no tensor main.0.weight in G"),
    ({"netG": STATE, "ema": STATE}, "(it holds several; --key takes one of netG, ema)"),
    ({"main.0.weight": HUGE}, "main.0 is no convolution"),
    (LARGE_KERNEL, "other networks; main.3 has a kernel of 5, where 4 doubles the size)"),
    ([1, 2], "cannot be used as a generator"),
    ({}, "(interpolate.py --generator takes other networks; no tensor main.0.weight in it)"),
    (dcgan.Discriminator(16, 4).state_dict(), "cannot be used as a generator"),
    (DIVERGED, "its weights are not finite; the training diverged"),
])  # fmt: skip
def test_what_is_no_generator_is_refused_in_one_line(G, saved, words):
    torch.save(saved, "g.pt")
    message = refusal("g.pt")
    assert message.startswith("g.pt: ")
    assert words in message
    assert os.listdir() == ["g.pt"]  # no code has made a folder


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_file_that_is_no_state_dict_is_refused(G):
    damaged = "cut short, damaged, or no state dict that torch.save wrote"
    Path("cut.pt").write_bytes(Path("g.pt").read_bytes()[:3000])
    assert damaged in refusal("cut.pt")
    Path("pickle.pt").write_bytes(pickle.dumps(Hostile()))
    assert damaged in refusal("pickle.pt")
    np.savez("s.npz", mu=np.zeros(4), sigma=np.zeros((4, 4)))
    assert damaged in refusal("s.npz")
    torch.jit.script(nn.Linear(2, 3)).save("script.pt")
    assert damaged in refusal("script.pt")
    assert refusal("none.pt").startswith("none.pt: cannot be read: No such file")
    assert "cannot be read: " in refusal("a" * 300)  # too long
    assert not Path("hostile-code-ran").exists()


@pytest.mark.parametrize("out", ["s.png", "s.npz", "fake"])
@pytest.mark.parametrize("module, name", [(os, "fsync"), (interpolate, "sample")])
def test_a_full_disk_or_memory_is_one_line_and_leaves_nothing_half_written(
    G, monkeypatch, out, module, name
):
    Path("s.npz").write_bytes(b"whole")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(module, name, Mock(side_effect=full))
    message = refusal(f"g.pt --samples 9 --out {out}")
    assert "not written; if memory is short, try a smaller --batch-size (" in message
    assert "No space left on device" in message
    assert Path("s.npz").read_bytes() == b"whole"
    assert {path.name for path in Path().rglob("*")} <= {"g.pt", "s.npz", "fake", "samples.json"}


# ---- Places, notebooks, standard output ---------------------------------------------------------


def test_pictures_go_into_the_run_folder_and_a_tilde_is_the_home_folder(G, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Path("run").mkdir()
    for checkpoint in ("~/run", "~/run/checkpoint.pt", "~/run/snapshots/epoch_0003.pt"):
        args = interpolate.parse_args([checkpoint, "--samples", "9"])
        assert args.out == tmp_path / "run" / "samples.png"
    assert interpolate.parse_args(["other/g.pth"]).out == Path("other/interpolation.png")
    assert interpolate.parse_args(["g.pt", "--out=~/i.png"]).out == tmp_path / "i.png"
    assert load_generator("~/g.pt")[1]["z_dim"] == 8


def test_in_a_notebook_stdout_may_be_no_file(G, monkeypatch):
    monkeypatch.setattr(sys, "argv", [SCRIPT, "g.pt", "--samples", "1"])
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    runpy.run_path(SCRIPT, run_name="__main__")
    assert Path("samples.png").exists()


def test_a_console_that_lacks_a_letter_ends_no_run_from_standard_input(G, monkeypatch):
    Path("g.pt").rename("gé→.pt")
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "argv", ["-", "gé→.pt", "--samples", "1"])
    monkeypatch.setattr(sys, "stdout", console)
    exec(Path(SCRIPT).read_text(encoding="utf-8"), {"__name__": "__main__"})  # without __file__
    assert b"g??.pt: " in console.buffer.getvalue()
