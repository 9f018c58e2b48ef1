"""fid.py: against pytorch-fid and torch-fidelity, closed forms, and what users hand it; and
benchmarks/features.py, what a trained discriminator has learned."""

import hashlib
import importlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import zipfile
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from PIL import Image
from torch import nn

import dcgan
import fid
import wgan

ROOT = Path(fid.__file__).resolve().parent
sys.path.append(str(ROOT / "tests" / "benchmarks"))
features = importlib.import_module("features")


class Light:
    """Stands for Inception, in no time: features are random sums of an image's 8 x 8 pixels."""

    seen = 0  # images, of all networks

    def __init__(self, weights, dims=64, device="cpu", dtype=None, tf32=False):
        self.device, self.float64_device = torch.device(device), device
        Light.dtype = dtype
        self.matrix = torch.randn(192, dims, generator=torch.Generator().manual_seed(0))

    def __call__(self, images):
        Light.seen += len(images)
        pool = nn.AdaptiveAvgPool2d(8)
        rows = [pool(torch.tensor(image) / 255).flatten() for image in images]
        return torch.stack(rows) @ self.matrix


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def light(monkeypatch):
    """fid.py with the light network, whose weights w.pth stands for."""
    monkeypatch.setattr(fid, "Inception", Light)
    torch.save({}, "w.pth")


def run(command, dims=64):
    """The results of fid.py with these arguments, a dict for each FAKE."""
    flags = f"--allow-few --device cpu --weights w.pth --dims {dims} --json r.json"
    fid.main(f"{flags} {command}".split())
    return json.loads(Path("r.json").read_text())["results"]


def distances(command, dims=64):
    """The FID of each FAKE."""
    return [row[f"FID-{dims}"] for row in run(command, dims)]


def refusal(command, dims=64):
    """The line that a command ends in."""
    with pytest.raises(SystemExit) as stop:
        run(command, dims)
    assert "\n" not in stop.value.code
    return stop.value.code


def noise(seed, n, height=16, width=16):
    """Random images of patches, uint8 (n, height, width, 3), no two alike."""
    rng = np.random.default_rng(seed)
    images = []
    for tone in rng.integers(0, 256, (n, 4, 4, 3), np.uint8):
        image = Image.fromarray(tone).resize((width, height))
        noisy = image + rng.normal(0, 20, (height, width, 3))
        images.append(noisy.clip(0, 255).astype(np.uint8))
    return np.stack(images)


def write(folder, images):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(Path(folder, f"{i:03}.png"))


def statistics(path, d=64, **others):
    arrays = {"mu": np.zeros(d), "sigma": np.eye(d)}
    np.savez(path, **arrays | others)


# ---- The network, against pytorch-fid -----------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    """Random weights of the whole network, in the names and shapes of the published file."""
    options = {"num_classes": 1008, "aux_logits": False, "init_weights": False}
    state = torchvision.models.inception_v3(weights=None, **options).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, x in state.items():
        if name.endswith("running_var"):
            x.uniform_(0.5, 1.5, generator=generator)
        elif x.dim() == 1:
            mean = float(name.endswith("bn.weight"))
            x.normal_(mean, 0.1, generator=generator)
        elif x.dim() > 1:
            x.normal_(0, (2 / x[0].numel()) ** 0.5, generator=generator)
    return state


@pytest.fixture
def pytorch_fid(weights, monkeypatch):
    """The package pytorch-fid with the same weights, and with a square root of singular matrices,
    which scipy's is not: a matrix of the same trace, of which alone it makes use."""
    import pytorch_fid.fid_score as score
    import pytorch_fid.inception as inception

    def sqrtm(matrix, disp):
        return np.diag(np.sqrt(scipy.linalg.eigvals(matrix))), None

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: dict(weights))
    monkeypatch.setattr(score, "linalg", SimpleNamespace(sqrtm=sqrtm))
    return score


def test_features_are_those_of_pytorch_fid_and_in_bfloat16_close(weights, pytorch_fid):
    image = noise(0, 1, 40, 32)[0].transpose(2, 0, 1)
    network = pytorch_fid.InceptionV3([0, 1, 2, 3]).eval()
    with torch.no_grad():
        maps = network(torch.tensor(image)[None] / 255)
    for dims, expected in zip((2048, 768, 192, 64), reversed(maps)):
        found = fid.Inception(weights, dims)([image])
        assert found.shape == (1, dims)
        assert (found - expected.mean((2, 3))).abs().max() <= 1e-5 * found.abs().max()
    rough = fid.Inception(weights, 64, dtype=torch.bfloat16)([image])
    assert rough.dtype == torch.float32
    assert 1e-6 < (rough - found).norm() / found.norm() < 0.05


def test_weights_may_end_after_the_layer_and_the_first_wrong_one_is_named(weights):
    write("real", noise(0, 4))
    assert "w.pth: cannot be read: No such file" in refusal("real real")
    part = {name: x for name, x in weights.items() if name.startswith("Conv2d")}
    torch.save(part, "w.pth")
    assert distances("real real", dims=192)[0] < 1e-4
    line = refusal("real real", dims=768)
    assert "not the Inception weights" in line
    assert "(Mixed_5b.branch1x1.conv.weight is missing)" in line
    part["Conv2d_1a_3x3.bn.weight"] = torch.ones(3)
    torch.save(part, "w.pth")
    assert "size mismatch for Conv2d_1a_3x3.bn.weight" in refusal("real real")


def test_the_number_is_pytorch_fids_and_statistics_travel_both_ways(weights, pytorch_fid, capsys):
    def theirs(*paths):
        return pytorch_fid.calculate_fid_given_paths(paths, 1, "cpu", 64, 0)

    torch.save(weights, "w.pth")
    for seed, name in enumerate(("real", "fake")):
        write(name, noise(seed, 3, 32, 32))
        Image.fromarray(noise(seed, 1, 50, 40)[0]).save(f"{name}/other.png")
    (value,) = distances("real fake --save-stats ours.npz")
    assert value > 1e-3
    assert theirs("real", "fake") == pytest.approx(value, rel=1e-4)
    notice, line = capsys.readouterr().out.splitlines()[-2:]
    assert notice == "ours.npz: statistics of real (N 4), width 64"
    assert line == f"FID-64 {value:.6f}  fake (N 4) against real (N 4)"
    pytorch_fid.save_fid_stats(["real", "theirs.npz"], 1, "cpu", 64, 0)
    for stats in ("ours.npz", "theirs.npz"):
        assert distances(f"{stats} fake") == pytest.approx([value], rel=1e-5)
        assert theirs(stats, "fake") == pytest.approx(value, rel=1e-4)
    assert "(N unknown)" in capsys.readouterr().out
    Path("w.pth").unlink()  # statistics need no network
    run("ours.npz theirs.npz --save-stats again.npz")
    assert distances("theirs.npz again.npz")[0] < 1e-4


# ---- The distances ------------------------------------------------------------------------------


@pytest.mark.parametrize("n, m", [(60, 60), (10, 20), (1, 1)])
def test_the_frechet_distance_of_any_ranks_against_singular_values(n, m):
    rng = np.random.default_rng(0)
    mu_a, mu_b = rng.normal(size=(2, 50))
    x = rng.normal(size=(n, 50))
    y = rng.normal(size=(m, 50))
    sigma_a = x.T @ x / n
    sigma_b = y.T @ y / m
    singular = np.linalg.svd(x @ y.T, compute_uv=False) / (n * m) ** 0.5
    trace = np.trace(sigma_a + sigma_b) - 2 * singular.sum()
    exact = ((mu_a - mu_b) ** 2).sum() + trace
    a = fid.Set(mu=mu_a, root=fid.square_root(sigma_a))
    b = fid.Set(mu=mu_b, root=fid.square_root(sigma_b))
    assert fid.frechet_distance(a, b) == pytest.approx(exact, abs=1e-6)
    assert fid.frechet_distance(b, a) == pytest.approx(exact, abs=1e-6)
    assert 0 <= fid.frechet_distance(a, a) < 1e-5
    np.testing.assert_allclose(a.root.T @ a.root, sigma_a, atol=1e-10)
    assert len(a.root) <= n


@pytest.mark.parametrize("n, d", [(700, 7), (20, 50), (2, 3)])
def test_streamed_moments_are_numpys_and_rows_are_kept_with_their_numbers(n, d):
    def net(images):  # which are their own features
        return torch.from_numpy(images)

    net.device, net.float64_device = torch.device("cpu"), "cpu"
    x = np.random.default_rng(n).standard_normal((n, d), np.float32) + 1000
    args = SimpleNamespace(batch_size=7, dims=d, keep=False, inception_score=False)
    images = fid.Set("set", n, pixels=lambda numbers: x[numbers])
    streamed = fid.measure(images, net, args)
    assert streamed.n == n
    assert streamed.features is None
    np.testing.assert_allclose(streamed.mu, x.mean(0, dtype=np.float64), rtol=1e-12)
    sigma = streamed.root.T @ streamed.root
    np.testing.assert_allclose(sigma, np.cov(x.T, dtype=np.float64), atol=1e-7)
    args.keep = True
    kept = fid.measure(images, net, args)
    np.testing.assert_array_equal(kept.features, x[kept.numbers])


def two_clouds(n, m, d=16):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    y = torch.randn(m, d, generator=generator)
    return x, 0.9 * y + 0.2


def test_kid_is_that_of_torch_fidelity_and_unbiased_over_random_subsets_of_both():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = two_clouds(60, 60)
    settings = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    theirs = kid_features_to_metric(x.double(), y.double(), **settings)
    mean, std = fid.kid(x, y)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert std == 0  # of one subset, the whole
    x, y = two_clouds(400, 300)
    whole, _ = fid.kid(x, y, subsets=1)
    mean, std = fid.kid(x, y, subsets=200, subset_size=20)
    assert abs(mean - whole) < 3 * std / 200**0.5
    assert 0.1 * whole < std < 10 * whole
    assert fid.kid(x, y, subsets=200, subset_size=20) == (mean, std)
    assert fid.kid.__defaults__ == (100, 1000)  # in measuring.md
    _, std = fid.kid(x[:20], y, subsets=3)
    assert std > 0  # of y's subsets


def test_the_inception_score_is_that_of_torch_fidelity_and_at_its_ends_exact():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(95, 30, generator=torch.Generator().manual_seed(2))
    shuffled = logits[np.random.default_rng(0).permutation(95)]
    scores = []
    for rows in np.array_split(shuffled, 10):
        theirs = isc_features_to_metric(rows, 1, shuffle=False)
        scores.append(theirs["inception_score_mean"])
    mean, std = fid.inception_score(logits)
    assert mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert std == pytest.approx(np.std(scores), rel=1e-6)
    logits = torch.zeros(5000, 20)
    assert fid.inception_score(logits) == pytest.approx((1, 0))
    logits[torch.arange(5000), torch.arange(5000) // 500] = 300
    assert fid.inception_score(logits, 1) == pytest.approx((10, 0))
    assert 9.8 < fid.inception_score(logits)[0] < 9.95  # in splits of any classes


@pytest.mark.parametrize("n, m, d", [(80, 50, 3), (1500, 1100, 2)])  # below and above a block
def test_prdc_written_out_and_that_of_torch_fidelity(n, m, d):
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = (cloud.double() for cloud in two_clouds(n, m, d))
    ours = fid.prdc(real, fake)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)
    radii = torch.cdist(real, real).sort(1).values[:, 5]
    inside = torch.cdist(fake, real) <= radii
    assert ours["density"] == pytest.approx(inside.sum() / (5 * m))
    assert ours["coverage"] == pytest.approx(inside.any(0).double().mean())
    assert 0.2 < ours["recall"] < 1
    assert ours["precision"] != ours["recall"]


# ---- What is measured, and in which order -------------------------------------------------------


def test_every_kind_of_input_gives_the_same_number(light):
    images = noise(4, 6)
    write("deep/down/here", images)
    with zipfile.ZipFile("a.zip", "w") as archive:
        for path in Path("deep").rglob("*.png"):
            archive.write(path)
    np.save("a.npy", images)
    np.savez("a.npz", images=images)
    write("real", noise(0, 9))
    first, *others = distances("real deep a.zip a.npy a.npz")
    assert first > 1e-3
    assert others == pytest.approx(3 * [first], rel=1e-6)


def test_no_number_depends_on_the_names_or_the_order_of_files(light, monkeypatch, capsys):
    """Neither do those of random subsets: KID here with 5 of 12 images."""
    monkeypatch.setattr(fid, "kid", partial(fid.kid, subsets=3, subset_size=5))
    for seed, name in enumerate(("real", "fake")):
        images = noise(seed, 12)
        np.save(f"{name}.npy", images)
        np.save(f"{name}-turned.npy", images[::-1])
    (row,) = run("real.npy fake.npy --kid --prdc")
    (same,) = run("real-turned.npy fake-turned.npy --kid --prdc")
    assert row.pop("path") != same.pop("path")
    assert row == pytest.approx(same, rel=1e-6)
    assert [*row] == "n FID-64 KID-64 precision-64 recall-64 density-64 coverage-64".split()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_score_is_of_logits_without_their_bias_in_the_order_of_hashes(light, capsys):
    images = noise(1, 30)
    np.save("fake.npy", images)
    statistics("stats.npz", 2048)  # no images of REAL are needed
    fc = torch.randn(1008, 2048, generator=torch.Generator().manual_seed(1))
    torch.save({"fc.weight": fc}, "w.pth")
    (row,) = run("stats.npz fake.npy --is", dims=2048)
    pixels = images.transpose(0, 3, 1, 2)
    hashes = [hashlib.sha1(image.tobytes()).digest() for image in pixels]
    logits = Light({}, 2048)(pixels[np.argsort(hashes)]) @ fc.T
    score, std = fid.inception_score(logits)
    assert row["IS"] == pytest.approx(score, rel=1e-5)
    assert row["IS std"] == pytest.approx(std, rel=1e-5)
    assert f"  IS {row['IS']:.6f} ± {row['IS std']:.6f}  fake.npy" in capsys.readouterr().out
    assert "need images" in refusal("fake.npy stats.npz --is", dims=2048)


def test_kid_has_a_spread_where_subsets_differ(monkeypatch):
    monkeypatch.setattr(fid, "kid", lambda x, y: (0.2, 0.1))
    args = fid.parse_args(["real", "fake", "--kid"])
    net = SimpleNamespace(float64_device="cpu")
    real = fid.Set(n=1001, mu=np.zeros(2), root=np.eye(2), features=torch.eye(2))
    assert [*fid.compare(real, real, net, args)] == ["FID", "KID", "KID std"]
    fake = real._replace(n=1000)
    assert [*fid.compare(real, fake, net, args)] == ["FID", "KID"]


def test_where_files_differ_in_size_one_line_names_size(light, capsys):
    write("small", noise(0, 4, 16, 16))
    write("large", noise(1, 4, 48, 64))
    run("small large")
    line, _ = capsys.readouterr().out.splitlines()
    for words in ("(16, 16)", "(48, 64)", "--size"):
        assert words in line
    run("small large --size 0")
    run("small large --size 16")
    run("large --save-stats stats.npz")
    assert len(capsys.readouterr().out.splitlines()) == 3
    run("stats.npz small --size 16")  # the statistics stay those of large images
    assert "(48, 64)" in capsys.readouterr().out


# ---- Generators ---------------------------------------------------------------------------------


def generator(seed=0, classes=0):
    """A trainer's generator, z_dim 4, 16 x 16, whose images differ."""
    torch.manual_seed(seed)
    G = dcgan.Generator(16, 4, 4, classes=classes)
    for layer in G.main[::3]:
        layer.reset_parameters()
    G.main[1].running_var *= 1e-2
    return G.eval()


def snapshot(G, path, epoch=2, classes=()):
    """A trainer's snapshot."""
    saved = {"format": 2, "script": "dcgan.py", "epoch": epoch, "step": 10 * epoch}
    saved |= {"classes": list(classes), "G_ema": G.state_dict()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, path)


def images_of(G, seeds, codes=None):
    """What G makes of these seeds, uint8 (N, 16, 16, 3)."""
    with torch.no_grad():
        x = G(fid.latents(seeds, 4), codes)
    x = ((x + 1) * 127.5).round().byte()
    return x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", ["run", "grey.pth", "several.ckpt"])
def test_a_generator_counts_like_the_images_it_would_have_saved(light, kind, capsys):
    G = generator()
    flags = "--n 20 --seed 7"
    write("real", noise(6, 8))
    if kind == "run":
        snapshot(G, "run/checkpoint.pt")
    elif kind == "grey.pth":
        G.main[6] = nn.ConvTranspose2d(4, 1, 4, 2, 1)
        torch.save(G.state_dict(), kind)
    else:
        both = {"a": generator(1).state_dict(), "b": G.state_dict()}
        torch.save({"nets": both}, kind)
        assert "--key" in refusal(f"real {kind} {flags}")
        flags += " --key nets.b"
    write("saved", images_of(G, range(7, 27)))
    for batch_size in (3, 16):
        row, saved = run(f"real {kind} saved {flags} --batch-size {batch_size}")
        assert row["n"] == 20
        assert row["FID-64"] == pytest.approx(saved["FID-64"], rel=1e-6)
    assert ("ReLU" in capsys.readouterr().out) == (kind != "run")  # assumed of a foreign network


def test_beside_a_generator_all_images_take_its_size_or_that_of_size(light, monkeypatch, capsys):
    torch.save(generator().state_dict(), "g.pth")
    np.save("saved.npy", images_of(generator(), range(8)))
    np.save("photos.npy", noise(0, 8, 40, 48))
    (wanted,) = distances("photos.npy saved.npy --size 16")
    capsys.readouterr()
    (found,) = distances("photos.npy g.pth --n 8")
    assert found == pytest.approx(wanted, rel=1e-6)
    line = capsys.readouterr().out.splitlines()[1]
    assert "16x16, as the generator's; --size 0" in line
    (kept,) = distances("photos.npy g.pth --n 8 --size 0")
    other, same = distances("photos.npy g.pth saved.npy --n 8 --size 24")
    assert other == pytest.approx(same, rel=1e-6)
    assert len({found, kept, other}) == 3
    printed = capsys.readouterr().out
    assert "images are made" not in printed
    assert printed.count("its images are resized to 24x24") == 1
    drawn = []
    sprite = fid.sprite(16, 0)
    monkeypatch.setattr(fid, "sprite", lambda size, i: drawn.append(size) or sprite)
    run("sprites g.pth --n 8")
    assert set(drawn) == {16}
    run("sprites g.pth --n 8 --size 0")
    assert set(drawn) == {16, 32}


def test_classes_come_by_turns_and_are_measured_apart(light, capsys):
    G = generator(classes=3)
    snapshot(G, "g.pt", classes=["cat", "dog", "ship"])
    for i, name in enumerate(("cat", "mouse", "ship")):
        write(f"real/{name}", noise(i, 9))
    (row,) = run("real g.pt --n 30 --per-class")
    printed = capsys.readouterr().out
    assert f"    ship: {row['FID-64 ship']:.6f} (N 10 against 9)" in printed
    assert [*row][-3:] == ["FID-64", "FID-64 cat", "FID-64 ship"]
    fakes = images_of(G, range(30), torch.eye(3).repeat(10, 1))
    np.save("all.npy", fakes)
    np.save("ship.npy", fakes[2::3])
    assert distances("real all.npy") == pytest.approx([row["FID-64"]], rel=1e-6)
    (ship,) = distances("real/ship ship.npy")
    assert row["FID-64 ship"] == pytest.approx(ship, rel=1e-6)
    run("real all.npy --per-class")
    assert "no classes in common" in capsys.readouterr().out
    write("pair/cat", noise(3, 1))
    write("pair/dog", noise(4, 9))
    run("real pair --per-class")
    assert "    cat: too few images (N 1 against 9); --allow-few" in capsys.readouterr().out
    ten = fid.Set(labels=[0] * 10, classes=["cat"], numbers=range(10), features=torch.eye(10))
    assert fid.per_class(ten, ten, fid.parse_args(["real", "fake"])) == {}


def test_the_curve_of_snapshots_and_run_folders_and_without_matplotlib_its_table_alone(
    light, monkeypatch, capsys
):
    for epoch in (1, 2):
        snapshot(generator(epoch), f"one/snapshots/epoch_{epoch:04}.pt", epoch)
    snapshot(generator(), "two/one/snapshots/epoch_0002.pt")
    np.save("real.npy", noise(0, 9))
    command = "real.npy one --n 4 two/one/snapshots/epoch_0002.pt --plot curve.png"
    rows = run(command)
    assert "snapshots of the trainers" in refusal("real.npy real.npy --plot curve.png")
    header, *lines = Path("curve.csv").read_text().splitlines()
    assert header == "run,script,epoch,step,n,FID-64"
    starts = "one,dcgan.py,1,10", "one,dcgan.py,2,20", "two/one,dcgan.py,2,20"
    for line, start, row in zip(lines, starts, rows, strict=True):
        assert line == f"{start},4,{row['FID-64']}"
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    Path("curve.csv").unlink()
    Path("curve.png").unlink()
    run(command)
    assert capsys.readouterr().err.count("warning: curve.png: not drawn") == 1
    assert len(Path("curve.csv").read_text().splitlines()) == 4
    assert not Path("curve.png").exists()


def cells(path, row):
    """The 7 images of a row of a grid."""
    grid = np.asarray(Image.open(path))
    strip = grid[20 + 100 * row :][:96]
    return [strip[:, left : left + 96] for left in range(0, 700, 100)]


def enlarged(images):
    return np.stack([Image.fromarray(image).resize((96, 96)) for image in images])


def test_nearest_finds_copies_and_measures_reals_among_themselves(light, capsys):
    torch.save(generator().state_dict(), "g.pth")
    fakes = images_of(generator(), range(3, 11))
    reals = np.concatenate([noise(1, 40), fakes[:5]])
    np.save("real.npy", reals)
    (row,) = run("real.npy g.pth --n 8 --seed 3 --nearest n.png")
    y = Light({})(reals.transpose(0, 3, 1, 2)) / 8  # the root of the width
    x = Light({})(fakes.transpose(0, 3, 1, 2)) / 8
    table = torch.cdist(x, y)
    among = torch.cdist(y, y).sort(1).values[:, 1].median()
    near, own = row["nearest in features"], row["nearest in features, REAL"]
    assert near == pytest.approx(table.amin(1).median().item(), abs=1e-2)
    assert own == pytest.approx(among.item(), rel=1e-4)
    assert f"real images to each other {own:.4g}" in capsys.readouterr().out
    titles = np.asarray(Image.open("n.png"))[:18]
    assert all(titles[:, 100 * column :][:, :90].min() < 128 for column in range(7))
    fakes, reals = enlarged(fakes), enlarged(reals)
    for i in range(8):
        fake, *nearest = cells("n.png", i)
        number = (fakes == fake).all((1, 2, 3)).argmax()
        wanted = table[number].argsort()[:6]
        assert np.array_equal(nearest, reals[wanted])
    assert run("real.npy g.pth --n 8 --seed 3 --nearest g.pth/n.png") == [row]  # not written


# ---- Statistics, the cache, several processes ---------------------------------------------------


def test_of_a_file_with_images_and_statistics_one_is_taken_and_named(light, capsys):
    images = noise(0, 9)
    statistics("adm.npz", arr_0=images)  # of other images, to tell them apart
    statistics("stats.npz")
    np.save("images.npy", images)
    np.save("fake.npy", noise(1, 9))
    assert run("adm.npz fake.npy") == run("stats.npz fake.npy")
    assert "adm.npz: holds both; its statistics are taken" in capsys.readouterr().out
    assert run("adm.npz fake.npy --kid") == run("images.npy fake.npy --kid")
    assert "adm.npz: holds both; its images are taken" in capsys.readouterr().out


@pytest.mark.parametrize("change, words", [
    ({"d": 2048}, "--dims 2048"), ({"n": 1}, "only 1 image"),
    ({"mu": np.full(64, np.nan)}, "NaN"),
    ({"sigma": np.full((64, 64), np.nan)}, "NaN"),
    ({"sigma": np.tri(64)}, "not symmetric"), ({"sigma": np.eye(3)}, "cannot be read"),
])  # fmt: skip
def test_statistics_that_are_refused(light, change, words):
    statistics("good.npz")
    statistics("s.npz", **change)
    assert words in refusal("s.npz good.npz")
    assert words in refusal("good.npz s.npz")
    for flag in ("--kid", "--prdc", "--per-class", "--nearest=n.png"):
        assert "need images" in refusal(f"good.npz good.npz {flag}")


def test_reals_statistics_are_kept_until_something_changes(light, monkeypatch, capsys):
    monkeypatch.setattr(Light, "seen", 0)
    write("real", noise(0, 9))
    write("fake", noise(1, 5))
    first = distances("real fake")
    assert distances("real fake") == pytest.approx(first, rel=1e-9)
    assert "(N 5) against real (N 9)" in capsys.readouterr().out.splitlines()[-1]
    assert Light.seen == 14 + 5
    run("real fake --kid")  # needs features, which are not kept
    assert Light.seen == 19 + 14
    run("real fake --size 8")
    run("real fake --precision bf16")
    assert Light.dtype == torch.bfloat16
    run("real fake", dims=192)
    torch.save([], "w.pth")
    run("real fake")
    assert Light.seen == 33 + 4 * 14
    write("real", noise(2, 10))
    assert distances("real fake") != pytest.approx(first, rel=1e-3)
    snapshot(generator(1), "run/checkpoint.pt")
    of_one = distances("run fake --n 5")
    for other in ("--n 6", "--n 5 --seed 1"):
        assert distances(f"run fake {other}") != pytest.approx(of_one, rel=1e-6)
    snapshot(generator(2), "run/checkpoint.pt")  # in place
    assert distances("run fake --n 5") != pytest.approx(of_one, rel=1e-3)
    Path("wall").write_text("")
    run("real fake --cache wall/cache")
    assert "not written; REAL will be measured again" in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["--kid --prdc --nearest n.png", "--n 9"])
def test_two_processes_give_the_numbers_of_one_and_the_first_writes(
    light, tmp_path, monkeypatch, flags
):
    """Though REAL's statistics are in the cache of the first alone."""
    np.save("real.npy", noise(0, 9))
    np.save("fake.npy", noise(1, 8))
    command = f"{tmp_path}/real.npy {tmp_path}/fake.npy {flags}"
    (alone,) = run(command)
    script = "import fid, test_fid; fid.Inception = test_fid.Light; fid.main()"
    few = "--allow-few --device cpu --weights ../w.pth --dims 64 --json r.json"
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(fid, "timedelta", lambda hours: timedelta(seconds=100))  # not 12 hours
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    Path("second").mkdir()
    second = [sys.executable, "-c", script, *command.split(), *few.split()]
    process = subprocess.Popen(second, cwd="second", stdout=subprocess.PIPE)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(fid, "WORLD", 2)
    Path("r.json").unlink()
    (together,) = run(command)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, b"")
    assert not os.listdir("second")
    assert together.pop("path") == alone.pop("path")
    assert together == pytest.approx(alone, rel=1e-6, abs=1e-9)


# ---- Flags, notebooks, bad input ----------------------------------------------------------------


@pytest.mark.parametrize("args, words", [
    ("real", "name a FAKE"), ("real fake --dims 100", "2048"),
    ("real fake --precision fp8", "fp32"), ("real fake --is --dims 64", "--is: takes the whole"),
    ("real fake --size -8", "0 or more"), ("real fake --batch-size -1", "0 or more"),
    ("real.npz --save-stats real", "--save-stats real: must end in .npz"),
    ("real fake --nearest near-0.1", "--nearest near-0.1: must end in .png"),
])  # fmt: skip
def test_wrong_flags_end_with_exit_2_and_a_short_usage(args, words, capsys):
    with pytest.raises(SystemExit) as stop:
        fid.main(args.split())
    assert stop.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert "--help" in usage
    assert words in error


def test_the_script_runs_from_a_pipe_and_in_a_notebook(light, monkeypatch):
    statistics("é.npz")
    flags = ["é.npz", "é.npz", "--dims", "64", "--device", "cpu"]
    script = Path(fid.__file__).read_bytes()
    env = os.environ | {"PYTHONIOENCODING": "ascii"}  # a console that lacks a letter
    done = subprocess.run([sys.executable, "-", *flags], input=script, capture_output=True, env=env)
    assert done.stdout.startswith(b"FID-64 0.000000  ?.npz (N unknown)"), done.stderr
    monkeypatch.setattr(sys, "argv", ["fid.py", *flags])
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    runpy.run_path(fid.__file__, run_name="__main__")
    assert sys.stdout.getvalue().startswith("FID-64 0.000000")


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    args = fid.parse_args(["~/r", "~/f", "--cache=~/c", "--json=~/j", "--weights=~/w"])
    for path in (args.real, *args.fake, args.cache, args.json, args.weights):
        assert Path(path).parent == tmp_path


def test_sets_that_make_no_number_and_a_lack_of_memory_end_in_one_line(light, monkeypatch):
    write("good", noise(0, 4))
    write("one", noise(0, 1))
    np.save("none.npy", noise(0, 1)[1:])
    write("cut", noise(0, 4))
    Path("cut/002.png").write_bytes(Path("cut/002.png").read_bytes()[:100])
    assert "no such file" in refusal("good missing")
    assert "one: only 1 image" in refusal("good one")
    assert "none.npy: only 0 image" in refusal("none.npy good")
    assert "take 6 images or more, not 4" in refusal("good good --prdc")
    assert "cut: 002.png cannot be read" in refusal("good cut")
    with pytest.raises(SystemExit, match=r"^good: only 4 image\(s\): FID-768 .*--allow-few"):
        fid.main(["good", "good", "--device", "cpu", "--dims", "768"])
    monkeypatch.setattr(Light, "__call__", lambda *_: torch.nan)
    assert "must not contain infs or NaNs" in refusal("good --size 9 --save-stats nan.npz")
    assert not Path("nan.npz").exists()
    error = RuntimeError("CUDA out of memory.\nand a trace of C++")
    monkeypatch.setattr(Light, "__call__", Mock(side_effect=error))
    assert "a smaller --batch-size (CUDA out of memory." in refusal("good good")


def test_weights_that_are_not_the_published_ones_are_warned_of_once(light, monkeypatch, capsys):
    write("real", noise(0, 4))
    run("real real")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: w.pth is not the published file")
    digest = hashlib.sha256(Path("w.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(fid, "PUBLISHED", digest[:8])
    run("real real")
    assert capsys.readouterr().err == ""


def test_weights_that_cannot_be_downloaded(light, monkeypatch, tmp_path):
    error = OSError("network is unreachable")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    download = Mock(side_effect=error)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    write("real", noise(0, 4))
    line = refusal("real real --weights=")
    assert fid.PUBLISHED in download.call_args.args  # which the sha256 has to begin with
    for words in ("is unreachable", "--weights", "pt_inception-2015-12-05-6726825d.pth", "https:"):
        assert words in line
    damaged = tmp_path / "hub/checkpoints/pt_inception-2015-12-05-6726825d.pth"
    damaged.write_bytes(b"half")
    assert f"{damaged}: cannot be read: cut short" in refusal("real real --weights=")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_gives_the_numbers_of_the_cpu(weights):
    torch.save(weights, "w.pth")
    np.save("real.npy", noise(0, 20))
    np.save("fake.npy", noise(1, 20))
    command = "real.npy fake.npy --kid --prdc --nearest n.png"
    (cpu,) = run(command)
    (cuda,) = run(f"{command} --device cuda")
    assert cuda.pop("path") == cpu.pop("path")
    assert cuda == pytest.approx(cpu, rel=1e-3, abs=1e-6)


# ---- benchmarks/features.py ---------------------------------------------------------------------


@pytest.fixture
def labelled():
    """96 images of two classes, dark and bright, in two.npz; of two others in other.npz."""
    labels = np.arange(96) % 2
    images = noise(0, 96) // 2
    images[1::2] += 90
    np.savez("two.npz", images=images, labels=labels)
    np.savez("other.npz", images=images, labels=labels + 5)


def train(module, flags=""):
    """Train for an epoch on two.npz, in the folder run."""
    tiny = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 16 --device cpu --epochs 1"
    module.main(f"--data two.npz --out run {tiny} {flags}".split())


def test_features_are_the_pooled_activations_of_all_layers_but_the_score():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 5, 4, 2, 1)
    second = nn.Conv2d(5, 7, 4, 2, 1)
    act = nn.LeakyReLU(0.2)
    main = nn.Sequential(first, act, second, act, nn.Conv2d(7, 1, 8))
    x = torch.randn(3, 3, 32, 32)
    a = act(first(x))  # (3, 5, 16, 16)
    h = act(second(a))  # (3, 7, 8, 8)
    pooled = [nn.functional.max_pool2d(a, 4), nn.functional.max_pool2d(h, 2)]
    found = features.network_features(SimpleNamespace(main=main), x)
    torch.testing.assert_close(found, torch.cat(pooled, 1).flatten(1))


def test_the_classifier_is_the_minimum_that_repeated_ridge_regressions_find():
    """A squared hinge is a square around a target moved out to where the score is beyond it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 6)) + np.eye(3, 6)[labels]
    w, b = features.fit_svm(x, labels, 3, 0.05, features.correlations(x, 64))
    ones = np.hstack([x, np.ones((300, 1))])
    ridge = ones.T @ ones / 300 + np.diag([0.05] * 6 + [0])
    y = 2 * np.eye(3)[labels] - 1
    score = np.zeros((300, 3))
    for _ in range(1000):
        target = y * np.maximum(1, y * score)
        solution = np.linalg.solve(ridge, ones.T @ target / 300)
        score = ones @ solution
    assert (y * score).min() < 1 < (y * score).max()
    np.testing.assert_allclose(np.vstack([w, b]), solution, atol=1e-3)


def test_a_run_is_judged_beside_pixels_and_the_network_before_training(labelled, capsys):
    train(dcgan)
    words = "run/checkpoint.pt --data two.npz --json table.json --test"
    features.main([*words.split(), "two.npz", "--n", "60", "--n-test", "40"])
    assert "2 classes, 60 images to train on, 40 to test" in capsys.readouterr().out
    rows = json.loads(Path("table.json").read_text())["rows"]
    assert [*rows] == ["raw pixels", "untrained network", "trained network"]
    assert [row["numbers"] for row in rows.values()] == [768, 192, 192]
    assert min(row["test"] for row in rows.values()) > 0.9
    with pytest.raises(SystemExit, match=r"other classes than two.npz \(0 1 5 6\)"):
        features.main([*words.split(), "other.npz"])
    with pytest.raises(SystemExit, match="a snapshot"):
        features.main(["run/snapshots/epoch_0001.pt", "--data", "two.npz"])


def test_the_network_before_training_is_the_runs(labelled, monkeypatch):
    monkeypatch.setattr(wgan, "train", lambda *_: None)  # leaves the checkpoint of step 0
    train(wgan, "--conditional --constraint stable-rank")
    module, saved = features.load_run("run/checkpoint.pt")
    for trained in (False, True):
        found = features.second_network(module, saved, trained)
        torch.testing.assert_close(found.state_dict(), saved["critic"])
