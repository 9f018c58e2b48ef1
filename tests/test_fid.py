"""fid.py: against pytorch-fid and torch-fidelity, closed forms, and what users hand it."""

import hashlib
import io
import json
import os
import pickle
import runpy
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

import fid

ROOT = Path(fid.__file__).resolve().parent


class Light:
    """Stands for Inception, in no time: features are random sums of an image's 8 x 8 pixels."""

    def __init__(self, weights, dims=64, device="cpu", dtype=torch.float32):
        self.device, self.home = torch.device(device), device
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(3 * 8 * 8, dims, generator=generator).to(device)

    def __call__(self, images):
        pool = nn.AdaptiveAvgPool2d(8)
        x = [pool(torch.tensor(image).float() / 255).flatten() for image in images]
        return torch.stack(x).to(self.device) @ self.matrix


@pytest.fixture
def light(monkeypatch, tmp_path):
    """fid.py with a light network, in an empty working folder, where w.pth are its weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fid, "Inception", Light)
    torch.save({"fc.weight": torch.randn(1008, 2048)}, "w.pth")


def run(*args, dims=64):
    """The results of fid.py, a dict for each FAKE."""
    flags = f"--allow-few --device cpu --weights w.pth --dims {dims} --json r.json"
    fid.main([*map(str, args), *flags.split()])
    return json.loads(Path("r.json").read_text())["results"]


def refusal(*args, dims=64):
    """The line that a command ends in."""
    with pytest.raises(SystemExit) as stop:
        run(*args, dims=dims)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def noise(seed, n, height=16, width=16):
    """Random images of patches: uint8 (n, height, width, 3), no two alike."""
    rng = np.random.default_rng(seed)
    tones = rng.integers(0, 256, (n, 4, 4, 3), np.uint8)
    images = [np.asarray(Image.fromarray(tone).resize((width, height))) for tone in tones]
    noisy = np.stack(images) + rng.normal(0, 20, (n, height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def write(folder, images, suffix="png"):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(Path(folder, f"{i:03}.{suffix}"))
    return folder


# ---- The network, against pytorch-fid -----------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    """Random weights of the whole network, in the names and shapes of the published file."""
    options = {"num_classes": 1008, "aux_logits": False, "init_weights": False}
    state = torchvision.models.inception_v3(weights=None, **options).state_dict()
    generator = torch.Generator().manual_seed(0)
    for key, x in state.items():
        if key.endswith("running_var"):
            x.uniform_(0.5, 1.5, generator=generator)
        elif x.dim() == 1:
            x.normal_(float(key.endswith("bn.weight")), 0.1, generator=generator)
        elif x.dim():
            x.normal_(0, (2 / x[0].numel()) ** 0.5, generator=generator)
    return state


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
    monkeypatch.setattr(score, "linalg", SimpleNamespace(sqrtm=sqrtm))
    return score


def test_features_are_those_of_pytorch_fid_whatever_the_batch(weights, pytorch_fid):
    images = [noise(i, 1, 40, 32 - i)[0].transpose(2, 0, 1) for i in range(2)]
    network = pytorch_fid.InceptionV3([0, 1, 2, 3]).eval()
    with torch.no_grad():
        maps = [network(torch.tensor(image)[None] / 255) for image in images]
    for dims, *parts in zip((64, 192, 768, 2048), *maps):
        expected = torch.cat([part.mean((2, 3)) for part in parts])
        features = fid.Inception(weights, dims)(images)
        assert features.shape == (2, dims) and features.dtype == torch.float32
        assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert features.std(0).mean() > 0.01 * features.std()  # the images are told apart


def test_bfloat16_is_close(weights):
    images = noise(2, 2).transpose(0, 3, 1, 2)
    exact = fid.Inception(weights, 64)(images)
    rough = fid.Inception(weights, 64, dtype=torch.bfloat16)(images)
    assert rough.dtype == torch.float32
    assert 1e-6 < (rough - exact).norm() / exact.norm() < 0.05


def test_weights_may_end_after_the_layer_and_the_first_wrong_one_is_named(weights):
    part = {name: x for name, x in weights.items() if not name.startswith(("Mixed", "fc"))}
    fid.Inception(part, 192)
    with pytest.raises(ValueError, match=r"^Mixed_5b.branch1x1.conv.weight is missing$"):
        fid.Inception(part, 768)
    name = "Conv2d_1a_3x3.bn.weight"
    with pytest.raises(RuntimeError, match=rf"{name}.*\[3\].*\[32\]"):
        fid.Inception(part | {name: torch.ones(3)}, 64)


@pytest.mark.parametrize("suffix, shapes", [("png", [(32, 32), (50, 40)]), ("jpg", [(96, 64)])])
def test_the_number_is_that_of_pytorch_fid(
    weights, pytorch_fid, tmp_path, monkeypatch, capsys, suffix, shapes
):
    monkeypatch.chdir(tmp_path)
    torch.save(weights, "w.pth")
    for seed, name in enumerate(("real", "fake")):
        for shape in shapes:
            write(f"{name}/{shape[0]}", noise(seed, 4 // len(shapes), *shape), suffix)
        for i, path in enumerate(sorted(Path(name).glob("*/*"))):
            path.rename(f"{name}/{i}.{suffix}")  # pytorch-fid looks into no folder of a folder
    expected = pytorch_fid.calculate_fid_given_paths(["real", "fake"], 1, "cpu", 192, 0)
    (row,) = run("real", "fake", dims=192)
    assert row["FID-192"] == pytest.approx(expected, rel=1e-4) and row["FID-192"] > 1e-3
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"FID-192 {row['FID-192']:.6f}  fake (N 4) against real (N 4)"


# ---- The distances ------------------------------------------------------------------------------


def covariance(rng, d, rank):
    x = rng.normal(size=(rank, d)) * rng.uniform(0.1, 2, (rank, 1))
    return x.T @ x / rank


@pytest.mark.parametrize("ranks", [(60, 60), (60, 20), (10, 20), (1, 1)])
def test_the_frechet_distance_of_any_ranks_against_singular_values(ranks):
    rng = np.random.default_rng(1)
    a, b = (covariance(rng, 50, rank) for rank in ranks)
    mu1, mu2 = rng.normal(size=(2, 50))
    (la, va), (lb, vb) = np.linalg.eigh(a), np.linalg.eigh(b)
    product = (va * np.sqrt(la.clip(0)) @ va.T) @ (vb * np.sqrt(lb.clip(0)) @ vb.T)
    nuclear = np.linalg.svd(product, compute_uv=False).sum()
    exact = ((mu1 - mu2) ** 2).sum() + np.trace(a + b) - 2 * nuclear
    x = SimpleNamespace(mu=mu1, root=fid.square_root(a))
    y = SimpleNamespace(mu=mu2, root=fid.square_root(b))
    assert fid.frechet_distance(x, y) == pytest.approx(exact, abs=1e-5)
    assert fid.frechet_distance(y, x) == pytest.approx(exact, abs=1e-5)
    np.testing.assert_allclose(x.root.T @ x.root, a, atol=1e-10 * a.max())
    assert len(x.root) <= min(50, ranks[0])


@pytest.mark.parametrize("rank", [512, 100])
def test_the_distance_to_itself_and_to_a_scaled_covariance(rank):
    rng = np.random.default_rng(2)
    sigma, mu = covariance(rng, 512, rank), rng.normal(size=512)
    x = SimpleNamespace(mu=mu, root=fid.square_root(sigma))
    twice = SimpleNamespace(mu=mu, root=2 * x.root)
    assert 0 <= fid.frechet_distance(x, x) < 1e-6 * np.trace(sigma)
    assert fid.frechet_distance(x, twice) == pytest.approx(np.trace(sigma), rel=1e-8)


def test_a_distance_that_is_not_finite_is_no_distance():
    good = SimpleNamespace(mu=np.zeros(3), root=np.eye(3))
    nan = np.eye(3) * np.nan
    with pytest.raises(ValueError, match="NaN"):
        fid.frechet_distance(good, SimpleNamespace(mu=np.zeros(3), root=nan))


@pytest.mark.parametrize("n, d", [(700, 7), (20, 50), (2, 3)])
def test_streamed_moments_are_numpys_and_rows_lie_in_the_order_of_hashes(n, d):
    x = np.random.default_rng(n).normal(1000, 1, size=(n, d)).astype(np.float32)
    pixels = np.random.default_rng(1).integers(0, 256, (n, 3, 2, 2), np.uint8)

    class Net:
        device, home = torch.device("cpu"), "cpu"

        def __call__(self, images):
            found = [(pixels == image).all((1, 2, 3)).argmax() for image in images]
            return torch.from_numpy(x[found])

    args = SimpleNamespace(batch_size=7, dims=d, keep=True, inception_score=False)
    images = fid.Set("set", n, pixels=lambda numbers: list(pixels[numbers]))
    measured = fid.measure(images, Net(), args)
    np.testing.assert_array_equal(measured.rows, x[measured.numbers])
    turned = images._replace(pixels=lambda numbers: list(pixels[::-1][numbers]))
    np.testing.assert_array_equal(measured.rows, fid.measure(turned, Net(), args).rows)
    args.keep = False
    assert fid.measure(images, Net(), args).rows is None
    for one in (measured, fid.measure(images, Net(), args)):
        assert one.n == n
        np.testing.assert_allclose(one.mu, x.mean(0, dtype=np.float64), rtol=1e-12)
        sigma = np.cov(x.T, dtype=np.float64)
        np.testing.assert_allclose(one.root.T @ one.root, sigma, atol=1e-7)


def two_clouds(n=60, m=60, d=16):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, d, generator=generator) for rows in (n, m))
    return x, 0.9 * y + 0.2


def test_kid_is_that_of_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = two_clouds()
    settings = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    theirs = kid_features_to_metric(x.double(), y.double(), **settings)
    mean, std = fid.kid(x, y, subsets=3)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert std < 1e-12  # every subset is the whole


def test_kid_is_unbiased_over_random_subsets_of_both():
    x, y = two_clouds(400, 300)
    mean, std = fid.kid(x, y, subsets=200, subset_size=20)
    whole, _ = fid.kid(x, y, subsets=1)
    assert abs(mean - whole) < 3 * std / 200**0.5 and 0.1 * whole < std < 10 * whole
    assert fid.kid(x, y, subsets=5, subset_size=20) == fid.kid(x, y, subsets=5, subset_size=20)


def test_the_inception_score_is_that_of_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(95, 30, generator=torch.Generator().manual_seed(2))
    shuffled = logits[np.random.default_rng(0).permutation(95)]
    scores = []
    for rows in np.array_split(shuffled, 10):
        scores.append(isc_features_to_metric(rows, 1, shuffle=False)["inception_score_mean"])
    mean, std = fid.inception_score(logits)
    assert mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert std == pytest.approx(np.std(scores), rel=1e-6)


@pytest.mark.parametrize("classes", [torch.arange(10).repeat(500), torch.arange(5000) // 500])
def test_the_inception_score_in_any_order_and_at_its_ends(classes):
    logits = torch.zeros(5000, 20)
    assert fid.inception_score(logits) == pytest.approx((1, 0))
    logits[torch.arange(5000), classes] = 30
    assert 9.8 < fid.inception_score(logits)[0] < 9.95
    assert fid.inception_score(logits * 10, 1) == pytest.approx((10, 0))


@pytest.mark.parametrize("n, m, d", [(80, 50, 3), (1500, 1100, 2)])  # below and above a block
def test_prdc_written_out_and_that_of_torch_fidelity(n, m, d):
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = (cloud.double() for cloud in two_clouds(n, m, d))
    precision, recall, density, coverage = fid.prdc(real, fake)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    assert precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert recall == pytest.approx(theirs["recall"], abs=1e-6)
    x, y = real.numpy(), fake.numpy()
    radii = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2))[:, 5]
    inside = np.linalg.norm(y[:, None] - x[None], axis=2) <= radii
    assert density == pytest.approx(inside.sum() / (5 * m))
    assert coverage == pytest.approx(inside.any(0).mean())
    assert 0.2 < recall < 1 and precision != recall


@pytest.mark.parametrize("n, m, k", [(1, 3, 3), (1030, 30, 9)])
def test_neighbours_are_a_sorted_table(n, m, k):
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=(rows, 12))) for rows in (n, m))
    distances, rows = fid.neighbours(x, y, k)
    table = (x[:, None] - y[None]).norm(dim=2)
    torch.testing.assert_close(distances, table.sort(1).values[:, :k])
    torch.testing.assert_close(table.gather(1, rows), distances)


# ---- What is measured, and in which order -------------------------------------------------------


def test_every_kind_of_input_gives_the_same_number(light):
    images = noise(4, 6)
    write("deep/er", images[:3])
    other = write("deep/down/here", images[3:])
    Path(other, "000.png").rename("deep/UPPER.PNG")
    with zipfile.ZipFile("a.zip", "w") as archive:
        for i, path in enumerate(Path("deep").rglob("*.*")):
            archive.write(path, f"class/{i}.png")
    np.save("a.npy", images)
    np.savez("a.npz", images=images)
    write("real", noise(0, 9))
    rows = run("real", "deep", "a.zip", "a.npy", "a.npz")
    assert [row["n"] for row in rows] == [6] * 4 and rows[0]["FID-64"] > 1e-3
    assert {round(row["FID-64"] / rows[0]["FID-64"], 6) for row in rows} == {1}


def test_no_number_depends_on_the_names_or_the_order_of_files(light, monkeypatch, capsys):
    """Neither do those of random subsets: KID here with 5 of 12 images."""
    whole = fid.kid
    monkeypatch.setattr(fid, "kid", lambda x, y: whole(x, y, subsets=3, subset_size=5))
    passes = []
    call = Light.__call__
    monkeypatch.setattr(Light, "__call__", lambda s, x: passes.append(len(x)) or call(s, x))
    real, fake, order = noise(1, 12), noise(2, 12), [*range(5, 12), *range(5)]
    arrays = {"r": real, "a": fake, "q": real[order], "b": fake[order]}
    for name, pixels in arrays.items():
        np.save(f"{name}.npy", pixels)
    (row,) = run("r.npy", "a.npy", "--kid", "--prdc")
    (same,) = run("q.npy", "b.npy", "--kid", "--prdc")
    names = ("FID", "KID", "precision", "recall", "density", "coverage")
    assert row.keys() - {"path", "n"} == {f"{name}-64" for name in names}
    assert row.pop("path") != same.pop("path") and row == pytest.approx(same, rel=1e-6, abs=1e-9)
    assert sum(passes) == 48 and len(capsys.readouterr().out.splitlines()) == 2


def test_the_score_is_of_logits_without_their_bias_at_the_full_width_alone(light, capsys):
    images = noise(1, 30)
    np.save("real.npy", noise(0, 12))
    np.save("fake.npy", images)
    np.save("turned.npy", images[::-1])
    row, turned = run("real.npy", "fake.npy", "turned.npy", "--is", dims=2048)
    assert row["IS"] == pytest.approx(turned["IS"], rel=1e-6)
    features = Light({}, 2048)(images.transpose(0, 3, 1, 2))
    logits = features @ torch.load("w.pth", weights_only=True)["fc.weight"].T
    hashes = [hashlib.sha1(image.transpose(2, 0, 1).tobytes()).digest() for image in images]
    score = fid.inception_score(logits[np.argsort(hashes)])
    assert (row["IS"], row["IS std"]) == pytest.approx(score, rel=1e-5) and row["IS std"] > 1e-3
    assert f"IS {row['IS']:.6f} ± {row['IS std']:.6f}  fake.npy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run("real.npy", "fake.npy", "--is")
    assert stop.value.code == 2


def test_kid_prints_its_spread_where_subsets_differ(light, monkeypatch, capsys):
    whole = fid.kid
    monkeypatch.setattr(fid, "kid", lambda x, y: whole(x, y, subsets=2))
    images = np.random.default_rng(0).integers(0, 256, (1001, 8, 8, 3), np.uint8)
    np.save("few.npy", images[:1000])
    np.save("many.npy", images)
    few, many = run("many.npy", "few.npy", "many.npy", "--kid")
    assert "KID-64 std" not in few and many["KID-64 std"] > 0
    first, second = capsys.readouterr().out.splitlines()
    assert "±" not in first and f"{many['KID-64']:.6f} ± {many['KID-64 std']:.6f}  many" in second


def test_images_of_many_sizes_share_batches(light):
    images = [noise(i, 1, 10 + i, 20)[0] for i in range(9)]
    write("a", images)
    run("a", "a", "--save-stats", "s.npz")
    alone = torch.cat([Light({})([image.transpose(2, 0, 1)]) for image in images])
    np.testing.assert_allclose(np.load("s.npz")["mu"], alone.mean(0), rtol=1e-5)


def test_where_files_differ_in_size_one_line_names_size(light, capsys):
    write("small", noise(0, 4, 16, 16))
    write("large", noise(1, 4, 48, 64))
    run("small", "large")
    line, _ = capsys.readouterr().out.splitlines()
    assert "(16, 16)" in line and "(48, 64)" in line and "--size" in line
    for flags in (["--size", 16], ["--size", 0]):
        run("small", "large", *flags)
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_size_prepares_images_as_the_trainers_do(light):
    large = noise(7, 6, 48, 64)
    squares = [Image.fromarray(image).crop((8, 0, 56, 48)) for image in large]
    np.save("small.npy", np.stack([image.resize((16, 16), Image.LANCZOS) for image in squares]))
    write("large", large)
    assert run("large", "small.npy", "--size", 16)[0]["FID-64"] < 1e-6


PEAK = """
import resource, types, numpy as np, torch, fid

class Net:  # as in Inception's first layers, large maps come and go, and a few numbers stay
    device, home = torch.device("cpu"), "cpu"
    def __call__(self, images):
        x = torch.ones(len(images), 32, 147, 147)
        return torch.cat([x.relu(), x], 1)[:, :, 0, 0]

args = types.SimpleNamespace(batch_size=4, dims=64, keep=True, inception_score=False)
images = fid.Set("many", 400, pixels=lambda numbers: [np.zeros((3, 8, 8), np.uint8)] * len(numbers))
Net()(range(4))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fid.measure(images, Net(), args)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_what_stays_does_not_leave_the_heap_in_pieces():
    """Features in small tensors of their own would each hold a hole of a map's size open."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300  # MB, of which 45 are the maps of one batch


# ---- Generators ---------------------------------------------------------------------------------


def layers(channels=3, classes=0):
    """A generator in the layout of the trainers and of pytorch/examples: z_dim 4, 16 x 16."""
    torch.manual_seed(channels)
    convs = nn.ConvTranspose2d(4 + classes, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    convs += nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
    convs += nn.ConvTranspose2d(4, channels, 4, 2, 1, bias=False), nn.Tanh()
    G = nn.Sequential(*convs).eval()
    G[1].running_var *= 1e-2  # so that images differ
    return G


def state_of(G):
    return {f"main.{name}": x for name, x in G.state_dict().items()}


def snapshot(G, path, epoch=2, classes=()):
    """A trainer's snapshot."""
    options = {"size": 16, "z_dim": 4, "width": 4, "norm": "batch", "classes": len(classes)}
    known = {"format": 2, "script": "dcgan.py", "epoch": epoch, "step": 10 * epoch, "args": {}}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    others = {"generator": options, "classes": list(classes), "G_ema": state_of(G)}
    torch.save(known | others, path)


def images_of(G, seeds, codes=None):
    """What G makes of these seeds, uint8 (N, 16, 16, 3)."""
    rows = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    z = torch.stack(rows) if codes is None else torch.cat([torch.stack(rows), codes], 1)
    with torch.no_grad():
        x = ((G(z[:, :, None, None]) + 1) * 127.5).round().byte()
    return x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", ["snap.pt", "netG.pth", "wrapped.ckpt", "grey.pth", "run"])
def test_a_generator_counts_like_the_images_it_would_have_saved(light, kind, capsys):
    G, path, flags = layers(1 if kind == "grey.pth" else 3), kind, []
    if kind == "snap.pt":
        snapshot(G, path)
    elif kind == "run":
        snapshot(G, "run/checkpoint.pt")
    elif kind == "wrapped.ckpt":
        torch.save({"epoch": 3, "nets": {"a": state_of(layers(1)), "b": state_of(G)}}, path)
        write("real", noise(6, 8))
        assert "--key" in refusal("real", path, "--n", 9)
        flags = ["--key", "nets.b"]
    else:
        torch.save(state_of(G), path)
    write("real", noise(6, 8))
    write("saved", images_of(G, range(7, 27)))
    for size in (3, 16):
        row, saved = run(
            "real", path, "saved", "--n", 20, "--seed", 7, "--batch-size", size, *flags
        )
        assert row["n"] == 20 and row["FID-64"] == pytest.approx(saved["FID-64"], rel=1e-6)
        assert row["epoch"] == {"snap.pt": 2, "run": 2, "wrapped.ckpt": 3}.get(kind)
    assumed = "ReLU" in capsys.readouterr().out
    assert assumed == (kind not in ("snap.pt", "run"))  # of a foreign network


def test_beside_a_generator_photos_are_cropped_and_resized_to_its_size(light, capsys):
    torch.save(state_of(layers()), "g.pth")
    large = noise(0, 8, 40, 48)
    write("photos", large)
    small = [fid.to_rgb(Image.fromarray(image), 16).transpose(1, 2, 0) for image in large]
    np.save("small.npy", np.stack(small))
    (wanted,) = run("small.npy", "g.pth", "--n", 8)
    (row,) = run("photos", "g.pth", "--n", 8)
    out = capsys.readouterr().out
    assert row["FID-64"] == pytest.approx(wanted["FID-64"], rel=1e-9)
    assert "16x16" in out and "--size 0" in out
    (kept,) = run("photos", "g.pth", "--n", 8, "--size", 0)
    (other,) = run("photos", "g.pth", "--n", 8, "--size", 24)
    assert len({kept["FID-64"], other["FID-64"], row["FID-64"]}) == 3
    assert "16x16" not in capsys.readouterr().out.replace("16x16x3", "")
    assert run("sprites", "g.pth", "--n", 8) == run("sprites", "g.pth", "--n", 8, "--size", 16)


def test_classes_come_by_turns_and_are_measured_apart(light, capsys):
    names = ["cat", "dog", "ship"]
    G = layers(classes=3)
    snapshot(G, "g.pt", classes=names)
    for i, name in enumerate(("cat", "mouse", "ship")):
        write(f"real/{name}", noise(i, 9))
    (row,) = run("real", "g.pt", "--n", 30, "--per-class")
    printed = capsys.readouterr().out
    assert "    cat: " in printed and "dog" not in printed and "mouse" not in printed
    fakes = images_of(G, range(30), torch.eye(3).repeat(10, 1))
    np.save("all.npy", fakes)
    np.save("ship.npy", fakes[2::3])
    (whole,) = run("real", "all.npy")
    (ship,) = run("real/ship", "ship.npy")
    assert row["FID-64"] == pytest.approx(whole["FID-64"], rel=1e-6)
    assert row["FID-64 ship"] == pytest.approx(ship["FID-64"], rel=1e-6)
    assert row.keys() & {f"FID-64 {name}" for name in names} == {"FID-64 cat", "FID-64 ship"}
    run("real", "all.npy", "--per-class")
    assert "no classes in common" in capsys.readouterr().out
    write("pair/cat", noise(3, 1))
    write("pair/dog", noise(4, 9))
    assert "class cat: 1 images are few" in refusal("real", "pair", "--per-class")


def test_the_curve_over_generator_updates_of_snapshots_and_run_folders(light):
    for run_name, seed in (("one", 1), ("two", 3)):
        for epoch in (1, 2):
            snapshot(layers(seed), f"{run_name}/snapshots/epoch_{epoch:04}.pt", epoch)
    np.save("real.npy", noise(0, 9))
    rows = run("real.npy", "one", "two/snapshots/epoch_0002.pt", "--n", 4, "--plot", "curve.png")
    lines = Path("curve.csv").read_text().splitlines()
    assert lines[0] == "run,script,epoch,step,n,FID-64"
    for line, (start, row) in zip(
        lines[1:], zip(("one,dcgan.py,1,10", "one,dcgan.py,2,20", "two,dcgan.py,2,20"), rows)
    ):
        assert line == f"{start},4,{row['FID-64']}"
    with Image.open("curve.png") as picture:
        assert picture.width > 400


def test_without_matplotlib_the_curve_is_its_table_and_one_warning(light, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    snapshot(layers(), "one/snapshots/epoch_0001.pt")
    np.save("real.npy", noise(0, 9))
    run("real.npy", "one", "--n", 4, "--plot", "curve.png")
    captured = capsys.readouterr()
    assert "FID-64" in captured.out and len(Path("curve.csv").read_text().splitlines()) == 2
    assert captured.err.count("warning: curve.png: not drawn") == 1
    assert not Path("curve.png").exists()


def cells(path):
    """The images of a grid, (rows, 7, 96, 96, 3), and the strip of titles."""
    grid = np.asarray(Image.open(path))
    rows = [grid[20 + 100 * y :][:96] for y in range(8)]
    return np.array([[row[:, 100 * x :][:, :96] for x in range(7)] for row in rows]), grid[:18]


def test_nearest_finds_copies_and_measures_reals_among_themselves(light, capsys):
    reals, fakes = noise(1, 120, 96, 96), noise(2, 9, 96, 96)
    fakes[:5] = reals[7:12]
    np.save("real.npy", reals)
    np.save("fake.npy", fakes)
    (row,) = run("real.npy", "fake.npy", "--nearest", "n.png")
    x, y = (Light({})(images.transpose(0, 3, 1, 2)).double() / 8 for images in (fakes, reals))
    table = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    among = torch.cdist(y, y).sort(1).values[:, 1]
    assert row["nearest in features"] == pytest.approx(table.amin(1).median().item(), abs=1e-5)
    own = row["nearest in features, REAL"]
    assert among.amin() < own < among.amax() and own == pytest.approx(
        among.median().item(), rel=0.1
    )
    assert "nearest in features: median " in capsys.readouterr().out.splitlines()[-1]
    grid, titles = cells("n.png")
    order = {image.tobytes(): i for i, image in enumerate(fakes)}
    for shown in grid:
        fake = order[shown[0].tobytes()]
        wanted = reals[table[fake].argsort()[:6]]
        assert (shown[1:] == wanted).all()
    for column in range(7):
        assert titles[:, 100 * column :][:, :90].min() < 128


def test_nearest_of_a_generator_shows_its_own_images(light, capsys):
    G = layers()
    torch.save(state_of(G), "g.pth")
    images = images_of(G, range(3, 9))
    np.save("real.npy", np.concatenate([noise(0, 20), images]))
    (row,) = run("real.npy", "g.pth", "--n", 6, "--seed", 3, "--nearest", "n.png")
    assert row["nearest in features"] < 1e-5
    grid, _ = cells("n.png")
    assert (grid[:6, 0] == grid[:6, 1]).all() and (grid[6:] == 255).all()


# ---- Statistics, the cache, several processes ---------------------------------------------------


def test_statistics_travel_both_ways(weights, pytorch_fid, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(weights, "w.pth")
    write("real", noise(0, 3))
    write("fake", noise(1, 3))
    (direct,) = run("real", "fake", "--save-stats", "ours.npz")
    assert "ours.npz: statistics of real (N 3)" in capsys.readouterr().out
    pytorch_fid.save_fid_stats(["real", "theirs.npz"], 3, "cpu", 64, 0)
    for stats in ("ours.npz", "theirs.npz"):
        (row,) = run(stats, "fake")
        assert row["FID-64"] == pytest.approx(direct["FID-64"], rel=1e-5)
        its = pytorch_fid.calculate_fid_given_paths([stats, "fake"], 3, "cpu", 64, 0)
        assert its == pytest.approx(direct["FID-64"], rel=1e-4)
    assert "(N unknown)" in capsys.readouterr().out
    Path("w.pth").unlink()
    run("ours.npz", "theirs.npz")  # no network, no weights
    assert capsys.readouterr().out.startswith("FID-64 0.0000")
    run("theirs.npz", "--save-stats", "again.npz")
    assert "n" not in np.load("again.npz")


def test_of_a_file_with_images_and_statistics_one_is_taken_and_named(light, capsys):
    """As ADM's reference batches are; its statistics here are of other images."""
    images = noise(0, 9)
    np.savez("adm.npz", arr_0=images, mu=np.zeros(64), sigma=np.eye(64))
    np.savez("stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.save("images.npy", images)
    np.save("fake.npy", noise(1, 9))
    assert run("adm.npz", "fake.npy")[0] == run("stats.npz", "fake.npy")[0]
    assert "adm.npz: holds both; its statistics are taken" in capsys.readouterr().out
    assert run("adm.npz", "fake.npy", "--kid")[0] == run("images.npy", "fake.npy", "--kid")[0]
    assert "adm.npz: holds both; its images are taken" in capsys.readouterr().out


def test_statistics_that_are_refused(light):
    good = {"mu": np.zeros(64), "sigma": np.eye(64)}
    np.savez("good.npz", **good)
    np.save("real.npy", noise(0, 4))
    nan = np.full((64, 64), np.nan)
    for change, words in (
        ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, "--dims 2048"),
        ({"sigma": nan}, "NaN"),
        ({"mu": nan[0]}, "NaN"),
        ({"sigma": np.triu(np.ones((64, 64)))}, "symmetric"),
        ({"sigma": np.eye(3)}, "cannot be read"),
        ({"n": 1}, "are few"),
        ({"mu": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ):
        np.savez("s.npz", **good | change)
        assert words in refusal("s.npz", "good.npz") and "s.npz" in refusal("good.npz", "s.npz")
    for flag in ("--kid", "--prdc", "--per-class"):
        assert "take images" in refusal("good.npz", "real.npy", flag)
    assert "take images" in refusal("real.npy", "good.npz", "--nearest", "n.png")
    Path("s.npz").write_bytes(b"PK damaged")
    assert "s.npz: cannot be read" in refusal("s.npz", "good.npz")


def test_the_score_needs_no_images_of_real(light):
    np.savez("stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.save("fake.npy", noise(0, 12))
    assert "IS" in run("stats.npz", "fake.npy", "--is", dims=2048)[0]
    assert "take images" in refusal("fake.npy", "stats.npz", "--is", dims=2048)


def test_reals_statistics_are_kept_until_something_changes(light, monkeypatch, capsys):
    counted = []
    call = Light.__call__
    monkeypatch.setattr(Light, "__call__", lambda s, x: counted.append(len(x)) or call(s, x))
    write("real", noise(0, 9))
    write("fake", noise(1, 5))
    first = run("real", "fake")
    assert run("real", "fake")[0]["FID-64"] == pytest.approx(first[0]["FID-64"], rel=1e-9)
    assert sum(counted) == 9 + 5 + 5 and "(N 5) against real (N 9)" in capsys.readouterr().out
    run("real", "fake", "--size", 8)
    run("real", "fake", "--precision", "bf16")
    run("real", "fake", dims=192)
    torch.save({"fc.weight": torch.zeros(2)}, "w.pth")
    run("real", "fake")
    write("real", noise(2, 10))
    assert run("real", "fake") != first
    assert sum(counted) == 19 + 4 * 14 + 15
    Path("wall").write_text("")
    run("real", "fake", "--cache", "wall/cache")
    assert "not written; REAL will be measured again" in capsys.readouterr().err


LIGHT = """
import sys; sys.path[:0] = [{tests!r}, {root!r}]
import fid, test_fid
fid.Inception = test_fid.Light
fid.main()
"""


def test_two_processes_give_the_numbers_of_one_and_one_writes(light):
    np.save("real.npy", noise(0, 9))
    np.save("fake.npy", noise(1, 8))
    (alone,) = run("real.npy", "fake.npy", "--kid", "--prdc")
    Path("light.py").write_text(LIGHT.format(tests=str(ROOT / "tests"), root=str(ROOT)))
    command = "-m torch.distributed.run --standalone --nproc-per-node=2 light.py real.npy fake.npy"
    flags = "--kid --prdc --allow-few --device cpu --weights w.pth --dims 64 --cache c2"
    command = [sys.executable, *f"{command} {flags} --json two.json".split()]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stdout.count("FID-64") == 1, done.stderr
    (together,) = json.loads(Path("two.json").read_text())["results"]
    assert together.pop("path") == alone.pop("path") == "fake.npy"
    assert together == pytest.approx(alone, rel=1e-6, abs=1e-9)


# ---- Flags, notebooks, bad input ----------------------------------------------------------------


@pytest.mark.parametrize("args, words", [
    ("real", "name a FAKE"), ("", "REAL"), ("real fake --dims 100", "2048"),
    ("real fake --see 3", "--see"), ("real fake --precision fp8", "fp32"),
])  # fmt: skip
def test_wrong_flags_end_with_exit_2_and_a_short_usage(args, words, capsys):
    with pytest.raises(SystemExit) as stop:
        fid.main(args.split())
    usage, error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "--help" in usage and words in error


def test_in_a_notebook_the_kernels_flags_are_not_taken(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/lib/ipykernel_launcher.py", "-f", "kernel.json"])
    with pytest.raises(SystemExit):
        fid.main()
    assert "kernel.json" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["fid.py", "a", "b"])
    assert fid.parse_args().fake == ["b"]


def test_the_script_runs_from_a_pipe_and_where_stdout_is_a_notebooks(light, monkeypatch, capsys):
    np.savez("s.npz", mu=np.zeros(64), sigma=np.eye(64))
    command = [sys.executable, "-", "s.npz", "s.npz", "--dims", "64", "--device", "cpu"]
    script = Path(fid.__file__).read_bytes()
    done = subprocess.run(command, input=script, capture_output=True)
    assert done.stdout.startswith(b"FID-64 0.000000  s.npz (N unknown)"), done.stderr
    monkeypatch.setattr(sys, "argv", ["fid.py", *command[2:]])
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    runpy.run_path(fid.__file__, run_name="__main__")
    assert sys.stdout.getvalue().startswith("FID-64 0.000000")


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    args = fid.parse_args(["~/r", "~/f", "--cache=~/c", "--json=~/j", "--weights=~/w"])
    for path in (args.real, *args.fake, args.cache, args.json, args.weights):
        assert Path(path).parent == tmp_path


def test_sets_that_make_no_number(light, capsys):
    write("good", noise(0, 4))
    Path("empty").mkdir()
    assert "no images" in refusal("good", "empty")
    assert "no such file" in refusal("good", "missing")
    assert "one: 1 images are few" in refusal("good", write("one", noise(0, 1)))
    with pytest.raises(SystemExit, match=r"good: 4 images are few: FID-768 .*--allow-few") as stop:
        fid.main(["good", "good", "--device", "cpu", "--dims", "768"])
    assert "\n" not in stop.value.code and "2,048" not in stop.value.code
    write("cut", noise(0, 4))
    Path("cut/002.png").write_bytes(Path("cut/002.png").read_bytes()[:100])
    assert "cut: 002.png cannot be read" in refusal("good", "cut")
    write("link", noise(0, 4))
    Path("link/dead").symlink_to("nowhere")
    assert "dead" in refusal("good", "link")


def test_checkpoints_without_a_generator(light):
    write("real", noise(0, 4))
    Path("c.pt").write_text("hello")
    assert "c.pt: cannot be read" in refusal("real", "c.pt")
    torch.save({"format": 1, "script": "dcgan.py"}, "c.pt")
    assert "c.pt: cannot be used as a generator" in refusal("real", "c.pt")


@pytest.mark.parametrize("words", ["can't allocate memory: you tried", "CUDA out of memory."])
def test_without_memory_one_line_names_the_batch_size(light, monkeypatch, words):
    def fail(*_):
        raise RuntimeError(f"{words}\nand a trace of C++")

    write("real", noise(0, 4))
    monkeypatch.setattr(Light, "__call__", fail)
    assert "--batch-size" in refusal("real", "real") and words in refusal("real", "real")
    torch.save(state_of(layers()), "g.pth")
    monkeypatch.setattr(fid, "sample", fail)
    assert "--batch-size" in refusal("g.pth", "real", "--n", 9)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-was-run",)


@pytest.mark.parametrize("kind, words", [
    ("none", "No such file"), ("cut", "no code in it was run"), ("pickle", "no code in it was run"),
    ("hostile", "no code in it was run"), ("resnet", "not the Inception weights"),
    ("no Mixed_5", "Mixed_5b.branch1x1.conv.weight is missing"),
    ("statistics", "such as statistics"), ("TorchScript", "a TorchScript module"),
])  # fmt: skip
def test_weights_that_are_none(tmp_path, weights, monkeypatch, kind, words):
    monkeypatch.chdir(tmp_path)
    part = {name: x for name, x in weights.items() if name.startswith("Conv2d")}
    if kind == "cut":
        torch.save(part, "whole.pth")
        Path("w.pth").write_bytes(Path("whole.pth").read_bytes()[:1000])
    elif kind == "pickle":
        Path("w.pth").write_bytes(pickle.dumps(Hostile()))
    elif kind == "hostile":
        torch.save({"a": Hostile()}, "w.pth")
    elif kind == "resnet":
        torch.save(torchvision.models.resnet18().state_dict(), "w.pth")
    elif kind == "no Mixed_5":
        torch.save(part, "w.pth")
    elif kind == "statistics":
        with open("w.pth", "wb") as file:
            np.savez(file, mu=np.zeros(64), sigma=np.eye(64))
    elif kind == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated
            torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), "w.pth")
    write("real", noise(0, 4))
    assert words in refusal("real", "real", dims=768)
    assert not Path("hostile-was-run").exists()


def test_weights_that_are_not_the_published_ones_are_warned_of_once(light, monkeypatch, capsys):
    write("real", noise(0, 4))
    run("real", "real")
    err = capsys.readouterr().err
    assert err.count("w.pth is not the published") == 1 and len(err.splitlines()) == 1
    digest = hashlib.sha256(Path("w.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(fid, "PUBLISHED", digest[:8])
    run("real", "real")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("reason", ["network is unreachable", "invalid hash value"])
def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch, reason):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    Path("other.pth").write_bytes(b"not the weights")
    fetch = torch.hub.download_url_to_file

    def download(url, *args, **options):
        if "hash" not in reason:
            raise OSError(reason)
        fetch((tmp_path / "other.pth").as_uri(), *args, **options)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    write("real", noise(0, 4))
    with pytest.raises(SystemExit) as stop:
        fid.main(["real", "real", "--allow-few", "--device", "cpu"])
    for word in (reason, "--weights", "pt_inception-2015-12-05-6726825d.pth", "https://"):
        assert word in stop.value.code
    assert not list(Path("hub").rglob("*.pth"))


def test_output_that_nobody_reads_or_can_show(light):
    np.savez("é.npz", mu=np.zeros(64), sigma=np.eye(64))
    command = [sys.executable, fid.__file__, *"é.npz é.npz --dims 64 --device cpu".split()]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "?.npz (N unknown)" in done.stdout
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE)
    os.close(written)
    assert b"Traceback" not in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_gives_the_numbers_of_the_cpu(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(weights, "w.pth")
    np.save("real.npy", noise(0, 20))
    np.save("fake.npy", noise(1, 20))
    flags = "--kid", "--prdc", "--nearest", "n.png"
    (cpu,) = run("real.npy", "fake.npy", *flags)
    (cuda,) = run("real.npy", "fake.npy", *flags, "--device", "cuda")
    assert cuda == pytest.approx(cpu, rel=1e-3, abs=1e-6)
    real, fake = two_clouds(1500, 1200, 64)
    moved = real.cuda(), fake.cuda()
    assert fid.kid(*moved, subsets=5) == pytest.approx(fid.kid(real, fake, subsets=5), rel=1e-6)
    assert fid.prdc(*moved) == pytest.approx(fid.prdc(real, fake), abs=1e-3)
