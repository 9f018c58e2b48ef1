"""--conditional in trainers, interpolate.py and fid.py; spectral and stable rank normalization."""

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

import dcgan
import fid
import interpolate
import wgan
import wgan_gp

TRAINERS = {"dcgan": dcgan, "wgan": wgan, "wgan_gp": wgan_gp}
SECOND = {"dcgan": dcgan.Discriminator, "wgan": wgan.Critic, "wgan_gp": wgan_gp.Critic}
TINY = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 16 --device cpu".split()

trainers = pytest.mark.parametrize("script", TRAINERS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with 83 small images of three classes in images.npz."""
    pixels = np.random.default_rng(1).integers(0, 256, (83, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(83) % 3 * 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script, *flags, data="images.npz"):
    TRAINERS[script].main(["--data", data, *TINY, "--conditional", *map(str, flags)])


def load(path):
    return torch.load(path, weights_only=True)


def refusal(main, *flags):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, flags)])
    assert "\n" not in str(stop.value)
    return str(stop.value)


# ---- Networks -----------------------------------------------------------------------------------


@trainers
def test_the_projection_is_the_formula_written_out(script):
    """f(x, y) = y' V phi(x) + psi(phi(x)), phi summed over its pixels, in float64."""
    norm = "none"
    torch.manual_seed(1)
    f = SECOND[script](16, 4, norm, classes=3).double().eval()
    x, y = torch.randn(5, 3, 16, 16).double(), torch.eye(3).double()[[0, 1, 2, 1, 0]]
    phi = x
    for layer in [*f.main][:-1]:
        phi = layer(phi)
    V = f.embed.weight  # (channels, classes)
    for i, label in enumerate([0, 1, 2, 1, 0]):
        psi = (phi[i] * f.main[-1].weight[0]).sum() + f.main[-1].bias[0]
        expected = psi + sum(V[c, label] * phi[i, c].sum() for c in range(len(V)))
        assert f(x, y)[i].item() == pytest.approx(expected.item(), rel=1e-12)


@trainers
def test_a_label_changes_its_own_samples_score_and_no_other(script):
    torch.manual_seed(1)
    f = SECOND[script](16, 4, "none", classes=3)
    with torch.no_grad():
        f.embed.weight.mul_(50)
    x, y = torch.randn(4, 3, 16, 16), torch.eye(3)[[0, 1, 2, 0]]
    other = torch.eye(3)[[0, 1, 1, 0]]
    changed = (f(x, y) - f(x, other)).abs()
    assert changed[2] > 1e-3 and changed[[0, 1, 3]].max() == 0
    G = TRAINERS[script].Generator(16, 8, 4, classes=3).eval()
    z = torch.randn(4, 8)
    a, b = G(torch.cat([z, y], 1)), G(torch.cat([z, other], 1))
    changed = (a - b).flatten(1).abs().amax(1)
    assert changed[2] > 1e-4 and changed[[0, 1, 3]].max() == 0


def test_the_penalty_of_a_critic_that_is_linear_for_each_class():
    """f(x, y) = <w_y, x> has gradient w_y everywhere: (‖w_y‖ - 1)² on average, norms per sample."""
    w = torch.randn(3, 3 * 8 * 8, dtype=torch.float64)
    w *= torch.tensor([[0.5], [1.0], [3.0]]) / w.norm(dim=1, keepdim=True)
    y = torch.eye(3, dtype=torch.float64)[[2, 0, 1, 2, 2]]

    def critic(x, y):
        return ((y @ w) * x.flatten(1)).sum(1)

    real, fake = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    penalty, norms = wgan_gp.gradient_penalty(partial(critic, y=y), real, fake)
    assert norms.tolist() == pytest.approx([3, 0.5, 1, 3, 3])
    assert penalty.item() == pytest.approx((3 * 4 + 0.25) / 5)


@trainers
def test_fakes_have_the_labels_of_the_real_batch(script, monkeypatch):
    """Everywhere a class goes in, beside latents, reals, fakes and x^, it is that of the batch."""
    module, seen = TRAINERS[script], {"G": [], "f": []}
    torch.manual_seed(2)
    G, f = module.Generator(16, 8, 4, classes=3), SECOND[script](16, 4, classes=3)
    forward, judge = G.forward, f.forward
    G.forward = lambda z: seen["G"].append(z[:, 8:]) or forward(z)
    f.forward = lambda x, y: seen["f"].append(y) or judge(x, y)
    opts = [torch.optim.SGD(net.parameters(), 0.01) for net in (G, f)]
    batches = [(torch.randn(6, 3, 16, 16), torch.eye(3)[torch.randint(3, (6,))]) for _ in range(3)]
    batches = batches[:1] if script == "dcgan" else batches
    extra = {"dcgan": (), "wgan": (0.01,), "wgan_gp": (10.0,)}[script]
    module.train_step(G, f, *opts, batches, 8, *extra)
    codes = [y for _, y in batches]
    assert all(map(torch.equal, seen["G"], codes + [codes[-1]] * (script != "dcgan")))
    given = [part for y in seen["f"] for part in y.split(6)]  # WGAN-GP scores both in one batch
    each = {"dcgan": 2, "wgan": 2, "wgan_gp": 3}[script]
    wanted = [y for y in codes for _ in range(each)] + [codes[-1]]
    assert len(given) == len(wanted) and all(map(torch.equal, given, wanted))


# ---- Spectral and stable rank normalization -----------------------------------------------------


def singular_values(weight):
    return torch.linalg.svdvals(weight.detach().double().flatten(1))


def layers(net):
    return [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def test_spectral_norm_is_torchs():
    """The same weights and gradients as torch's own after as many power iterations from one u."""
    torch.manual_seed(1)
    ours, theirs = nn.Conv2d(3, 8, 4).double(), nn.Conv2d(3, 8, 4).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 9, 9).double()
    register_parametrization(ours, "weight", dcgan.SpectralNorm(ours.weight))
    spectral_norm(theirs)
    pair = theirs.parametrizations.weight[0]
    for _ in range(300):  # from other vectors to the same ones
        theirs(x)
    sign = torch.sign(pair._u @ ours.parametrizations.weight[0].u)
    assert torch.allclose(pair._u * sign, ours.parametrizations.weight[0].u)
    for net in (ours, theirs):
        net(x).square().sum().backward()
    a, b = (net.parametrizations.weight.original.grad for net in (ours, theirs))
    assert torch.allclose(ours.weight, theirs.weight) and torch.allclose(a, b)


@pytest.mark.parametrize("shape", [(16, 8, 4, 4), (6, 40), (40, 6), (1, 8, 4, 4), (5, 1)])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 1.0])
def test_stable_rank_against_the_singular_values(shape, share):
    """Algorithm 1 through a float64 SVD: sigma_1 = 1, its pair unchanged, the others scaled by one
    factor, so that sum sigma_i² is share x rank, or less where it was less."""
    torch.manual_seed(3)
    weight = torch.randn(shape, dtype=torch.float64)
    W = wgan.StableRank(weight, share)(weight).flatten(1)
    U, S, V = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    most = max(1, share * min(W.shape))
    rest = (S[1:] / S[0]).square().sum()
    factor = min(1, ((most - 1) / rest).sqrt().item()) if len(S) > 1 else 1
    scaled = torch.cat([torch.ones(1), factor * S[1:] / S[0]])
    torch.testing.assert_close(W, (U * scaled) @ V)
    assert singular_values(W).square().sum() <= most + 1e-9 or len(S) == 1


@pytest.mark.parametrize("kind", ["dcgan", "spectral", "stable-rank"])
def test_norms_hold_after_100_updates_and_after_a_resume(folder, kind):
    script = "dcgan" if kind == "dcgan" else "wgan"
    flags = ["--d-norm", "spectral"] if kind == "dcgan" else ["--constraint", kind]
    flags += ["--precision", "bf16", "--lr", 1e-4]
    flags += ["--n-critic", 1] if script == "wgan" else []
    run(script, *flags, "--epochs", 20, "--out", "whole")
    run(script, *flags, "--epochs", 12, "--out", "parts")
    run(script, "--epochs", 20, "--out", "parts", "--resume")
    saved, parts = load("whole/checkpoint.pt"), load("parts/checkpoint.pt")
    name = "D" if script == "dcgan" else "critic"
    assert saved["step"] == 100 and saved[name].keys() == parts[name].keys()
    assert all(torch.equal(w, parts[name][key]) for key, w in saved[name].items())
    norm = "spectral" if kind != "stable-rank" else 0.5
    net = SECOND[script](16, 4, norm, classes=3).eval()
    before = [layer.weight.clone() for layer in layers(net)]
    net.load_state_dict(saved[name])
    for layer, old in zip(layers(net), before, strict=True):
        S = singular_values(layer.weight)
        assert S[0].item() == pytest.approx(1, abs=0.1)  # less where two values cross
        if kind == "stable-rank":
            assert S.square().sum() <= max(1, 0.5 * len(S)) * 1.05
        assert not torch.equal(layer.weight, old)
    with torch.no_grad():
        for _ in range(300):
            net.train()(torch.zeros(1, 3, 16, 16), torch.eye(3)[:1])
    for layer in layers(net.eval()):
        assert singular_values(layer.weight)[0].item() == pytest.approx(1, abs=2e-3)


def test_a_spectral_critic_is_not_clipped(folder):
    run("wgan", "--constraint", "spectral", "--epochs", 1)
    critic = load("runs/wgan/checkpoint.pt")["critic"]
    assert max(w.abs().max() for k, w in critic.items() if k.endswith("original")) > 0.02
    assert not any("running_mean" in key for key in critic)


# ---- Runs ---------------------------------------------------------------------------------------


@trainers
def test_a_conditional_run_resumes_to_the_bit_and_draws_a_row_per_class(folder, script):
    flags = ["--n-critic", 2] if script != "dcgan" else []
    run(script, *flags, "--epochs", 4, "--out", "whole")
    run(script, *flags, "--epochs", 3, "--out", "parts")
    run(script, "--epochs", 4, "--out", "parts", "--resume")
    saved, parts = load("whole/checkpoint.pt"), load("parts/checkpoint.pt")
    for key in ("G", "G_ema", "D", "critic"):
        for name, tensor in saved.get(key, {}).items():
            assert torch.equal(tensor, parts[key][name]), name
    assert saved["classes"] == ["0", "10", "20"] and saved["generator"]["classes"] == 3

    module = TRAINERS[script]
    G = module.Generator(**saved["generator"])
    G.load_state_dict(saved["G_ema"])
    grid = np.asarray(Image.open("whole/samples/epoch_0004.png"))
    assert grid.shape == (3 * 18 + 2, 8 * 18 + 2, 3)
    for row in range(3):  # of the same eight latents
        z = torch.cat([module.latents(range(8), 8), torch.eye(3)[[row] * 8]], 1)
        cells = grid[2 + 18 * row : 18 + 18 * row, 2:].reshape(16, 8, 18, 3)[:, :, :16]
        assert np.array_equal(cells.transpose(1, 3, 0, 2), module.sample(G, z))
    snapshot = load("whole/snapshots/epoch_0004.pt")
    assert snapshot["classes"] == saved["classes"]


def test_labels_reach_their_images(folder, monkeypatch):
    """Images of one colour per class arrive with that class, in every batch of every epoch."""
    pixels = np.zeros((50, 16, 16, 3), np.uint8)
    pixels[np.arange(50), :, :, np.arange(50) % 3] = 255
    np.savez("colours.npz", images=pixels, labels=np.arange(50) % 3 + 4)
    train_step, seen = dcgan.train_step, []

    def spy(batches, **rest):
        seen.extend((real.clone(), y.clone()) for real, y in batches)
        return train_step(batches=batches, **rest)

    monkeypatch.setattr(dcgan, "train_step", spy)
    run("dcgan", "--epochs", 2, data="colours.npz")
    assert len(seen) == 6
    for real, y in seen:
        assert torch.equal(real[:, :, 0, 0] > 0, y > 0)


def test_classes_of_a_part_of_the_set_are_counted_anew(folder):
    run("dcgan", "--classes", "20", "0", "--epochs", 1)
    saved = load("runs/dcgan/checkpoint.pt")
    assert saved["classes"] == ["0", "20"] and saved["G"]["main.0.weight"].shape[0] == 10


def test_a_resumed_run_insists_on_its_classes(folder):
    run("dcgan", "--epochs", 1)
    arrays = np.load("images.npz")
    np.savez("images.npz", images=arrays["images"], labels=arrays["labels"] + 1)
    error = refusal(dcgan.main, "--resume", "--epochs", 2)
    assert error.endswith(
        "classes does not fit this run (['0', '10', '20'], not ['1', '11', '21'])"
    )


@trainers
def test_a_run_from_before_there_were_classes_goes_on_and_is_read(folder, script):
    module = TRAINERS[script]
    flags = ["--data", "images.npz", *TINY]
    module.main([*flags, "--epochs", "1"])
    path = f"runs/{script}/checkpoint.pt"
    saved = load(path)
    assert saved.pop("classes") == [] and "classes" not in saved["generator"]
    for name in ("conditional", "d_norm", "constraint", "stable_rank"):
        saved["args"].pop(name, None)
    torch.save(saved, path)
    assert interpolate.load_generator(path)[1]["classes"] == []
    module.main(["--resume", "--epochs", "2", "--out", f"runs/{script}"])
    assert load(path)["epoch"] == 2


def test_two_processes_train_on_classes(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [wgan_gp.__file__, "--data", "images.npz", *TINY, "--conditional", "--epochs", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert load("runs/wgan_gp/checkpoint.pt")["classes"] == ["0", "10", "20"]


# ---- interpolate.py and fid.py ------------------------------------------------------------------


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A conditional snapshot whose image is of its class's colour, and its generator."""
    torch.manual_seed(1)
    G = dcgan.Generator(16, 8, 4, classes=3)
    for norm in G.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var *= 1e-3
    shape = {"size": 16, "z_dim": 8, "width": 4, "norm": "batch", "classes": 3}
    saved = {
        "format": 2,
        "script": "dcgan.py",
        "generator": shape,
        "args": {},
        "epoch": 1,
        "step": 1,
    }
    path = tmp_path_factory.mktemp("conditional") / "snapshot.pt"
    names = ["cat", "dog", "big ship"]
    torch.save(saved | {"G_ema": G.state_dict(), "classes": names}, path)
    return path, G.eval()


def images(G, seeds, codes):
    z = torch.cat([dcgan.latents(seeds, 8), torch.as_tensor(codes).float()], 1)
    return dcgan.sample(G, z)


def cells(path, rows, columns, size=16, scale=8):
    """Images (rows, columns) of a labelled grid, from the bottom of each row up."""
    page = np.asarray(Image.open(path))
    found, bottom = [], page.shape[0]
    while len(found) < rows:
        top = bottom - 4 - size * scale
        row = page[top : bottom - 4 : scale, 4:]
        found.append(
            [row[:, i * (size * scale + 4) :][:, : size * scale : scale] for i in range(columns)]
        )
        bottom = top - 17 * (page[top - 17 : top].min() < 128)
    return np.array(found[::-1]).transpose(0, 1, 4, 2, 3)


def test_rows_go_through_the_classes(conditional, tmp_path, monkeypatch):
    path, G = conditional
    monkeypatch.chdir(tmp_path)
    interpolate.main([str(path), "--seeds", "1-4", "--steps", "3"])
    for row, (a, b) in zip(cells("interpolation.png", 3, 3), [(1, 2), (2, 3), (3, 4)]):
        expected = images(G, [a, b], torch.eye(3)[[a - 1] * 2])
        assert np.array_equal(row[[0, 2]], expected)
    interpolate.main([str(path), "--seeds", "1,2,3", "--steps", "3", "--class", "big ship"])
    row = cells("interpolation.png", 2, 3)[1]
    assert np.array_equal(row[[0, 2]], images(G, [2, 3], torch.eye(3)[[2, 2]]))


def test_between_two_classes_at_one_latent(conditional, tmp_path, monkeypatch):
    path, G = conditional
    monkeypatch.chdir(tmp_path)
    interpolate.main([str(path), "--between", "cat", "dog", "--seeds", "5,6", "--steps", "3"])
    codes = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]]
    for row, seed in zip(cells("interpolation.png", 2, 3), (5, 6)):
        assert np.array_equal(row, images(G, [seed] * 3, codes))
    interpolate.main([str(path), "--between", "cat", "dog", "--seeds", "5,6", "--out", "a.gif"])
    with Image.open("a.gif") as animation:
        assert animation.n_frames > 3
    flags = "--between", "cat", "dog", "--steps", "3", "--out", "b.gif"
    for seeds, frames in (("5,6", 6), ("5", 3)):  # another seed begins anew
        interpolate.main([str(path), *flags, "--seeds", seeds])
        with Image.open("b.gif") as animation:
            assert animation.n_frames == frames


@pytest.mark.parametrize("names, turns", [((), [0, 1, 2, 0, 1]), (("dog", "cat"), [1, 0, 1, 0, 1])])
def test_samples_are_in_equal_shares(conditional, tmp_path, monkeypatch, names, turns):
    path, G = conditional
    monkeypatch.chdir(tmp_path)
    flags = [str(path), "--samples", "5", *(["--class", *names] if names else [])]
    expected = images(G, range(5), torch.eye(3)[turns])
    interpolate.main([*flags, "--out", "fakes.npz"])
    arrays = np.load("fakes.npz")
    assert np.array_equal(arrays["images"].transpose(0, 3, 1, 2), expected)
    assert arrays["labels"].tolist() == [i % (len(names) or 3) for i in range(5)]
    interpolate.main([*flags, "--out", "fakes/"])
    found = [np.asarray(Image.open(f"fakes/{i:06}.png")).transpose(2, 0, 1) for i in range(5)]
    assert np.array_equal(found, expected)
    interpolate.main(flags)
    assert np.array_equal(cells("samples.png", 2, 3)[0], expected[:3])
    if not names:
        error = refusal(interpolate.main, *flags, "--out", "fakes/", "--class", "cat")
        assert "has other images than these" in error


@pytest.mark.parametrize(
    "kind", [["--grid", "1,2,3"], ["--traverse", "1"], ["--arithmetic", "1-2+3"]]
)
def test_other_pictures_are_of_the_first_class(conditional, tmp_path, monkeypatch, capsys, kind):
    path, G = conditional
    monkeypatch.chdir(tmp_path)
    interpolate.main([str(path), *kind, "--class", "dog", "--out", "a.png"])
    assert "pixels, class dog\n" in capsys.readouterr().out
    interpolate.main([str(path), *kind, "--class", "cat", "--out", "b.png"])
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()
    if kind[0] == "--traverse":
        directions = interpolate.principal_directions(G, 8)
        assert directions.shape == (8, 8)


@pytest.fixture
def inception(tmp_path_factory):
    """The flags of fid.py with a random network in place of the published one."""
    torch.manual_seed(1)
    options = {"num_classes": 1008, "aux_logits": False, "init_weights": False}
    folder = tmp_path_factory.mktemp("inception")
    net = torchvision.models.inception_v3(weights=None, **options)
    torch.save(net.state_dict(), folder / "inception.pth")
    return ["--dims", "64", "--weights", str(folder / "inception.pth"), "--allow-few"]


def test_fid_samples_classes_in_equal_shares_and_tells_them_apart(
    conditional, inception, tmp_path, monkeypatch, capsys
):
    path, G = conditional
    monkeypatch.chdir(tmp_path)
    real = np.random.default_rng(0).integers(0, 256, (90, 16, 16, 3), np.uint8)
    for i, pixels in enumerate(real):
        folder = Path("real", ["cat", "big ship", "mouse"][i % 3])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    fid.main(["real", str(path), *inception, "--n", "60", "--per-class", "--json", "all.json"])
    printed = capsys.readouterr().out
    assert "cat: FID-64" in printed and "(N 20 against 30)" in printed and "dog" not in printed
    found = json.loads(Path("all.json").read_text())["results"][0]

    codes = torch.eye(3)[[i % 3 for i in range(60)]]
    fakes = images(G, range(60), codes).permute(0, 2, 3, 1).numpy()
    np.save("fakes.npy", fakes)
    np.save("cats.npy", fakes[::3])
    fid.main(["real", "fakes.npy", *inception, "--json", "all.json"])
    whole = json.loads(Path("all.json").read_text())["results"][0]
    fid.main(["real/cat", "cats.npy", *inception, "--json", "all.json"])
    cats = json.loads(Path("all.json").read_text())["results"][0]
    assert found["FID-64"] == pytest.approx(whole["FID-64"], rel=1e-6)
    assert found["FID-64 cat"] == pytest.approx(cats["FID-64"], rel=1e-6)
    assert "FID-64 big ship" in found and "FID-64 mouse" not in found

    for fake in ("fakes.npy", "real/cat"):
        error = refusal(fid.main, "real", fake, *inception, "--per-class")
        assert error.startswith("--per-class: real (big ship, cat, mouse) and ")
        assert f"{fake} (" in error and error.endswith(") have no classes in common")


# ---- Bad input ----------------------------------------------------------------------------------


def test_one_line_says_what_is_wrong(conditional, folder, capsys):
    np.savez("one.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    for module in TRAINERS.values():
        error = refusal(module.main, "--data", "one.npz", *TINY, "--conditional")
        assert error == "--conditional: one.npz has one class, 0" or "one class" in error
    path, _ = conditional
    error = refusal(interpolate.main, path, "--class", "cat", "horse")
    assert error == f"class horse: {path} has cat, dog, big ship"
    saved = load(path)
    torch.save(saved | {"classes": []}, "plain.pt")
    assert "was trained without --conditional" in refusal(
        interpolate.main, "plain.pt", "--between", "cat", "dog"
    )
    for classes in (["a"] * 11, [1, 2, 3], "cat", 7):
        torch.save(saved | {"classes": classes}, "wrong.pt")
        assert "wrong.pt: " in refusal(interpolate.main, "wrong.pt")


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--stable-rank 0 --constraint stable-rank", "--stable-rank 0.0: must be above 0"),
        ("--stable-rank 1.1 --constraint stable-rank", "--stable-rank 1.1: must be above 0"),
        ("--constraint spectral --clip 0.1", "--clip: has no effect on --constraint spectral"),
        ("--stable-rank 0.3", "--stable-rank: has no effect on --constraint clip"),
        ("--constraint orthogonal", "--constraint: invalid choice"),
    ],
)
def test_constraints_that_make_no_sense(capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        wgan.parse_args(flags.split())
    assert stop.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_the_log_of_a_conditional_run_is_the_usual_one(folder):
    run("wgan_gp", "--epochs", 2)
    rows = [*csv.DictReader(Path("runs/wgan_gp/log.csv").read_text().splitlines())]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["wasserstein"])) for row in rows)
