"""fid.py: against pytorch-fid and torch-fidelity, closed forms, and what users hand it."""

import functools
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from PIL import Image
from torch import nn

import dcgan
import fid

FEW = ["--allow-few", "--device", "cpu"]


@pytest.fixture(scope="module")
def weights():
    """Random weights of the whole network, in the names and shapes of the published file."""
    options = {"num_classes": 1008, "aux_logits": False, "init_weights": False}
    state = torchvision.models.inception_v3(weights=None, **options).state_dict()
    generator = torch.Generator().manual_seed(0)
    for key, x in state.items():
        if key.endswith("running_var"):
            x.uniform_(0.5, 1.5, generator=generator)
        elif x.dim():
            scale = 0.1 if x.dim() < 4 else (2 / x[0].numel()) ** 0.5
            x.normal_(float(key.endswith("bn.weight")), scale, generator=generator)
    return state


@pytest.fixture(scope="module")
def weights_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(weights, path)
    return str(path)


@pytest.fixture
def pytorch_fid(weights, monkeypatch):
    """The package pytorch-fid with the same weights, and with a sqrtm that still takes `disp`."""
    import pytorch_fid.fid_score as score
    import pytorch_fid.inception as inception

    def sqrtm(a, disp=None):
        with warnings.catch_warnings():  # few images have a singular covariance
            warnings.simplefilter("ignore")
            root = scipy.linalg.sqrtm(a)
        if not np.isfinite(root).all():  # scipy 1.18, of a singular one; what counts is the trace
            root = np.diag(np.sqrt(scipy.linalg.eigvals(a)))
        return root if disp is None else (root, None)

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: dict(weights))
    monkeypatch.setattr(score, "linalg", type("linalg", (), {"sqrtm": staticmethod(sqrtm)}))
    return score


def noise(seed, n, *shape):
    """Random images of patches: uint8 (n, *shape, 3), no two alike."""
    rng = np.random.default_rng(seed)
    tones = rng.integers(0, 256, (n, 4, 4, 3), np.uint8)
    images = [np.asarray(Image.fromarray(tone).resize(shape[::-1])) for tone in tones]
    return np.clip(np.stack(images) + rng.normal(0, 20, (n, *shape, 3)), 0, 255).astype(np.uint8)


def write(folder, images, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        Image.fromarray(image).save(folder / f"{len(list(folder.iterdir())):04}.{suffix}")
    return folder


def run(*args):
    fid.main([*FEW, *map(str, args)])


@pytest.fixture
def rows(weights_file, tmp_path):
    """rows(REAL, FAKE, ..., flag, ...): the results of fid.py, a dict for each FAKE."""

    def rows(*args, dims=64):
        flags = "--weights", weights_file, "--dims", dims, "--cache", tmp_path / "cache"
        run(*args, *flags, "--json", tmp_path / "r.json")
        return json.loads((tmp_path / "r.json").read_text())["results"]

    return rows


@pytest.fixture
def pair(tmp_path):
    """Two folders of 9 images of 32 x 32."""
    return [write(tmp_path / name, noise(i, 9, 32, 32)) for i, name in enumerate(("real", "fake"))]


def fails(*args, few=True):
    """The line that a command ends in; it must be one."""
    with pytest.raises(SystemExit) as error:
        fid.main([str(arg) for arg in args] + (FEW if few else FEW[1:]))
    assert isinstance(error.value.code, str) and "\n" not in str(error.value)
    return str(error.value)


# ---- The network, against pytorch-fid -----------------------------------------------------------


@pytest.mark.parametrize("dims", [64, 192, 768, 2048])
def test_features_are_those_of_pytorch_fid(weights, pytorch_fid, dims):
    images = torch.from_numpy(noise(0, 5, 40, 32)).permute(0, 3, 1, 2)
    theirs = pytorch_fid.InceptionV3([pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[dims]]).eval()
    with torch.no_grad():
        expected = theirs(images / 255)[0].mean((2, 3))
    features, logits = fid.Inception(weights, dims)(images)
    assert features.shape == (5, dims) and logits.shape == (5, 0)
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert features.std(0).mean() > 0.01 * features.std()  # the images are told apart


def test_logits_are_the_last_layer_without_its_bias(weights):
    images = torch.from_numpy(noise(1, 3, 32, 32)).permute(0, 3, 1, 2)
    features, logits = fid.Inception(weights, 2048, logits=True)(images)
    torch.testing.assert_close(logits, features @ weights["fc.weight"].T)
    narrow, same = fid.Inception(weights, 192, logits=True)(images)
    assert narrow.shape == (3, 192)
    torch.testing.assert_close(same, logits)


def test_bfloat16_is_close(weights):
    images = torch.from_numpy(noise(2, 4, 32, 32)).permute(0, 3, 1, 2)
    exact, _ = fid.Inception(weights)(images)
    rough, _ = fid.Inception(weights, dtype=torch.bfloat16)(images)
    assert rough.dtype == torch.float32
    assert 1e-6 < ((rough - exact).norm() / exact.norm()) < 0.05


def test_weights_may_end_after_the_layer_and_the_first_wrong_one_is_named(weights):
    images = torch.from_numpy(noise(3, 2, 32, 32)).permute(0, 3, 1, 2)
    part = {k: v for k, v in weights.items() if not k.startswith(("Mixed_7", "fc"))}
    same = fid.Inception(part, 768)(images)[0], fid.Inception(weights, 768)(images)[0]
    torch.testing.assert_close(*same)
    with pytest.raises(ValueError, match=r"Mixed_7a.*missing"):
        fid.Inception(part, 2048)
    key = "Mixed_5b.branch1x1.bn.weight"
    with pytest.raises(ValueError, match=rf"{key} is \(3,\), not \(64,\)"):
        fid.Inception(weights | {key: torch.ones(3)}, 768)


@pytest.mark.parametrize("dims, n, suffix, shapes", [
    (192, 12, "png", [(32, 32)]), (192, 12, "jpg", [(96, 96)]), (768, 4, "png", [(32, 32)]),
    (192, 4, "png", [(32, 32), (50, 40), (96, 64)]), (2048, 4, "png", [(32, 32)]),
])  # fmt: skip
def test_the_number_is_that_of_pytorch_fid(
    rows, pytorch_fid, tmp_path, dims, n, suffix, shapes, capsys
):
    folders = [tmp_path / "real", tmp_path / "fake"]
    for seed, folder in enumerate(folders):
        for shape in shapes:
            write(folder, noise(seed, n, *shape), suffix)
    size = 1 if len(shapes) > 1 else 5  # its batches are of one size
    expected = pytorch_fid.calculate_fid_given_paths([*map(str, folders)], size, "cpu", dims, 0)
    (row,) = rows(*folders, dims=dims)
    value = row["FID" if dims == 2048 else f"FID-{dims}"]
    assert value == pytest.approx(expected, rel=1e-4) and value > 1e-3
    line = capsys.readouterr().out.splitlines()[-1]
    assert float(line.split()[1]) == pytest.approx(value, abs=1e-6)
    assert line.count(f"N {n * len(shapes)}") == 2


# ---- The distances ------------------------------------------------------------------------------


def covariance(rng, d, rank):
    x = rng.normal(size=(rank, d)) * rng.uniform(0.1, 2, (rank, 1))
    return x.T @ x / rank


@pytest.mark.parametrize("ranks", [(60, 60), (60, 20), (10, 20), (1, 1)])
def test_any_ranks_against_singular_values(ranks):
    rng = np.random.default_rng(1)
    a, b = (covariance(rng, 50, rank) for rank in ranks)
    mu1, mu2 = rng.normal(size=(2, 50))
    (la, va), (lb, vb) = np.linalg.eigh(a), np.linalg.eigh(b)
    roots = (v * np.sqrt(v_.clip(0)) @ v.T for v_, v in ((la, va), (lb, vb)))
    nuclear = np.linalg.svd(np.matmul(*roots), compute_uv=False).sum()
    exact = ((mu1 - mu2) ** 2).sum() + np.trace(a + b) - 2 * nuclear
    ra, rb = fid.square_root(a), fid.square_root(b)
    assert fid.frechet_distance(mu1, ra, mu2, rb) == pytest.approx(exact, abs=1e-5)
    assert fid.frechet_distance(mu2, rb, mu1, ra) == pytest.approx(exact, abs=1e-5)
    np.testing.assert_allclose(ra.T @ ra, a, atol=1e-10 * a.max())
    assert len(ra) <= min(50, ranks[0])


@pytest.mark.parametrize("rank", [2048, 300])
def test_2048_wide_a_scaled_covariance_and_itself(rank):
    rng = np.random.default_rng(2)
    sigma, mu = covariance(rng, 2048, rank), rng.normal(size=2048)
    root = fid.square_root(sigma)
    assert abs(fid.frechet_distance(mu, root, mu, root)) < 1e-6 * np.trace(sigma)
    exact = np.trace(sigma) * (2 - 1) ** 2  # N(mu, S) and N(mu, 4 S)
    assert fid.frechet_distance(mu, root, mu, 2 * root) == pytest.approx(exact, rel=1e-8)


def test_identical_sets_print_0(rows, pair, capsys):
    assert rows(pair[0], pair[0], dims=768)[0]["FID-768"] < 1e-6
    captured = capsys.readouterr()
    assert captured.out.startswith("FID-768 0.000000  ") and "REAL itself" in captured.err


class Given:
    """Stands for the network: the first pixel of an image is the number of its features."""

    device, fc = torch.device("cpu"), torch.empty(0, 2048)

    def __init__(self, features):
        self.features, self.dims = features, features.shape[1]

    def __call__(self, images):
        return self.features[[x.item(0) for x in images]], torch.empty(len(images), 0)


@pytest.mark.parametrize("n, d", [(100, 7), (20, 50), (2, 3)])
def test_streamed_moments_are_numpys(n, d):
    x = np.random.default_rng(n).normal(1000, 1, size=(n, d)).astype(np.float32)
    pixels = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(3, 1)
    args = SimpleNamespace(batch_size=7, rank=0, world=1, allow_few=True)
    images = fid.Images("set", range(n), lambda _: enumerate(pixels), [], {})
    for keep in (False, True):
        stats = fid.measure(images, Given(torch.from_numpy(x)), args, keep)
        assert stats.n == n
        np.testing.assert_allclose(stats.mu, x.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(stats.sigma, np.cov(x.T, dtype=np.float64), atol=1e-7)
        np.testing.assert_allclose(stats.root.T @ stats.root, stats.sigma, atol=1e-7)
    assert sorted(stats.index) == list(range(n)) != stats.index or n < 5
    np.testing.assert_array_equal(stats.features, x[stats.index])


def two_clouds(n=60, m=60, d=16):
    torch.manual_seed(0)
    return torch.randn(n, d), 0.9 * torch.randn(m, d) + 0.2


def test_kid_is_that_of_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = two_clouds()
    settings = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    theirs = kid_features_to_metric(x.double(), y.double(), **settings)
    mean, std = fid.kid(x, y, subsets=3)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert std < 1e-12  # every subset is the whole


def test_the_inception_score_is_that_of_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(100, 30, generator=torch.Generator().manual_seed(2))
    shuffled = logits[np.random.default_rng(0).permutation(100)]
    theirs = isc_features_to_metric(shuffled, 10, shuffle=False)
    mean, std = fid.inception_score(logits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-6)


@pytest.mark.parametrize("classes", [torch.arange(10).repeat(500), torch.arange(5000) // 500])
def test_the_inception_score_in_any_order_and_at_its_ends(classes):
    logits = torch.zeros(5000, 1008)
    assert fid.inception_score(logits) == pytest.approx((1, 0))
    logits[torch.arange(5000), classes] = 30
    assert 9.8 < fid.inception_score(logits)[0] < 9.95
    assert fid.inception_score(logits * 10, 1) == pytest.approx((10, 0))


@pytest.mark.parametrize("n, m, d", [(80, 50, 3), (1500, 1100, 2)])  # below and above a block
def test_prdc_written_out_and_that_of_torch_fidelity(n, m, d):
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = (cloud.double() for cloud in two_clouds(n, m, d))
    ours = fid.prdc(real, fake)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)
    x, y = real.numpy(), fake.numpy()
    radii = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2))[:, 5]
    inside = np.linalg.norm(y[:, None] - x[None], axis=2) <= radii
    assert ours["density"] == pytest.approx(inside.sum() / (5 * m))
    assert ours["coverage"] == pytest.approx(inside.any(0).mean())
    assert 0.2 < ours["recall"] < 1 and ours["precision"] != ours["recall"]


@pytest.mark.parametrize("n, m, k, cut", [(1, 1, 3, 1), (7, 30, 9, 4), (30, 9, 2, 9)])
def test_neighbours_are_a_sorted_table(n, m, k, cut):
    x, y = np.random.default_rng(0).integers(0, 256, (2, 30, 12))
    x, y = torch.from_numpy(x[:n]).double(), torch.from_numpy(y[:m])
    near, index = fid.neighbours(x, y.split(cut), k)
    table = (x[:, None] - y[None]).norm(dim=2)
    torch.testing.assert_close(near, table.sort(1).values[:, :k])
    torch.testing.assert_close(table.gather(1, index), near)


def test_every_kind_of_input_gives_the_same_number(rows, pair, tmp_path):
    images = noise(4, 6, 32, 32)
    write(tmp_path / "deep" / "er", images[:3])
    other = write(tmp_path / "deep" / "down" / "here", images[3:])
    other.joinpath("0000.png").rename(tmp_path / "deep" / "UPPER.PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, path in enumerate((tmp_path / "deep").rglob("*.*")):
            archive.write(path, f"class/{i}.png")
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images=images)
    fakes = [tmp_path / name for name in ("deep", "a.zip", "a.npy", "a.npz")]
    values = [(row["FID-192"], row["n"]) for row in rows(pair[0], *fakes, dims=192)]
    assert np.array(values) == pytest.approx(np.array([(values[0][0], 6)] * 4), rel=1e-6)
    assert values[0][0] > 1e-3


def test_no_number_depends_on_the_order_of_files(rows, tmp_path, monkeypatch, capsys):
    """Neither do those that take random subsets: KID here with 5 of 12 images, IS in splits."""
    monkeypatch.setattr(fid, "kid", functools.partial(fid.kid, subset_size=5, subsets=3))
    passes, call = [], fid.Inception.__call__
    monkeypatch.setattr(fid.Inception, "__call__", lambda s, x: passes.append(len(x)) or call(s, x))
    real, images, order = noise(1, 12, 32, 32), noise(2, 12, 32, 32), [*range(5, 12), *range(5)]
    for name, pixels in (("r", real), ("a", images), ("q", real[order]), ("b", images[order])):
        np.save(tmp_path / f"{name}.npy", pixels)
    row, same = (
        rows(tmp_path / f"{one}.npy", tmp_path / f"{other}.npy", "--kid", "--is", "--prdc")[0]
        for one, other in ("ra", "qb")
    )
    names = "precision recall density coverage KID FID".split()
    assert {f"{name}-64" for name in names} | {"IS", "IS std", "KID-64 std"} < row.keys()
    assert row.pop("path") != same.pop("path") and row == pytest.approx(same, rel=1e-3, abs=1e-7)
    assert row["KID-64 std"] > 1e-4 and row["IS std"] > 1e-4
    assert sum(passes) == 48 and len(capsys.readouterr().out.splitlines()) == 2


def test_images_of_many_sizes_do_not_wait_for_one_another(rows, weights, tmp_path, monkeypatch):
    decoded, waiting, rgb, call = [], [], fid.to_rgb, fid.Inception.__call__
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(fid, "to_rgb", lambda *args: decoded.append(1) or rgb(*args))

    def recorded(net, images):
        waiting.append(len(decoded) - 4 * len(waiting))
        return call(net, images)

    monkeypatch.setattr(fid.Inception, "__call__", recorded)
    images = [noise(i, 1, 10 + i // 2, 20)[0] for i in range(80)]
    for image in images:
        write(tmp_path / "a", [image])
    rows(tmp_path / "a", tmp_path / "a", "--save-stats", tmp_path / "s.npz")
    assert len(decoded) == 160 and len(waiting) == 40 and max(waiting[:20]) <= 24
    net = fid.Inception(weights, 64)
    alone = torch.cat([call(net, [image.transpose(2, 0, 1)])[0] for image in images])
    np.testing.assert_allclose(np.load(tmp_path / "s.npz")["mu"], alone.mean(0), rtol=1e-5)


# ---- Generators and nearest images --------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A DCGAN run's checkpoint, as its script writes it."""
    folder = tmp_path_factory.mktemp("dcgan")
    dcgan.main(
        "--epochs 2 --size 16 --g-width 2 --d-width 2 --z-dim 4 --batch-size 512 --device cpu "
        f"--snapshot-every 1 --out {folder}/run --cache {folder}/cache".split()
    )
    return folder / "run" / "checkpoint.pt"


def layers(channels=3, z_dim=4):
    """A generator in the layout of pytorch/examples, 16 x 16."""
    torch.manual_seed(channels)
    convs = nn.ConvTranspose2d(z_dim, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    convs += nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
    convs += nn.ConvTranspose2d(4, channels, 4, 2, 1, bias=False), nn.Tanh()
    return nn.Sequential(*convs).eval()


def images_of(G, seeds, z_dim=4):
    """What the layers G make of these seeds, uint8 (N, 16, 16, 3)."""
    z = [torch.randn(z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    with torch.no_grad():
        x = ((G(torch.stack(z)[:, :, None, None]) + 1) * 127.5).round().byte()
    return x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def save(G, path, **others):
    torch.save({f"main.{key}": x for key, x in G.state_dict().items()} | others, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", ["run.pt", "snap.pt", "netG.pth", "wrapped.ckpt", "grey.pth"])
def test_a_generator_counts_like_the_images_it_would_have_saved(checkpoint, rows, tmp_path, kind):
    G, path, epoch, flags = layers(1 if kind == "grey.pth" else 3), tmp_path / kind, None, []
    state = save(G, path)
    if kind == "wrapped.ckpt":
        torch.save({"epoch": 3, "nets": {"a": save(layers(1), path), "b": state}}, path)
        assert "--key" in fails(path, path, "--n", 9)
        flags = ["--key", "nets.b"]
    elif kind in ("run.pt", "snap.pt"):
        path, epoch = checkpoint, 2
        if kind == "snap.pt":
            path, epoch = checkpoint.parent / "snapshots" / "epoch_0001.pt", 1
        saved = torch.load(path, weights_only=True)
        trained = dcgan.Generator(**saved["generator"]).eval()
        trained.load_state_dict(saved["G_ema"])
        G = trained.main
    folder = write(tmp_path / "saved", images_of(G, range(7, 27)))
    real = write(tmp_path / "real", noise(6, 8, 16, 16))
    values = []
    for size in (3, 16):
        flags += ["--n", 20, "--seed", 7, "--batch-size", size]
        found = rows(real, path, folder, *flags)
        values += [row["FID-64"] for row in found]
        assert found[0]["n"] == 20 and found[0]["epoch"] == epoch
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)


def test_a_run_folder_is_its_generator_and_other_sets_count_whole(checkpoint, rows, pair):
    one, same = rows(pair[0], checkpoint, checkpoint.parent, "--n", 4)
    assert one["FID-64"] == same["FID-64"] and same["epoch"] == 2
    assert "all images count" in fails(*pair, "--n", 5)


def test_checkpoints_without_a_generator(tmp_path):
    real = write(tmp_path / "real", noise(0, 4, 32, 32))
    (path := tmp_path / "c.pt").write_text("hello")
    assert "nothing in it was run" in fails(real, path)
    torch.save({"format": 1, "script": "dcgan.py"}, path)
    assert "no generator" in fails(real, path)
    torch.save({"format": 99, "script": "dcgan.py", "generator": {}}, path)
    assert "newer" in fails(real, path)


def test_the_curve_over_generator_updates(checkpoint, rows, pair, tmp_path):
    snapshots = sorted((checkpoint.parent / "snapshots").iterdir())
    rows(pair[0], *snapshots, "--n", 4, "--plot", tmp_path / "curve.png")
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "run,script,epoch,step,n,FID-64" and len(lines) == 3
    assert [line[:14] for line in lines[1:]] == ["run,dcgan.py,1", "run,dcgan.py,2"]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 400
    for folder in (checkpoint.parent, checkpoint.parent / "snapshots"):
        rows(pair[0], folder, "--n", 4, "--plot", tmp_path / "all.csv")
        all_lines = (tmp_path / "all.csv").read_text().splitlines()
        assert [line[:20] for line in all_lines] == [line[:20] for line in lines]
    save(layers(), tmp_path / "g.pth")
    line = fails(pair[0], tmp_path / "g.pth", "--n", 4, "--plot", tmp_path / "curve.png")
    assert "does not say its step" in line


def cells(path, rows):
    """The images of the grid, (rows, 13, 16, 16, 3)."""
    grid = np.asarray(Image.open(path))
    assert grid.shape == (rows * 116 + 4, 13 * 100 + 4, 3)
    corners = [[grid[4 + 116 * y :, 4 + 100 * x :] for x in range(13)] for y in range(rows)]
    return np.array([[corner[:96:6, :96:6] for corner in row] for row in corners])


def test_nearest_finds_copies_and_measures_reals_among_themselves(rows, tmp_path, capsys):
    """Fake 0 is a copy of real 5; fake 1 is real 2 upside down."""
    reals, fakes = noise(1, 9, 16, 24), noise(2, 3, 16, 16)
    fakes[0], fakes[1] = reals[5][:, 4:20], reals[2][::-1, 4:20]
    np.save(tmp_path / "real.npy", reals)
    np.save(tmp_path / "fake.npy", fakes)
    flags = "--nearest", tmp_path / "n.png"
    (row,) = rows(tmp_path / "real.npy", tmp_path / "fake.npy", *flags)
    squares = reals[:, :, 4:20].astype(float)
    table, among = (
        ((x[:, None] - squares[None]) ** 2).mean((2, 3, 4)) ** 0.5 for x in (fakes, squares)
    )
    near, own = (np.sort(x)[(len(x) - 1) // 2] for x in (table.min(1), np.sort(among)[:, 1]))
    assert row["nearest in pixels"] == pytest.approx(near, rel=1e-9)
    assert row["nearest in pixels, REAL"] == pytest.approx(own, rel=1e-9)
    assert 0 < row["nearest in features"] < row["nearest in features, REAL"] < 1
    assert f"nearest in pixels: median {near:.4g}, of" in capsys.readouterr().out.splitlines()[-1]
    grid = cells(tmp_path / "n.png", 3)
    assert (grid[:, 0] == fakes).all() and (grid[0, 1] == fakes[0]).all()
    assert (grid[:, 7:] == squares[table.argsort(1)[:, :6]]).all()
    assert len({cell.tobytes() for cell in grid[0, 1:7]}) == 6  # six others, by features


def test_nearest_of_a_generator(rows, tmp_path, capsys):
    save(G := layers(), tmp_path / "g.pth")
    images = images_of(G, range(3, 9))
    np.save(tmp_path / "real.npy", np.concatenate([noise(0, 20, 16, 16), images]))
    flags = "--n", 6, "--seed", 3, "--nearest", tmp_path / "n.png"
    rows(tmp_path / "real.npy", tmp_path / "g.pth", *flags)
    assert "nearest in pixels: median 0," in capsys.readouterr().out
    for column in (0, 1, 7):  # the generator's, the nearest in features, the nearest in pixels
        assert (cells(tmp_path / "n.png", 6)[:, column] == images).all()


# ---- Statistics, several metrics, several processes ---------------------------------------------


def test_size_prepares_images_as_the_trainers_do(rows, tmp_path):
    large = noise(7, 6, 48, 64)
    small = [Image.fromarray(x).crop((8, 0, 56, 48)).resize((16, 16), 1) for x in large]  # Lanczos
    np.save(tmp_path / "small.npy", np.stack([np.asarray(image) for image in small]))
    folder = write(tmp_path / "large", large)
    assert rows(folder, tmp_path / "small.npy", "--size", 16)[0]["FID-64"] < 1e-6


def test_statistics_travel_both_ways(rows, pair, pytorch_fid, tmp_path, capsys):
    ours, theirs = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    direct = rows(*pair, "--save-stats", ours, dims=192)[0]["FID-192"]
    assert f"{ours}: statistics of {pair[0]} (N 9)" in capsys.readouterr().out
    pytorch_fid.save_fid_stats([str(pair[0]), str(theirs)], 4, "cpu", 192, 0)
    for stats in (ours, theirs):
        assert rows(stats, pair[1], dims=192)[0]["FID-192"] == pytest.approx(direct, rel=1e-5)
        paths = [str(stats), str(pair[1])]
        its = pytorch_fid.calculate_fid_given_paths(paths, 4, "cpu", 192, 0)
        assert its == pytest.approx(direct, rel=1e-4)
    assert "(N unknown)" in capsys.readouterr().out
    run(ours, theirs, "--dims", 192)  # no network, no weights
    assert capsys.readouterr().out.startswith("FID-192 0.0000")


def test_the_cache_is_used_and_notices_a_changed_source(rows, pair, monkeypatch):
    first = rows(*pair)[0]["FID-64"]
    measured, measure = [], fid.measure
    monkeypatch.setattr(fid, "measure", lambda i, *a: measured.append(i.name) or measure(i, *a))
    assert rows(*pair)[0]["FID-64"] == pytest.approx(first, rel=1e-6)
    write(pair[0], noise(9, 3, 32, 32))
    assert rows(*pair)[0]["FID-64"] != pytest.approx(first, rel=1e-3)
    assert measured == [str(pair[i]) for i in (1, 0, 1)]


PEAK = """
import resource, types, numpy as np, torch, fid

class Net:  # as Inception's first layers do, large maps come and go, and a few numbers stay
    dims, device, fc = 64, torch.device("cpu"), torch.empty(0, 2048)
    def __call__(self, images):
        x = torch.rand(len(images), 32, 147, 147)
        return torch.cat([x.relu(), x], 1).mean((2, 3)), torch.empty(len(images), 0)

net, args = Net(), types.SimpleNamespace(batch_size=4, allow_few=True, rank=0, world=1)
load = lambda numbers: ((i, np.zeros((3, 8, 8), np.uint8)) for i in numbers)
net(torch.zeros(4, 3, 8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fid.measure(fid.Images("many", range(1600), load, [], {}), net, args, keep=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_what_stays_does_not_leave_the_heap_in_pieces():
    """Features in small tensors of their own would each hold a hole of a map's size open."""
    env = os.environ | {"PYTHONPATH": str(Path(fid.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", PEAK], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 400  # MB, of which 45 are the maps of one batch


def test_two_processes_give_the_number_of_one(rows, pair, weights_file, tmp_path):
    (alone,) = rows(*pair, "--kid", "--is")
    command = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    command = [sys.executable, *command, fid.__file__, *pair, "--kid", "--is", *FEW, "--dims", 64]
    command += ["--weights", weights_file, "--batch-size", 2, "--cache", tmp_path / "c2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*map(str, command), "--json", tmp_path / "two.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stdout.count("FID-64") == 1, done.stderr
    together = json.loads((tmp_path / "two.json").read_text())["results"][0]
    assert together.pop("path") == alone.pop("path") == str(pair[1])
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-9) and together["n"] == 9


# ---- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("args, words", [
    ("real", "name a FAKE"), ("real --save-stats a.npz --kid", "name a FAKE"),
    ("real fake --plot a.png", "their step"), ("real a.pt --plot a.gif", ".png or .csv"),
    ("real --save-stats a.txt", ".npz"), ("real fake --nearest a.jpg", ".png"),
    ("real fake --dims 100", "2048"), ("real fake --n 0", "less than 1"),
    ("real fake --seed -1", "less than 0"), ("real --save-stats folder.npz", "a folder"),
    ("real fake --json file/out.json", "cannot be written"),
    ("real x.pt --plot p.png", "matplotlib"),
])  # fmt: skip
def test_usage(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder.npz").mkdir()
    if words == "matplotlib":
        monkeypatch.setattr(fid, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        fid.main(args.split())
    assert error.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert sorted(os.listdir()) == ["file", "folder.npz"]


def test_sets_that_make_no_number(tmp_path, capsys, weights_file):
    good = write(tmp_path / "good", noise(0, 4, 32, 32))
    (tmp_path / "empty").mkdir()
    assert "no images" in fails(good, tmp_path / "empty")
    assert "one: 1 images are few" in fails(good, write(tmp_path / "one", noise(0, 1, 9, 9)))
    assert "no such file" in fails(good, tmp_path / "missing")
    assert "4 images are few" in (line := fails(good, good, few=False)) and "--allow-few" in line
    cut = write(tmp_path / "cut", noise(0, 4, 32, 32))
    (cut / "0002.png").write_bytes((cut / "0002.png").read_bytes()[:100])
    options = "--weights", weights_file, "--dims", 64, "--cache", tmp_path / "cache"
    assert "0002.png" in fails(good, cut, *options)
    run(good, cut, *options, "--skip-corrupt")
    assert "1 unreadable" in (out := capsys.readouterr().out) and "(N 3)" in out


def test_statistics_that_are_none(tmp_path):
    def fault(*flags, few=True, d=64, **more):
        np.savez(tmp_path / "s.npz", **{"mu": np.zeros(d), "sigma": np.eye(d)} | more)
        return fails(tmp_path / "s.npz", tmp_path / "good.npz", "--dims", 64, *flags, few=few)

    good = {"mu": np.zeros(64), "sigma": np.eye(64), "weights": "aaaaaaaa"}
    np.savez(tmp_path / "good.npz", **good)
    assert "width 2048" in fault(d=2048)
    assert "finite" in fault(sigma=np.full((64, 64), np.nan))
    assert "symmetric" in fault(sigma=np.triu(np.ones((64, 64))))
    assert "are few" in fault(n=100, few=False)
    assert "take images" in fault("--kid") and "take images" in fault("--nearest", "n.png")
    assert "cannot be compared" in fault(weights="bbbbbbbb")
    assert "cannot be read" in fault(mu=np.array([{"a": 1}], dtype=object))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-was-run",)


@pytest.mark.parametrize("kind, words", [
    ("none", "no such"), ("cut", "nothing in it was run"), ("pickle", "nothing in it was run"),
    ("hostile", "nothing in it was run"), ("resnet", "not the Inception weights"),
    ("no Mixed_6", "Mixed_6a.branch3x3.conv.weight is missing"), ("no fc", "fc.weight is missing"),
])  # fmt: skip
def test_weights_that_are_none(tmp_path, weights, weights_file, monkeypatch, kind, words):
    monkeypatch.chdir(tmp_path)
    if kind == "cut":
        Path("w.pth").write_bytes(Path(weights_file).read_bytes()[:1000])
    elif kind == "pickle":
        Path("w.pth").write_bytes(pickle.dumps(Hostile()))
    elif kind != "none":
        part = {k: v for k, v in weights.items() if kind[3:] not in k}
        other = {"hostile": {"a": Hostile()}, "resnet": torchvision.models.resnet18().state_dict()}
        torch.save(other.get(kind, part), "w.pth")
    real = write(tmp_path / "real", noise(0, 4, 32, 32))
    line = fails(real, real, "--weights", "w.pth", "--cache", "cache", "--dims", 768, "--is")
    assert words in line and not Path("hostile-was-run").exists()


@pytest.mark.parametrize("reason", ["network is unreachable", "invalid hash value"])
def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch, reason):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "other.pth").write_bytes(b"not the weights")
    fetch = torch.hub.download_url_to_file

    def download(url, *args, **options):
        if "hash" not in reason:
            raise OSError(reason)
        fetch((tmp_path / "other.pth").as_uri(), *args, **options)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    real = write(tmp_path / "real", noise(0, 4, 32, 32))
    line = fails(real, real)
    for word in (reason, "--weights", "pt_inception-2015-12-05-6726825d.pth", "https://"):
        assert word in line
    assert not list((tmp_path / "hub" / "checkpoints").glob("*.pth"))


def test_output_that_nobody_reads_or_can_show(weights_file, tmp_path):
    folder = write(tmp_path / "é", noise(0, 4, 32, 32))
    command = [sys.executable, fid.__file__, folder, "--save-stats", tmp_path / "é.npz", *FEW]
    command += ["--weights", weights_file, "--dims", "64", "--cache", tmp_path / "cache"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "?.npz: statistics of" in done.stdout
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run([*map(str, command)], stdout=written, stderr=subprocess.PIPE)
    os.close(written)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_gives_the_numbers_of_the_cpu(rows, pair, tmp_path):
    flags = "--kid", "--prdc", "--nearest", tmp_path / "n.png"
    (cpu,), (cuda,) = (rows(*pair, *flags, "--device", name) for name in ("cpu", "cuda"))
    assert cuda.pop("path") == cpu.pop("path") and cuda == pytest.approx(cpu, rel=1e-3, abs=1e-6)
    real, fake = two_clouds(1500, 1200, 64)
    moved = real.cuda(), fake.cuda()
    assert fid.kid(*moved, subsets=5) == pytest.approx(fid.kid(real, fake, subsets=5), rel=1e-6)
    assert fid.prdc(*moved) == pytest.approx(fid.prdc(real, fake), abs=1e-3)
