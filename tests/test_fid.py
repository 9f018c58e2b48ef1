"""fid.py: against pytorch-fid and torch-fidelity, closed forms, and what users hand it."""

import io
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dcgan
import fid

FEW = ["--allow-few", "--device", "cpu"]


@pytest.fixture(scope="module")
def weights():
    """Random weights of the whole network, in the names and shapes of the published file."""
    generator = torch.Generator().manual_seed(0)

    def randn(like, scale, mean=0.0):
        return mean + scale * torch.randn(like.shape, generator=generator)

    with torch.device("meta"):
        like = torchvision.models.inception_v3(
            weights=None, num_classes=1008, aux_logits=False, init_weights=False
        ).state_dict()
    state = {}
    for key, tensor in like.items():
        if key.endswith("conv.weight"):
            state[key] = randn(tensor, (2 / tensor[0].numel()) ** 0.5)
        elif key.endswith("num_batches_tracked"):
            continue
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(tensor.shape, generator=generator)
        else:
            state[key] = randn(tensor, 0.1, 1.0 if key.endswith("bn.weight") else 0.0)
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
    fid.main([str(arg) for arg in args] + FEW)


def results(tmp_path, *args):
    run(*args, "--json", tmp_path / "r.json", "--cache", tmp_path / "cache")
    return json.loads((tmp_path / "r.json").read_text())


def fails(capsys, *args, few=True):
    """The line that a command ends in; it must be one, and the exit code 1."""
    with pytest.raises(SystemExit) as error:
        fid.main([str(arg) for arg in args] + (FEW if few else FEW[1:]))
    line = str(error.value)
    assert isinstance(error.value.code, str) and "\n" not in line and "Traceback" not in line
    return line


# ---- The network, against pytorch-fid -----------------------------------------------------------


@pytest.mark.parametrize("dims", [64, 192, 768, 2048])
def test_features_are_those_of_pytorch_fid(weights, pytorch_fid, dims):
    images = torch.from_numpy(noise(0, 5, 40, 32)).permute(0, 3, 1, 2)
    theirs = pytorch_fid.InceptionV3([pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[dims]]).eval()
    with torch.no_grad():
        expected = theirs(images / 255)[0].mean((2, 3))
    features, logits = fid.Inception(weights, dims)(images)
    assert features.shape == (5, dims) and logits is None
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


def test_weights_that_end_after_the_layer_are_enough(weights):
    images = torch.from_numpy(noise(3, 2, 32, 32)).permute(0, 3, 1, 2)
    part = {k: v for k, v in weights.items() if not k.startswith(("Mixed_7", "fc"))}
    torch.testing.assert_close(
        fid.Inception(part, 768)(images), fid.Inception(weights, 768)(images)
    )
    with pytest.raises(ValueError, match=r"Mixed_7a.*missing"):
        fid.Inception(part, 2048)


@pytest.mark.parametrize("suffix, shapes", [
    ("png", [(32, 32)]), ("jpg", [(96, 96)]), ("png", [(32, 32), (50, 40), (96, 64)]),
])  # fmt: skip
def test_the_number_is_that_of_pytorch_fid(
    weights_file, pytorch_fid, tmp_path, suffix, shapes, capsys
):
    for seed, name in enumerate(("real", "fake")):
        for shape in shapes:
            write(tmp_path / name, noise(seed, 12 // len(shapes), *shape), suffix)
    folders = tmp_path / "real", tmp_path / "fake"
    expected = pytorch_fid.calculate_fid_given_paths(
        [str(folder) for folder in folders], 1 if len(shapes) > 1 else 5, "cpu", 192, 0
    )
    found = results(tmp_path, *folders, "--weights", weights_file, "--dims", 192)
    value = found["results"][0]["FID-192"]
    assert value == pytest.approx(expected, rel=1e-4) and value > 1e-3
    line = capsys.readouterr().out.splitlines()[-1]
    assert float(line.split()[1]) == pytest.approx(value, abs=1e-6) and line.count("N 12") == 2


def test_at_2048_as_well(weights_file, pytorch_fid, tmp_path):
    folders = [write(tmp_path / name, noise(i, 4, 32, 32)) for i, name in enumerate("ab")]
    expected = pytorch_fid.calculate_fid_given_paths([*map(str, folders)], 4, "cpu", 768, 0)
    found = results(tmp_path, *folders, "--weights", weights_file, "--dims", 768)
    assert found["results"][0]["FID-768"] == pytest.approx(expected, rel=1e-4)


# ---- The Fréchet distance -----------------------------------------------------------------------


def covariance(rng, d, rank):
    x = rng.normal(size=(rank, d)) * rng.uniform(0.1, 2, (rank, 1))
    return x.T @ x / rank


def distance(mu1, sigma1, mu2, sigma2):
    return fid.frechet_distance(mu1, fid.square_root(sigma1), mu2, fid.square_root(sigma2))


@given(d=st.integers(1, 40), seed=st.integers(0, 99), ranks=st.tuples(*[st.floats(0.1, 2)] * 2))
@settings(max_examples=40, deadline=None)
def test_a_square_root_squared_is_the_covariance(d, seed, ranks):
    rng = np.random.default_rng(seed)
    rank = max(1, int(ranks[0] * d))
    sigma = covariance(rng, d, rank)
    root = fid.square_root(sigma)
    np.testing.assert_allclose(root.T @ root, sigma, atol=1e-10 * sigma.max())
    assert len(root) <= d and (rank > d // 2 or len(root) <= rank + 1)


def test_commuting_gaussians():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    a, b, mu1, mu2 = rng.uniform(0.01, 4, 30), rng.uniform(0.01, 4, 30), *rng.normal(size=(2, 30))
    exact = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert distance(mu1, q * a @ q.T, mu2, q * b @ q.T) == pytest.approx(exact, rel=1e-10)


def test_gaussians_that_do_not_commute_in_two_dimensions():
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    # tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2
    trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    assert np.abs(a @ b - b @ a).max() > 0.1
    zero = np.zeros(2)
    exact = np.trace(a + b) - 2 * trace
    assert distance(zero, a, zero, b) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("ranks", [(60, 60), (60, 20), (10, 20), (1, 1)])
def test_any_ranks_against_singular_values(ranks):
    rng = np.random.default_rng(1)
    a, b = (covariance(rng, 50, rank) for rank in ranks)
    mu1, mu2 = rng.normal(size=(2, 50))
    (la, va), (lb, vb) = np.linalg.eigh(a), np.linalg.eigh(b)
    roots = (v * np.sqrt(v_.clip(0)) @ v.T for v_, v in ((la, va), (lb, vb)))
    nuclear = np.linalg.svd(np.matmul(*roots), compute_uv=False).sum()
    exact = ((mu1 - mu2) ** 2).sum() + np.trace(a + b) - 2 * nuclear
    assert distance(mu1, a, mu2, b) == pytest.approx(exact, abs=1e-5)
    assert distance(mu2, b, mu1, a) == pytest.approx(distance(mu1, a, mu2, b), abs=1e-9)


@pytest.mark.parametrize("rank", [2048, 300])
def test_2048_wide_a_scaled_covariance_and_itself(rank):
    rng = np.random.default_rng(2)
    sigma, mu = covariance(rng, 2048, rank), rng.normal(size=2048)
    root = fid.square_root(sigma)
    assert abs(fid.frechet_distance(mu, root, mu, root)) < 1e-6 * np.trace(sigma)
    exact = np.trace(sigma) * (2 - 1) ** 2  # N(mu, S) and N(mu, 4 S)
    assert fid.frechet_distance(mu, root, mu, 2 * root) == pytest.approx(exact, rel=1e-8)


def test_identical_sets_print_0(weights_file, tmp_path, capsys):
    folder = write(tmp_path / "set", noise(0, 6, 32, 32))
    found = results(tmp_path, folder, folder, "--weights", weights_file, "--dims", 768)
    assert abs(found["results"][0]["FID-768"]) < 1e-6
    captured = capsys.readouterr()
    assert captured.out.startswith("FID-768 0  ") and "REAL itself" in captured.err


def test_the_gram_form_is_the_full_form():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 100)), rng.normal(size=(35, 100)) * 1.3 + 0.1
    grams = [(z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y)]
    small = fid.frechet_distance(x.mean(0), grams[0], y.mean(0), grams[1])
    full = distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert small == pytest.approx(full, rel=1e-9)


@given(cuts=st.lists(st.integers(1, 99), max_size=6), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_streamed_moments_are_numpys(cuts, seed):
    x = np.random.default_rng(seed).normal(1000, 1, size=(100, 7)).astype(np.float32)
    moments, half = fid.Moments(7, "cpu"), fid.Moments(7, "cpu")
    parts = np.split(x, sorted(set(cuts)))
    for i, part in enumerate(parts):
        (moments if i % 2 else half).add(torch.from_numpy(part))
    if half.n:
        moments.merge(half.n, half.mean, half.scatter)
    assert moments.n == 100
    np.testing.assert_allclose(moments.mean, x.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(moments.scatter / 99, np.cov(x.T, dtype=np.float64), atol=1e-9)


# ---- The other distances ------------------------------------------------------------------------


def two_clouds(n=60, m=60, d=16):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(n, d, generator=generator),
        0.9 * torch.randn(m, d, generator=generator) + 0.2,
    ]


def test_kid_is_that_of_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = two_clouds()
    settings = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    theirs = kid_features_to_metric(x.double(), y.double(), **settings)
    mean, std = fid.kid(x, y, subsets=3)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert std < 1e-12  # every subset is the whole


def test_kid_has_no_bias():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 4, generator=generator)
    mean, std = fid.kid(x[:2000], x[2000:], subsets=200, subset_size=50)
    assert abs(mean) < 4 * std / np.sqrt(40) and std > 0  # 40: about that many are independent


def test_the_inception_score_is_that_of_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(100, 30, generator=torch.Generator().manual_seed(2))
    theirs = isc_features_to_metric(logits, 10, shuffle=False)
    mean, std = fid.inception_score(logits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-6)


def test_the_inception_score_at_its_ends():
    sure = 1000 * torch.eye(20).repeat(10, 1)  # every class equally often, without a doubt
    assert fid.inception_score(sure)[0] == pytest.approx(20)
    assert fid.inception_score(torch.zeros(50, 20)) == pytest.approx((1, 0))


def test_precision_and_recall_are_those_of_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = (cloud.double() for cloud in two_clouds(80, 50, 3))
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    ours = fid.prdc(real, fake)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.2 < ours["recall"] < 1 and ours["precision"] != ours["recall"]


def test_density_and_coverage_written_out():
    real, fake = (cloud.double() for cloud in two_clouds(40, 30, 3))
    apart = np.linalg.norm(real.numpy()[:, None] - real.numpy()[None], axis=2)
    radii = np.sort(apart, axis=1)[:, 5]
    inside = np.linalg.norm(fake.numpy()[:, None] - real.numpy()[None], axis=2) <= radii
    ours = fid.prdc(real, fake)
    assert ours["density"] == pytest.approx(inside.sum() / (5 * 30))
    assert ours["coverage"] == pytest.approx(inside.any(0).mean())


def test_prdc_does_not_depend_on_its_blocks():
    real, fake = two_clouds(1500, 1100, 2)
    whole = torch.cdist(fake.double(), real.double())
    radii = torch.cdist(real.double(), real.double()).sort(1).values[:, 3]
    assert fid.prdc(real, fake)["precision"] == pytest.approx(
        float((whole <= radii).any(1).double().mean())
    )


# ---- Inputs -------------------------------------------------------------------------------------


def test_every_kind_of_input_gives_the_same_number(weights_file, tmp_path):
    images = noise(4, 6, 32, 32)
    real = write(tmp_path / "real", noise(5, 6, 32, 32))
    folder = write(tmp_path / "deep" / "er", images[:3])
    write(tmp_path / "deep" / "down" / "here", images[3:]).joinpath("0000.png").rename(
        tmp_path / "deep" / "UPPER.PNG"
    )
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, image in enumerate(images):
            data = io.BytesIO()
            Image.fromarray(image).save(data, "PNG")
            archive.writestr(f"class/{i}.png", data.getvalue())
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images=images)
    fakes = [folder.parent, *(tmp_path / f"a.{suffix}" for suffix in ("zip", "npy", "npz"))]
    found = results(tmp_path, real, *fakes, "--weights", weights_file, "--dims", 192)
    values = [row["FID-192"] for row in found["results"]]
    assert all(row["n"] == 6 for row in found["results"])
    assert values == pytest.approx([values[0]] * 4, rel=1e-6) and values[0] > 1e-3


@pytest.fixture
def checkpoint(tmp_path):
    """A DCGAN run's checkpoint, as its script writes it."""
    dcgan.main(
        "--epochs 2 --size 16 --g-width 2 --d-width 2 --z-dim 4 --batch-size 512 --device cpu "
        f"--snapshot-every 1 --out {tmp_path}/run --cache {tmp_path}/cache".split()
    )
    return tmp_path / "run" / "checkpoint.pt"


def test_a_generator_counts_like_the_images_it_would_have_saved(checkpoint, weights_file, tmp_path):
    saved = dcgan.load_checkpoint(checkpoint)
    G = dcgan.Generator(**saved["generator"])
    G.load_state_dict(saved["G_ema"])
    pixels = dcgan.sample(G, dcgan.latents(range(7, 27), 4)).permute(0, 2, 3, 1).numpy()
    folder = write(tmp_path / "saved", pixels)
    real = write(tmp_path / "real", noise(6, 8, 16, 16))
    options = "--weights", weights_file, "--dims", 64, "--n", 20, "--seed", 7
    values = []
    for size in (3, 16):
        found = results(tmp_path, real, checkpoint, folder, *options, "--batch-size", size)
        values += [row["FID-64"] for row in found["results"]]
        assert found["results"][0]["n"] == 20 and found["results"][0]["epoch"] == 2
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)


def test_size_prepares_images_as_the_trainers_do(weights_file, tmp_path):
    large = noise(7, 6, 48, 64)
    folder = write(tmp_path / "large", large)
    images, _, _ = dcgan.load_data(folder, 16, cache=tmp_path / "cache")
    np.save(tmp_path / "small.npy", images.permute(0, 2, 3, 1).numpy())
    options = "--weights", weights_file, "--dims", 64
    found = results(tmp_path, folder, tmp_path / "small.npy", "--size", 16, *options)
    assert abs(found["results"][0]["FID-64"]) < 1e-6


def test_16_bit_grey_is_scaled(weights_file, tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    for name, images in (
        ("deep", [Image.fromarray(ramp), Image.fromarray(ramp[::-1].copy())]),
        ("flat", [Image.fromarray((a / 257).round().astype(np.uint8)) for a in (ramp, ramp[::-1])]),
    ):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            image.save(tmp_path / name / f"{i}.png")
    options = "--weights", weights_file, "--dims", 64
    found = results(tmp_path, tmp_path / "deep", tmp_path / "flat", *options)
    assert abs(found["results"][0]["FID-64"]) < 1e-6


def test_statistics_travel_both_ways(weights_file, pytorch_fid, tmp_path, capsys):
    real, fake = (write(tmp_path / n, noise(i, 8, 32, 32)) for i, n in enumerate(("r", "f")))
    options = "--weights", weights_file, "--dims", 192, "--cache", tmp_path / "cache"
    run(real, "--save-stats", tmp_path / "ours.npz", *options)
    assert "N 8" in capsys.readouterr().out
    pytorch_fid.save_fid_stats([str(real), str(tmp_path / "theirs.npz")], 4, "cpu", 192, 0)
    direct = results(tmp_path, real, fake, *options)["results"][0]["FID-192"]
    for stats in ("ours.npz", "theirs.npz"):
        found = results(tmp_path, tmp_path / stats, fake, *options)
        assert found["results"][0]["FID-192"] == pytest.approx(direct, rel=1e-5)
        paths = [str(tmp_path / stats), str(fake)]
        theirs = pytorch_fid.calculate_fid_given_paths(paths, 4, "cpu", 192, 0)
        assert theirs == pytest.approx(direct, rel=1e-4)
    assert found["real"]["n"] is None
    only = results(tmp_path, tmp_path / "ours.npz", tmp_path / "theirs.npz", "--dims", 192)
    assert abs(only["results"][0]["FID-192"]) < 1e-4  # no network, no weights


def test_the_cache_is_used_and_notices_a_changed_source(weights_file, tmp_path, monkeypatch):
    real, fake = (write(tmp_path / n, noise(i, 5, 32, 32)) for i, n in enumerate(("r", "f")))
    options = real, fake, "--weights", weights_file, "--dims", 64
    first = results(tmp_path, *options)["results"][0]["FID-64"]
    measured, measure = [], fid.measure_images
    monkeypatch.setattr(
        fid, "measure_images", lambda i, *a: measured.append(i.name) or measure(i, *a)
    )
    assert results(tmp_path, *options)["results"][0]["FID-64"] == pytest.approx(first, rel=1e-6)
    assert measured == [str(fake)]
    write(real, noise(9, 3, 32, 32))
    assert results(tmp_path, *options)["results"][0]["FID-64"] != pytest.approx(first, rel=1e-3)
    assert measured[1:] == [str(real), str(fake)]


PEAK = """
import resource, types, torch, fid

class Net:  # as Inception's first layers do, large maps come and go, and a few numbers stay
    dims, device, fc = 64, torch.device("cpu"), None

    def __call__(self, images):
        x = torch.rand(len(images), 32, 147, 147)
        return torch.cat([x.relu(), x], 1).mean((2, 3)), None

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def batches(rank, world):
    return ((range(i, i + 4), torch.zeros(4, 3, 8, 8)) for i in range(0, 1600, 4))

net, args = Net(), types.SimpleNamespace(batch_size=4, allow_few=True)
net(torch.zeros(4, 3, 8, 8))
before = peak()
fid.measure_images(fid.Images("many", 1600, batches, [], {}), net, args, keep=False)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_what_stays_does_not_leave_the_heap_in_pieces():
    """Features in small tensors of their own would each hold a hole of a map's size open."""
    env = os.environ | {"PYTHONPATH": str(Path(fid.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", PEAK], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 400  # MB, of which 45 are the maps of one batch


def test_all_metrics_come_from_one_pass(weights_file, tmp_path, capsys, monkeypatch):
    real, fake = (write(tmp_path / n, noise(i, 12, 32, 32)) for i, n in enumerate(("r", "f")))
    passes, call = [], fid.Inception.__call__
    monkeypatch.setattr(fid.Inception, "__call__", lambda s, x: passes.append(len(x)) or call(s, x))
    flags = ["--kid", "--is", "--prdc"]
    found = results(tmp_path, real, fake, "--weights", weights_file, "--dims", 64, *flags)
    row = found["results"][0]
    names = "precision recall density coverage KID".split()
    assert {f"{name}-64" for name in names} | {"FID-64", "IS", "KID-64 std"} <= row.keys()
    assert sum(passes) == 24
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "IS 1." in out and "KID-64" in out


def test_the_curve_over_epochs(checkpoint, weights_file, tmp_path):
    real = write(tmp_path / "real", noise(6, 8, 16, 16))
    snapshots = sorted((checkpoint.parent / "snapshots").iterdir())
    assert len(snapshots) == 2
    run(real, *snapshots, "--weights", weights_file, "--dims", 64, "--n", 4, "--plot",
        tmp_path / "curve.png", "--cache", tmp_path / "cache")  # fmt: skip
    rows = (tmp_path / "curve.csv").read_text().splitlines()
    assert rows[0] == "run,script,epoch,step,n,FID-64" and len(rows) == 3
    assert [row.split(",")[:3] for row in rows[1:]] == [
        ["run", "dcgan.py", "1"], ["run", "dcgan.py", "2"]]  # fmt: skip
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 400


def test_two_processes_give_the_number_of_one(weights_file, tmp_path):
    real, fake = (write(tmp_path / n, noise(i, 9, 32, 32)) for i, n in enumerate(("r", "f")))
    options = ["--weights", weights_file, "--dims", "64", "--batch-size", "2"]
    alone = results(tmp_path, real, fake, *options)["results"][0]["FID-64"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        fid.__file__,
    ]
    command += [str(real), str(fake), *options, *FEW, "--json", str(tmp_path / "two.json")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, "--cache", str(tmp_path / "c2")], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FID-64") == 1
    together = json.loads((tmp_path / "two.json").read_text())["results"][0]
    assert together["FID-64"] == pytest.approx(alone, rel=1e-6) and together["n"] == 9


# ---- Bad input ----------------------------------------------------------------------------------


def test_usage(capsys):
    for args, words in [
        (["real"], "nothing to do"),
        (["real", "--save-stats", "a.npz", "--kid"], "take a FAKE"),
        (["real", "fake", "--plot", "a.png"], "epoch"),
        (["real", "a.pt", "--plot", "a.gif"], ".png"),
        (["real", "--save-stats", "a.txt"], ".npz"),
        (["real", "fake", "--dims", "100"], "2048"),
        (["real", "fake", "--n", "0"], "less than 1"),
    ]:
        with pytest.raises(SystemExit) as error:
            fid.main(args)
        assert error.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


def test_sets_that_make_no_number(tmp_path, capsys, weights_file):
    good = write(tmp_path / "good", noise(0, 4, 32, 32))
    (tmp_path / "empty").mkdir()
    assert "no images" in fails(capsys, good, tmp_path / "empty")
    one = write(tmp_path / "one", noise(0, 1, 32, 32))
    assert "1 image;" in fails(capsys, good, one)
    assert "no such file" in fails(capsys, good, tmp_path / "missing")
    line = fails(capsys, good, good, few=False)
    assert "4 images are few" in line and "--allow-few" in line
    cut = write(tmp_path / "cut", noise(0, 4, 32, 32))
    (cut / "0002.png").write_bytes((cut / "0002.png").read_bytes()[:100])
    options = ["--weights", weights_file, "--dims", 64, "--cache", tmp_path / "cache"]
    assert "0002.png" in fails(capsys, good, cut, *options)
    run(good, cut, *options, "--skip-corrupt")
    out = capsys.readouterr().out
    assert "1 unreadable" in out and "(N 3)" in out


def test_statistics_that_are_none(tmp_path, capsys):
    def save(**arrays):
        np.savez(tmp_path / "s.npz", **arrays)
        return tmp_path / "s.npz"

    def good(d=64, **more):
        return {"mu": np.zeros(d), "sigma": np.eye(d)} | more

    np.savez(tmp_path / "good.npz", **good())
    base = [tmp_path / "good.npz", "--dims", 64]

    assert "width 2048" in fails(capsys, save(**good(2048)), *base)
    assert "not finite" in fails(capsys, save(**good(sigma=np.full((64, 64), np.nan))), *base)
    assert "not a covariance" in fails(
        capsys, save(**good(sigma=np.triu(np.ones((64, 64))))), *base
    )
    assert "few" in fails(capsys, save(**good(n=100)), *base, few=False)
    assert "--kid" in fails(capsys, save(**good()), *base, "--kid")
    np.savez(tmp_path / "good.npz", **good(weights="aaaaaaaa"))
    assert "cannot be compared" in fails(capsys, save(**good(weights="bbbbbbbb")), *base)
    objects = np.array([{"a": 1}], dtype=object)
    assert "cannot be read" in fails(capsys, save(mu=objects, sigma=objects), *base)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-was-run",)


def test_weights_that_are_none(tmp_path, capsys, weights, weights_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = write(tmp_path / "real", noise(0, 4, 32, 32))

    def line(*more):
        return fails(capsys, real, real, "--weights", "w.pth", "--cache", "cache", *more)

    assert "no such file" in line()
    Path("w.pth").write_bytes(Path(weights_file).read_bytes()[:1000])
    assert "cut short" in line()
    Path("w.pth").write_bytes(pickle.dumps(Hostile()))
    assert "nothing in it was run" in line()
    torch.save({"a": Hostile()}, "w.pth")
    assert "nothing in it was run" in line() and not Path("hostile-was-run").exists()
    torch.save(torchvision.models.resnet18().state_dict(), "w.pth")
    assert "not the Inception weights" in line()
    torch.save({k: v for k, v in weights.items() if "Mixed_6" not in k}, "w.pth")
    assert "Mixed_6a" in line("--dims", 768)
    torch.save({k: v for k, v in weights.items() if "fc" not in k}, "w.pth")
    assert "fc.weight" in line("--is")


def test_no_weights_and_no_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))

    def offline(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    real = write(tmp_path / "real", noise(0, 4, 32, 32))
    line = fails(capsys, real, real)
    for word in ("unreachable", "--weights", "pt_inception-2015-12-05-6726825d.pth", "https://"):
        assert word in line


def test_a_download_with_another_hash_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    other = tmp_path / "other.pth"
    other.write_bytes(b"not the weights")
    monkeypatch.setattr(fid, "WEIGHTS", other.as_uri() + "/../pt_inception-6726825d.pth")
    fetch = torch.hub.download_url_to_file
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, *a, **k: fetch(other.as_uri(), *a, **k)
    )
    real = write(tmp_path / "real", noise(0, 4, 32, 32))
    assert "invalid hash value" in fails(capsys, real, real)
    assert not list((tmp_path / "hub" / "checkpoints").glob("*.pth"))


def test_checkpoints_without_a_generator(tmp_path, capsys):
    real = write(tmp_path / "real", noise(0, 4, 32, 32))
    path = tmp_path / "c.pt"
    path.write_text("hello")
    assert "not a checkpoint" in fails(capsys, real, path)
    torch.save({"format": 1, "script": "dcgan.py"}, path)
    assert "no generator" in fails(capsys, real, path)
    torch.save({"format": 2, "script": "dcgan.py"}, path)
    assert "newer" in fails(capsys, real, path)


def test_outputs_are_checked_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fid, "load_inception", lambda *_: pytest.fail("the work has begun"))
    real = write(tmp_path / "real", noise(0, 4, 32, 32))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    bad = tmp_path / "file" / "out.json"
    assert "cannot be written" in fails(capsys, real, real, "--json", bad)
    assert "folder" in fails(capsys, real, "--save-stats", tmp_path / "folder.npz")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "x.pt").write_text("")
    line = fails(capsys, real, tmp_path / "x.pt", "--plot", tmp_path / "p.png")
    assert "matplotlib" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_gives_the_number_of_the_cpu(weights_file, tmp_path):
    real, fake = (write(tmp_path / n, noise(i, 9, 32, 32)) for i, n in enumerate(("r", "f")))
    options = ["--weights", weights_file, "--dims", "192", "--allow-few"]
    values = []
    for device in ("cpu", "cuda"):
        places = ["--cache", str(tmp_path / device), "--json", str(tmp_path / "r.json")]
        fid.main([str(real), str(fake), *options, "--device", device, *places])
        values.append(json.loads((tmp_path / "r.json").read_text())["results"][0]["FID-192"])
    assert values[1] == pytest.approx(values[0], rel=1e-4)
