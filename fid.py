# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch>=2.6", "torchvision>=0.21", "numpy>=2", "scipy>=1.11", "pillow>=10.1", "tqdm",
#     "matplotlib",
# ]
# ///
"""FID: the Fréchet Inception distance between sets of images (Martin Heusel, Hubert Ramsauer,
Thomas Unterthiner, Bernhard Nessler, Sepp Hochreiter, NeurIPS 2017, arXiv 1706.08500, equation 6).

    x -> features of the Inception network of 2015-12-05        2048 numbers an image
    mu, Sigma = their mean and covariance, in float64           for REAL and for each FAKE
    FID = |mu1 - mu2|^2 + tr(Sigma1 + Sigma2 - 2 (Sigma1 Sigma2)^(1/2))

Lower is better, 0 is the same set. It falls as N grows even if nothing else changes, so N is always
printed, and numbers at different N are not to be compared. Other widths of features give other
quantities, and are named so: FID-768 is not FID.

Usage
    python fid.py real/ fake/
    python fid.py photos.zip fake-a/ fake-b.npz               REAL's statistics are computed once
    python fid.py cifar10 runs/dcgan/checkpoint.pt            50,000 samples, made on the fly
    python fid.py cifar10 --save-stats cifar10.npz            statistics, for pytorch-fid as well
    python fid.py cifar10.npz runs/dcgan/snapshots/epoch_0040.pt --allow-few --n 1000
    python fid.py real/ fake/ --kid --is --prdc --json result.json
    python fid.py cifar10.npz runs/dcgan/snapshots/epoch_0010.pt --plot fid.png
    torchrun --nproc-per-node=4 fid.py real/ fake/            the images shared out

REAL and FAKE are folders at any depth, .zip archives, .npy or .npz files of uint8 (N, H, W, 3),
.npz files of statistics (mu, sigma), cifar10, stl10, celeba, lsun-NAME, sprites, or checkpoints and
snapshots of dcgan.py, wgan.py and wgan_gp.py, whose image i is the latent of seed --seed + i.

Writes
    nothing but the --save-stats, --json and --plot files, and REAL's statistics in --cache

Beside pytorch-fid, whose number it gives
    1. Transparency is composed on white, 16 bits are scaled to 8 and EXIF rotations are followed;
       pytorch-fid drops, clips and ignores them.
    2. Batch norms are folded into the convolutions, and 1x1 convolutions of one input are one: the
       same function of the image, to rounding.
    3. tr (Sigma1 Sigma2)^(1/2) is the nuclear norm of R1 R2^T for any R with R^T R = Sigma: real by
       construction, and with N < width small.

Measured
    On two cores of an AMD EPYC with AVX-512 bfloat16, torch 2.14.1: 4,000 CIFAR-10 images at 2048
    features in 112 s, with --precision bf16 in 61 s (n = 1); pytorch-fid 0.3.0 took 303 s.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import pickle
import socket
import sys
import tempfile
import warnings
import zipfile
from collections import deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import scipy.linalg
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps
from torch import nn

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

SCRIPT = "fid.py"

# ---- Inception -----------------------------------------------------------------------------------

WEIGHTS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
LAST = {64: "Conv2d_2b_3x3", 192: "Conv2d_4a_3x3", 768: "Mixed_6e", 2048: "Mixed_7c"}  # of a width
FEW = 2048  # images, under which the covariance of 2048 features cannot have full rank
STRIDE_2 = (
    "Conv2d_1a_3x3 Mixed_6a.branch3x3 Mixed_6a.branch3x3dbl_3 Mixed_7a.branch3x3_2 "
    "Mixed_7a.branch7x7x3_4"
).split()
UNPADDED = [*STRIDE_2, "Conv2d_2a_3x3", "Conv2d_4a_3x3"]
HEADS = {  # the 1x1 convolutions that read a block's input
    "Mixed_5": ("branch1x1", "branch5x5_1", "branch3x3dbl_1", "branch_pool"),
    "Mixed_6": ("branch1x1", "branch7x7_1", "branch7x7dbl_1", "branch_pool"),
    "Mixed_7": ("branch1x1", "branch3x3_1", "branch3x3dbl_1", "branch_pool"),
}


class Inception:
    """Images uint8 (B, 3, H, W) -> features (B, dims) and logits (B, 1008) or None, float32.

    The network of Szegedy et al. (2015, arXiv 1512.00567) as released for TensorFlow on 2015-12-05,
    whose average pooling does not count its padding and whose last block has max pooling. `weights`
    is a state dict in pytorch-fid's names; what lies beyond `dims` may be missing. Features are the
    means of the map after LAST[dims] (pooled, for 64 and 192); logits are without their bias, as in
    the Inception score's own code. ValueError says how the weights are those of another network.
    """

    def __init__(self, weights, dims=2048, logits=False, device="cpu", dtype=torch.float32):
        with torch.device("meta"):  # torchvision's layers have the same names and shapes
            known = torchvision.models.inception_v3(
                weights=None, num_classes=1008, aux_logits=False, init_weights=False
            ).state_dict()
        names = [key.removesuffix(".conv.weight") for key in known if key.endswith(".conv.weight")]
        last = LAST[2048 if logits else dims]
        names = names[: 1 + max(i for i, name in enumerate(names) if name.startswith(last))]
        keys = "conv.weight bn.weight bn.bias bn.running_mean bn.running_var".split()
        for key in [f"{name}.{key}" for name in names for key in keys] + ["fc.weight"] * logits:
            shape = getattr(weights.get(key), "shape", None)
            if shape != known[key].shape:
                shape = f"is {tuple(shape)}" if shape else "is missing"
                raise ValueError(f"{key} {shape}, not {tuple(known[key].shape)}")

        self.dims, self.device, self.dtype, self.convs = dims, torch.device(device), dtype, {}
        for name in names:  # fold batch norm, whose eps is 1e-3, into the convolution before it
            weight, scale, shift, mean, var = (weights[f"{name}.{key}"].double() for key in keys)
            scale = scale / (var + 1e-3).sqrt()
            self.convs[name] = weight * scale[:, None, None, None], shift - mean * scale
        blocks = {name.split(".")[0] for name in names if "." in name} - {"Mixed_6a", "Mixed_7a"}
        for block in blocks:  # make one convolution of those that read the block's input
            heads = [self.convs[f"{block}.{head}"] for head in HEADS[block[:-1]]]
            heads = heads[:3] if block == "Mixed_7c" else heads
            self.convs[f"{block}.heads"] = tuple(map(torch.cat, zip(*heads)))
        for name, (weight, bias) in self.convs.items():
            weight = weight.to(device, dtype, memory_format=torch.channels_last)
            self.convs[name] = weight, bias.to(device, dtype)
        self.fc = weights["fc.weight"].to(device, torch.float32) if logits else None

    @torch.no_grad()
    def __call__(self, images):
        x = images.to(self.device).float() / 255
        x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
        x = (2 * x - 1).to(self.dtype, memory_format=torch.channels_last)
        features = None
        for dims, block in self.blocks():
            x = block(x)
            if dims == self.dims:
                features = x.mean((2, 3), dtype=torch.float32)
        logits = None if self.fc is None else x.mean((2, 3), dtype=torch.float32) @ self.fc.T
        return features, logits

    def blocks(self):
        """(width of the features after it, function) of each stage that is needed."""
        stages = [(64, self.stem), (192, self.stem_2), (768, self.mixed), (2048, self.mixed_7)]
        return stages[: 4 if self.fc is not None else 1 + list(LAST).index(self.dims)]

    def stem(self, x):  # (B, 3, 299, 299) -> (B, 64, 73, 73)
        return F.max_pool2d(self.chain(x, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), 3, 2)

    def stem_2(self, x):  # -> (B, 192, 35, 35)
        return F.max_pool2d(self.chain(x, "Conv2d_3b_1x1", "Conv2d_4a_3x3"), 3, 2)

    def mixed(self, x):  # -> (B, 288, 35, 35) -> (B, 768, 17, 17)
        for m in ("Mixed_5b.", "Mixed_5c.", "Mixed_5d."):
            a, b, c, pool = self.heads(x, m)
            b = self.chain(b, m + "branch5x5_2")
            c = self.chain(c, m + "branch3x3dbl_2", m + "branch3x3dbl_3")
            x = torch.cat([a, b, c, pool], 1)
        m = "Mixed_6a."
        b = self.chain(x, m + "branch3x3")
        c = self.chain(x, *(f"{m}branch3x3dbl_{i}" for i in (1, 2, 3)))
        x = torch.cat([b, c, F.max_pool2d(x, 3, 2)], 1)
        for m in ("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."):
            a, b, c, pool = self.heads(x, m)
            b = self.chain(b, m + "branch7x7_2", m + "branch7x7_3")
            c = self.chain(c, *(f"{m}branch7x7dbl_{i}" for i in (2, 3, 4, 5)))
            x = torch.cat([a, b, c, pool], 1)
        return x

    def mixed_7(self, x):  # -> (B, 1280, 8, 8) -> (B, 2048, 8, 8)
        m = "Mixed_7a."
        b = self.chain(x, m + "branch3x3_1", m + "branch3x3_2")
        c = self.chain(x, *(f"{m}branch7x7x3_{i}" for i in (1, 2, 3, 4)))
        x = torch.cat([b, c, F.max_pool2d(x, 3, 2)], 1)
        for m in ("Mixed_7b.", "Mixed_7c."):
            a, b, c, *pool = self.heads(x, m)
            c = self.chain(c, m + "branch3x3dbl_2")
            ends = [(b, "branch3x3_2a"), (b, "branch3x3_2b")]
            ends += [(c, "branch3x3dbl_3a"), (c, "branch3x3dbl_3b")]
            ends = [self.chain(y, m + name) for y, name in ends]
            pool = pool or [self.chain(F.max_pool2d(x, 3, 1, 1), m + "branch_pool")]
            x = torch.cat([a, *ends, *pool], 1)
        return x

    def heads(self, x, m):
        """What the block's 1x1 convolutions make of x; the average pool comes after its own."""
        names = HEADS[m[:-2]][: 3 if m == "Mixed_7c." else 4]
        parts = F.conv2d(x, *self.convs[m + "heads"])
        parts = list(parts.split([len(self.convs[m + name][1]) for name in names], 1))
        if len(parts) == 4:  # both are linear, and this order pools fewer channels
            parts[3] = F.avg_pool2d(parts[3], 3, 1, 1, count_include_pad=False)
        return [part.relu() for part in parts]

    def chain(self, x, *names):
        """Convolutions with batch norm and ReLU, one after the other."""
        for name in names:
            weight, bias = self.convs[name]
            padding = [0 if name in UNPADDED else k // 2 for k in weight.shape[2:]]
            x = F.conv2d(x, weight, bias, 1 + (name in STRIDE_2), padding).relu_()
        return x


def load_inception(path, dims, logits, device, dtype):
    """The Inception network with the weights of a file, or with the published ones, and the first
    eight digits of the file's sha256."""
    if not path:
        path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS.rpartition("/")[2]
        if not path.exists():
            fetch_weights(path)
    try:
        with warnings.catch_warnings():  # of a foreign pickle's protocol
            warnings.simplefilter("ignore")
            weights = torch.load(path, map_location="cpu", weights_only=True)
        digits = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
    except FileNotFoundError:
        raise SystemExit(f"--weights {path}: no such file")
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError):
        raise SystemExit(f"{path}: cut short, or not a file of weights (nothing in it was run)")
    try:
        return Inception(dict(weights), dims, logits, device, dtype), digits
    except (TypeError, ValueError) as error:
        need = f"--dims {dims}" + " and --is" * logits
        raise SystemExit(f"{path}: not the Inception weights that {need} needs ({error})")


def fetch_weights(path):
    """Download the published weights to `path` and check them against the digits in their name."""
    print(f"fetching {WEIGHTS} (91 MB), once, to {path}", file=sys.stderr, flush=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without a byte, then it counts as stalled
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(WEIGHTS, str(path), hash_prefix="6726825d")
    except (OSError, RuntimeError) as error:
        raise SystemExit(
            f"the Inception weights cannot be had ({first_line(error)}). Fetch them elsewhere from "
            f"{WEIGHTS} and put them at {path}, or name the file with --weights"
        )
    finally:
        socket.setdefaulttimeout(before)


# ---- Distances -----------------------------------------------------------------------------------


def frechet_distance(mu1, root1, mu2, root2):
    """Squared Fréchet distance of the Gaussians N(mu1, R1^T R1) and N(mu2, R2^T R2), float64.

    mu (d,), roots (any, d): `square_root(sigma)`, or centred features / sqrt(N - 1). Dowson and
    Landau 1982: |mu1 - mu2|^2 + tr Sigma1 + tr Sigma2 - 2 tr (Sigma1 Sigma2)^(1/2), where the last
    trace is the nuclear norm of M = R1 R2^T, the sum of the roots of M M^T's eigenvalues.
    """
    m = root1 @ root2.T
    m = m @ m.T if len(m) <= m.shape[1] else m.T @ m
    nuclear = np.sqrt(scipy.linalg.eigvalsh(m).clip(0)).sum()
    return float(((mu1 - mu2) ** 2).sum() + (root1**2).sum() + (root2**2).sum() - 2 * nuclear)


def square_root(sigma):
    """R (rank, d) with R^T R = sigma (d, d), by a Cholesky decomposition with pivots."""
    upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(sigma)
    root = np.empty((rank, len(sigma)))
    root[:, pivots - 1] = np.triu(upper)[:rank]
    return root


def kid(x, y, subsets=100, subset_size=1000, seed=0):
    """Kernel Inception distance of features (N, d) and (M, d): mean and standard deviation.

    Bińkowski et al. 2018 (arXiv 1801.01401), section 4: the unbiased estimate of the squared MMD
    with the kernel (x.y / d + 1)^3, over random subsets of both; 0 is the same distribution.
    """
    rng, n = np.random.default_rng(seed), min(subset_size, len(x), len(y))
    estimates = []
    for _ in range(subsets):
        a, b = (part[rng.choice(len(part), n, replace=False)].double() for part in (x, y))
        aa, bb, ab = ((p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        same = sum((k.sum() - k.trace()) / (n * (n - 1)) for k in (aa, bb))
        estimates.append(float(same - 2 * ab.mean()))
    return float(np.mean(estimates)), float(np.std(estimates))


def inception_score(logits, splits=10):
    """exp E KL(p(y|x) || p(y)) of logits (N, classes): mean and standard deviation over splits.

    Salimans et al. 2016 (arXiv 1606.03498), section 4; 1 at the least, the number of classes at
    the most.
    """
    scores = []
    for part in np.array_split(np.arange(len(logits)), min(splits, len(logits))):
        log_p = logits[part].double().log_softmax(1)
        log_mean = log_p.logsumexp(0) - np.log(len(part))
        scores.append(float((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def prdc(real, fake, k_pr=3, k_dc=5):
    """Precision, recall, density and coverage of features (N, d) and (M, d).

    Precision: the share of fakes in the ball of some real image, whose radius is the distance to
    its k-th neighbour; recall: the same with the roles exchanged (Kynkäänniemi et al. 2019, arXiv
    1904.06991, k = 3). Density counts those balls, over k; coverage is the share of balls that
    hold a fake (Naeem et al. 2020, arXiv 2002.09797, k = 5).
    """
    real, fake = real.double(), fake.double()
    reach_pr, reach_dc = neighbour_distances(real, (k_pr, k_dc))
    (reach_fake,) = neighbour_distances(fake, (k_pr,))
    precise = inside = 0
    recalled = covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part, reach in zip(fake.split(1024), reach_fake.split(1024)):
        distance = torch.cdist(part, real)  # (1024, N)
        precise += (distance <= reach_pr).any(1).sum()
        recalled = recalled | (distance <= reach[:, None]).any(0)
        inside += (distance <= reach_dc).sum()
        covered = covered | (distance <= reach_dc).any(0)
    return {
        "precision": float(precise) / len(fake),
        "recall": float(recalled.double().mean()),
        "density": float(inside) / (k_dc * len(fake)),
        "coverage": float(covered.double().mean()),
    }


def neighbour_distances(x, ks):
    """The distance of each row of x (N, d) to its k-th neighbour, (N,), for each k."""
    rows = []
    for part in x.split(1024):
        nearest = torch.cdist(part, x).topk(min(max(ks) + 1, len(x)), largest=False).values
        rows.append(nearest)  # ascending, the row itself first
    nearest = torch.cat(rows)
    return [nearest[:, min(k, len(x) - 1)] for k in ks]


# ---- Statistics ----------------------------------------------------------------------------------

# Of one set: n images (None: not known), mean (d,) and covariance (d, d) in float64, a square root
# of it (rank, d), features (n, d) and logits (n, 1008) in float32 where they are asked for,
# and the digits that name the weights of the network (None: not known).
Stats = namedtuple("Stats", "n mu sigma root features logits weights")


class Moments:
    """Mean (d,) and scatter (d, d) in float64 of rows that come in parts (Chan et al. 1979)."""

    def __init__(self, dims, device):
        self.n, self.mean = 0, torch.zeros(dims, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dims, dims, dtype=torch.float64, device=device)

    def add(self, x):
        x = x.to(self.mean)
        mean = x.mean(0)
        self.merge(len(x), mean, (x - mean).T @ (x - mean))

    def merge(self, n, mean, scatter):
        total, apart = self.n + n, mean - self.mean
        self.scatter += scatter + apart.outer(apart) * (self.n * n / total)
        self.mean += apart * (n / total)
        self.n = total


def measure_images(images, net, args, keep):
    """The Stats of a set of images. `keep`: hold on to all features, for KID and the like.

    The processes of a torchrun share the images out, and all get the whole result.
    """
    rank, world = world_of()
    home = "cpu" if net.device.type == "mps" else net.device  # MPS has no float64
    moments, numbers, filled = Moments(net.dims, home), [], 0
    # A few large buffers are filled: many small tensors that stay would leave the heap in pieces.
    block = torch.empty(max(1024, args.batch_size), net.dims, device=net.device)
    rows = images.n if keep or images.n < net.dims else 0
    widths = [net.dims] if net.fc is None else [net.dims, 1008]
    kept = [torch.empty(rows, width) for width in widths]  # features, and logits
    bar = progress(images.n, "image")
    for index, batch in images.batches(rank, world):
        found = net(batch)
        if filled + len(index) > len(block):  # few and large matrix products
            moments.add(block[:filled])
            filled = 0
        block[filled : filled + len(index)] = found[0]
        filled += len(index)
        numbers += index
        for each, values in zip(kept if rows else [], found):
            each[list(index)] = values.cpu()
        bar.update(len(index) * world)
    bar.close()
    if filled:
        moments.add(block[:filled])
    kept = [each[numbers] for each in kept if rows]
    if world > 1:
        parts, own = [None] * world, (moments.n, moments.mean.cpu(), moments.scatter.cpu())
        dist.all_gather_object(parts, (own, numbers, kept))
        moments, numbers = Moments(net.dims, "cpu"), [i for part in parts for i in part[1]]
        for part, _, _ in parts:
            if part[0]:
                moments.merge(*part)
        kept = [torch.cat(shares) for shares in zip(*(part[2] for part in parts))]
    n, mu = moments.n, moments.mean.cpu().numpy()
    enough(images.name, n, args)
    sigma = (moments.scatter / (n - 1)).cpu().numpy()
    order = torch.tensor(numbers).argsort()
    features, logits = [*(each[order] for each in kept), None, None][:2]
    if features is not None and n < net.dims:
        root = (features.double().numpy() - mu) / np.sqrt(n - 1)
    else:
        root = square_root(sigma)
    return Stats(n, mu, sigma, root, features if keep else None, logits, None)


def enough(name, n, args):
    """SystemExit for too few images, before or after they have been looked at."""
    if n < 2:
        raise SystemExit(f"{name}: holds {n} image{'s' * (n != 1)}; a covariance takes two or more")
    if n < FEW and not args.allow_few:
        raise SystemExit(
            f"{name}: {n:,} images are few: FID grows as N falls, most of all under {FEW:,}, where "
            "the covariance of 2,048 features loses rank. Give more, or --allow-few"
        )


def load_stats(path, args):
    """The Stats in an .npz of pytorch-fid's or this script's."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # zipfile and zlib raise nearly anything on a damaged file
        raise SystemExit(f"{path}: cannot be read ({first_line(error)})")
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.shape != (args.dims,) or sigma.shape != (args.dims, args.dims):
        raise SystemExit(
            f"{path}: statistics of width {mu.size}: compare them with --dims {mu.size}"
        )
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise SystemExit(f"{path}: mu and sigma are no floating-point numbers")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise SystemExit(f"{path}: mu or sigma holds numbers that are not finite; make it anew")
    if not np.allclose(sigma, sigma.T) or (np.diagonal(sigma) < 0).any():
        raise SystemExit(f"{path}: sigma is not a covariance; make it anew")
    n, weights = (arrays[key].item() if key in arrays else None for key in ("n", "weights"))
    if n is not None:
        enough(path, n, args)
    return Stats(n, mu, sigma, square_root(sigma), None, None, weights)


def save_stats(path, stats):
    """Write what load_stats and pytorch-fid read; the latter looks at mu and sigma alone."""
    arrays = {key: getattr(stats, key) for key in ("mu", "sigma", "n", "weights")}
    arrays = {key: np.asarray(value) for key, value in arrays.items() if value is not None}
    write_file(Path(path), lambda file: np.savez_compressed(file, **arrays))


# ---- Images --------------------------------------------------------------------------------------

# n images; batches(rank, world) yields this process's share as (numbers, uint8 (B, 3, H, W));
# key names the content, for the cache; info is what a checkpoint says of itself.
Images = namedtuple("Images", "name n batches key info")


def open_images(name, args, device):
    """The Images of a path or a data name, or None for a file of statistics."""
    if is_statistics(name):
        return None
    if Path(name).suffix in (".pt", ".pth"):
        return sampled(name, args, device)
    source = open_source(name, args.size or 32, Path(args.cache))
    if not len(source.items):
        raise SystemExit(f"{name}: there are no images in it, at any depth")

    def load(i):
        with source.read(i) as image:
            if args.size:
                return square(image, args.size)
            return np.asarray(as_rgb(image)).transpose(2, 0, 1)

    def batches(rank, world):
        sizes, left_out = {}, 0  # images wait for their batch with those of their own size
        for i, pixels in ahead(load, range(rank, len(source.items), world), 4 * args.batch_size):
            if isinstance(pixels, Exception):
                if not args.skip_corrupt:
                    reason = f"cannot be read ({first_line(pixels)}); --skip-corrupt leaves it out"
                    raise SystemExit(f"{name}: {source.items[i]} {reason}")
                left_out += 1
                continue
            batch = sizes.setdefault(pixels.shape, [])
            batch.append((i, pixels))
            if len(batch) == args.batch_size:
                yield stack(sizes.pop(pixels.shape))
        for batch in sizes.values():
            yield stack(batch)
        if left_out:
            print(f"{name}: {left_out:,} unreadable files left out")

    key = ["fid 1", source.key, args.size, args.skip_corrupt]
    enough(name, len(source.items), args)
    return Images(name, len(source.items), batches, key, {})


def stack(batch):
    return [i for i, _ in batch], torch.from_numpy(np.stack([pixels for _, pixels in batch]))


def ahead(load, items, window):
    """(item, load(item) or the Exception it raised), in order, `window` of them under way."""

    def safe(item):
        try:
            return item, load(item)
        except Exception as error:  # on a damaged file Pillow raises nearly anything
            return item, error

    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # here, for the filters are common to all threads
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(safe, item))
                if len(waiting) > window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def sampled(name, args, device):
    """The Images of a generator: number i is the latent of seed --seed + i, rounded to bytes."""
    checkpoint = load_checkpoint(name)
    try:
        G = Generator(**checkpoint["generator"])
        G.load_state_dict(checkpoint["G_ema" if "G_ema" in checkpoint else "G"])
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SystemExit(f"{name}: holds no generator of these scripts ({first_line(error)})")
    G.to(device, memory_format=torch.channels_last)

    def batches(rank, world):
        for start in range(rank * args.batch_size, args.n, world * args.batch_size):
            index = range(start, min(start + args.batch_size, args.n))
            seeds = [args.seed + i for i in index]
            images = sample(G, latents(seeds, checkpoint["generator"]["z_dim"]), args.batch_size)
            if args.size:
                pixels = images.permute(0, 2, 3, 1).numpy()
                pixels = [square(Image.fromarray(image), args.size) for image in pixels]
                images = torch.from_numpy(np.stack(pixels))
            yield index, images

    enough(name, args.n, args)
    stamp = Path(name).stat()
    key = ["sampled 1", str(Path(name).resolve()), stamp.st_size, stamp.st_mtime_ns]
    info = {key: checkpoint.get(key) for key in ("script", "epoch", "step")}
    return Images(name, args.n, batches, [*key, args.n, args.seed, args.size], info)


# ---- Generator (same in dcgan.py, wgan.py, wgan_gp.py) -------------------------------------------

FORMAT = 1  # of checkpoints and snapshots


def first_map(size):
    """(b, n) with size = b * 2**n: the width of the smallest feature map and the doublings."""
    n = size.bit_length() - 3  # b = 4 to 7 are the numbers of three bits
    if n < 2 or size > 256 or (size >> n) << n != size:
        raise ValueError(f"{size} is not b * 2**n with b = 4 to 7 and n >= 2, at most 256")
    return size >> n, n


def init_weights(module):
    """N(0, 0.02) for convolutions (DCGAN, section 4), N(1, 0.02) for batch-norm scales."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """z (B, z_dim) -> images (B, 3, size, size) in [-1, 1].

    `width` channels at size/2, doubling with each halving, 1024 at most. `norm` is "batch" or
    "none". Shapes in the comments are those of size 32, width 128.
    """

    def __init__(self, size=32, z_dim=100, width=128, norm="batch"):
        super().__init__()
        b, n = first_map(size)
        c = [min(width << i, 1024) for i in reversed(range(n))]  # channels at b, 2b, ..., size/2
        bias = norm == "none"  # a batch norm would take a bias out again
        Norm = nn.Identity if norm == "none" else nn.BatchNorm2d
        layers = [nn.ConvTranspose2d(z_dim, c[0], b, 1, 0, bias=bias)]  # (B, 512, 4, 4)
        layers += [Norm(c[0]), nn.ReLU(inplace=True)]
        for c_in, c_out in pairwise(c):  # (B, 256, 8, 8), (B, 128, 16, 16)
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=bias)]
            layers += [Norm(c_out), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(c[-1], 3, 4, 2, 1), nn.Tanh()]  # (B, 3, 32, 32)
        self.main = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, z):
        return self.main(z[:, :, None, None])


def latents(seeds, z_dim):
    """N(0, I) latents (len(seeds), z_dim), each row a function of its seed alone."""
    rows = [torch.randn(z_dim, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


@torch.no_grad()
def sample(G, z, batch_size=64):
    """Images of the latents z: uint8 (N, 3, size, size), in eval mode, so each on its own."""
    device, mode = next(G.parameters()).device, G.training
    G.eval()
    images = [((G(part.to(device)) + 1) * 127.5).cpu() for part in z.split(batch_size)]
    G.train(mode)
    return torch.cat(images).round().clamp(0, 255).to(torch.uint8)


def pick_device(device, precision):
    """torch.device, its name in words, and "fp32" or "bf16", from --device and --precision."""
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {device}: not to be used here ({first_line(error)})")
    device, name, bf16 = torch.device(device), device, False
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # streams and graphs belong to the current one
        name, bf16 = torch.cuda.get_device_name(device), torch.cuda.get_device_capability()[0] >= 8
    if device.type == "cpu":
        name, cpuinfo = f"cpu ({torch.get_num_threads()} threads)", Path("/proc/cpuinfo")
        bf16 = cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()
    return device, name, {True: "bf16", False: "fp32"}[bf16] if precision == "auto" else precision


def world_of():
    """(rank, number of processes) of a torchrun, else (0, 1)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join_processes(device):
    """Join the other processes of a torchrun, if there are any; the device that is this one's."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if local >= torch.cuda.device_count():
            raise SystemExit(
                f"torchrun: {local + 1} processes, but {torch.cuda.device_count()} GPUs"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=12))  # decoding may take its time
    if dist.get_rank():
        sys.stdout = open(os.devnull, "w")  # one process speaks for all
    return device


def first_line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_file(path, write):
    """Let write(file) fill `path`, in one piece or not at all; what was there before stays."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into the latter
        kept = "what was there is whole" if os.path.exists(path) else "nothing is left of it"
        raise SystemExit(f"{path}: cannot be written ({first_line(error)}); {kept}")
    finally:
        if os.path.exists(partial):
            partial.unlink()


def load_checkpoint(path):
    """The dict of a checkpoint or snapshot, on the CPU. Runs no code from the file."""
    try:
        with warnings.catch_warnings():  # of a foreign pickle's protocol
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such checkpoint")
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError):
        raise SystemExit(f"{path}: cut short, damaged, or not a checkpoint (nothing in it was run)")
    if not isinstance(checkpoint, dict) or not {"format", "script"} <= checkpoint.keys():
        raise SystemExit(f"{path}: no checkpoint of these scripts (it has no format and script)")
    if checkpoint["format"] > FORMAT:
        raise SystemExit(f"{path}: format {checkpoint['format']}, newer than this script can read")
    return checkpoint


# ---- Data (same in dcgan.py, wgan.py, wgan_gp.py) ------------------------------------------------

DOWNLOADS = ("cifar10", "stl10", "celeba", "lsun-NAME")
Source = namedtuple("Source", "key items labels names read")  # read(i): the i-th PIL image


def square(image, size):
    """A PIL image of any mode and shape -> uint8 array (3, size, size)."""
    image = as_rgb(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


def as_rgb(image):
    """A PIL image of any mode -> RGB, upright, on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        grey = np.asarray(image)
        grey = np.where(grey == image.info.get("transparency"), 65535, grey.clip(0, 65535)) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_source(data, size, cache):
    """The Source that a name or a path stands for."""
    if data == "sprites":
        pixels, labels = sprites(size)
        return array_source(["sprites 1"], pixels, labels, ["ghost", "beetle", "robot", "cat"])
    if data in DOWNLOADS or data.startswith("lsun-"):
        return download(data, cache)
    path, suffix = Path(data), Path(data).suffix.lower()
    try:
        if path.is_dir():
            found = [Path(d, f) for d, _, files in os.walk(path, onerror=stop) for f in files]
            names = [file.relative_to(path).as_posix() for file in found]
            names = images_among(names)
            files = [path / name for name in names]
            stats = [file.stat() if file.exists() else file.lstat() for file in files]
            stamp = [(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats)]
            return file_source(path, stamp, names, lambda i: open_image(files[i]))
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
        if suffix == ".zip":
            archive = zipfile.ZipFile(path)  # read in place: its names never become paths
            names = images_among(archive.namelist())
            read = archive.read
            return file_source(path, stamp, names, lambda i: open_image(io.BytesIO(read(names[i]))))
        if suffix in (".npy", ".npz"):
            pixels, labels = np.load(path, mmap_mode="r", allow_pickle=False), None
            if isinstance(pixels, np.lib.npyio.NpzFile):
                with pixels as arrays:
                    labels, pixels = arrays.get("labels"), arrays["images"]
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
                shape = f"{pixels.dtype} {pixels.shape}"
                raise ValueError(f"images must be uint8 (N, H, W, 3), they are {shape}")
            labels = np.zeros(len(pixels), int) if labels is None else labels
            if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
                shape = f"{labels.dtype} {labels.shape}"
                raise ValueError(f"labels must be integers ({len(pixels)},), they are {shape}")
            names, labels = np.unique(labels, return_inverse=True)
            return array_source([str(path.resolve()), stamp], pixels, labels, [*map(str, names)])
    except FileNotFoundError:
        known = ", ".join(("sprites", *DOWNLOADS))
        raise SystemExit(f"{data}: no such file or folder, and none of {known}")
    except KeyError:
        raise SystemExit(f"{data}: has no array named images (uint8, N x H x W x 3)")
    except Exception as error:  # numpy and zipfile raise nearly anything on a damaged file
        raise SystemExit(f"{data}: cannot be read ({first_line(error)})")
    raise SystemExit(f"{data}: neither a folder nor a .zip, .npy or .npz")


def stop(error):
    """For os.walk, which by itself leaves out a folder that it may not open."""
    raise error


def images_among(names):
    """The sorted names of images; the contact sheet beside a scraper's manifest is none."""
    sheets = {name[:-14] + "contact.png" for name in names if name.endswith("manifest.jsonl")}
    return sorted(name for name in names if is_image(name) and name not in sheets)


def is_image(name):
    """Whether a file's suffix is one that Pillow opens; hidden files are left aside."""
    path = PurePosixPath(name.replace("\\", "/"))
    hidden = any((p.startswith(".") and p != "..") or p == "__MACOSX" for p in path.parts)
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in Image.OPEN.keys() - {"EPS"} and not hidden and not name.endswith("/")


def open_image(file):
    """Image.open, but for PostScript, which would run the file as a program."""
    return Image.open(file, formats=sorted(Image.OPEN.keys() - {"EPS"}))


def file_source(path, stamp, names, read):
    """The Source of files whose first folder, if they have one, is the class."""
    parts = [PurePosixPath(name.replace("\\", "/")).parts for name in names]
    parts = [[p for p in path if p not in ("/", "..")] for path in parts]
    labels = [p[0] if len(p) > 1 else "." for p in parts]
    classes = sorted(set(labels))
    index = {name: i for i, name in enumerate(classes)}
    return Source([str(path.resolve()), stamp], names, [index[n] for n in labels], classes, read)


def array_source(key, pixels, labels, names):
    """The Source of uint8 pixels (N, H, W, 3)."""
    items = [f"image {i}" for i in range(len(pixels))]
    return Source(key, items, labels, names, lambda i: Image.fromarray(pixels[i]))


def download(data, root):
    """The Source of one of torchvision's sets in `root`, fetched if it is not there."""
    sets, files = torchvision.datasets, []
    try:
        if data.startswith("lsun-"):
            files = [f"{data[5:]}_train_lmdb (unpacked; reading it takes `pip install lmdb`)"]
            found = sets.LSUN(str(root), classes=[f"{data[5:]}_train"])
            labels, names = np.zeros(len(found)), [data[5:]]
        elif data == "celeba":
            files = [f"celeba/{name} (md5 {md5})" for _, md5, name in sets.CelebA.file_list]
            found = sets.CelebA(str(root), split="all", target_type="identity", download=True)
            labels, names = np.zeros(len(found)), ["face"]
        else:
            kind = sets.CIFAR10 if data == "cifar10" else sets.STL10
            files = [f"{kind.filename} (md5 {kind.tgz_md5})"]
            fetch_archive(kind, root)
            split = {"train": True} if data == "cifar10" else {"split": "train+unlabeled"}
            found = kind(str(root), download=True, **split)
            names = list(found.classes) + ["unlabeled"] * (data == "stl10")
            labels = np.asarray(found.targets if data == "cifar10" else found.labels) % len(names)
    except Exception as error:  # lmdb, gdown and http.client have errors of their own
        wanted = "".join(f"\n    {root / file}" for file in files)
        reason = f"cannot be had ({first_line(error)})"
        raise SystemExit(f"{data}: {reason}. Put there yourself, and run again:{wanted}")
    return Source([data], range(len(found)), labels, names, lambda i: found[i][0])


def fetch_archive(kind, root):
    """Fetch a torchvision set's archive into `root`, unless it is there or already unpacked."""
    files = [root / kind.base_folder / name for name, _ in kind.train_list + kind.test_list]
    unpacked = all(file.exists() for file in files)
    if unpacked or torchvision.datasets.utils.check_integrity(root / kind.filename, kind.tgz_md5):
        return
    root.mkdir(parents=True, exist_ok=True)
    print(f"fetching {kind.url}; a copy of your own at {root / kind.filename} serves as well")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without a byte, then it counts as stalled
    try:
        with tempfile.TemporaryDirectory(dir=root) as partial:
            torchvision.datasets.utils.download_url(kind.url, partial, kind.filename, kind.tgz_md5)
            os.replace(Path(partial) / kind.filename, root / kind.filename)
    finally:
        socket.setdefaulttimeout(before)


def sprites(size, n=2048):
    """Small mirrored creatures: uint8 (n, size, size, 3) and labels (n,), always the same.

    Drawn on 16 x 16 cells, then softened and grained: with flat colours and hard edges a
    discriminator wins within a hundred updates, and the generator learns little from it.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:16, 0:16] + 0.5
    x = abs(x - 8)  # so that every shape is mirrored
    images, labels = np.empty((n, size, size, 3), np.uint8), np.arange(n) % 4
    for image, kind in zip(images, labels):
        wide, tall, top = rng.uniform(3.2, 5.2), rng.uniform(3.0, 4.6), rng.uniform(6.0, 8.4)
        power = 6 if kind == 2 else 2.2
        body = (x / wide) ** power + (abs(y - top) / tall) ** power < 1
        if kind == 0:  # a ghost's skirt
            body |= (x < wide) & (y > top) & (y < 13 + (x.astype(int) % 2))
        elif kind == 1:  # a beetle's six legs and two feelers
            for leg in range(3):
                body |= (abs(y - top - 2 * leg + 2) < 0.6) & (x < wide + 2)
            body |= (abs(x - 2) < 0.6) & (y < top) & (y > 1.5)
        elif kind == 2:  # a robot's arms, legs and antenna
            body |= (abs(y - top) < 0.8) & (x < wide + 2) | (abs(x - 2) < 1.1) & (y > top) & (
                y < 14
            )
            body |= (x < 1) & (y < top) & (y > 1.5)
        else:  # a cat's ears and paws
            body |= (abs(x - wide + 1.4) < (y - 1.5) / 2) & (y > 2) & (y < top)
            body |= (abs(x - 2.2) < 1.1) & (y > top) & (y < 14)
        hue, light = rng.uniform(0, 1), rng.uniform(0.75, 1.0)
        color = (0.55 + 0.45 * np.cos(2 * np.pi * (hue + np.array([0, 1 / 3, 2 / 3])))) * light
        edge = np.pad(body, 1)
        edge = edge[2:, 1:-1] | edge[:-2, 1:-1] | edge[1:-1, 2:] | edge[1:-1, :-2]
        cells = np.full((16, 16, 3), 0.93 - 0.25 * (1 - color))  # a pale ground of its hue
        cells[edge | body] = 0.2
        cells[body] = color
        cells[body & (y > top + 1.2)] = color * 0.75
        cells[body & (x < wide * 0.45) & (y > top + 0.6)] = color * 0.5 + 0.5  # belly
        eye = rng.uniform(1.2, 2.4)
        cells[(abs(x - eye) < 1) & (abs(y - top + 1.2) < 1)] = 1
        cells[(abs(x - eye) < 0.6) & (abs(y - top + 0.8) < 0.6)] = 0.1
        soft = Image.fromarray((cells * 255).round().astype(np.uint8))
        soft = np.asarray(soft.resize((size, size), Image.Resampling.BILINEAR)).astype(float)
        soft = (soft + rng.normal(0, 15, soft.shape))[:, : size // 2].clip(0, 255).round()
        image[:] = np.concatenate([soft, soft[:, ::-1]], axis=1)
    return images, labels


def progress(total, unit, done=0):
    """A tqdm bar on a terminal; something silent without either, and in all processes but one."""
    if tqdm and os.environ.get("RANK", "0") == "0":
        return tqdm(total=total, initial=done, unit=unit, disable=None, dynamic_ncols=True)
    silent = dict.fromkeys(("update", "set_postfix_str", "clear", "close"), lambda *_, **__: None)
    return SimpleNamespace(**silent)


# ---- Options -------------------------------------------------------------------------------------
# fmt: off


def build_parser():
    parser = argparse.ArgumentParser(
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("real", metavar="REAL",
        help="the images to compare with: a path, a data name, or .npz statistics of them")
    add("fake", metavar="FAKE", nargs="*",
        help="the images to judge, likewise, or generators: one line of output each")
    add("--n", type=positive, default=50000, metavar="N",
        help="images to sample from a generator (default 50000, as in publications)")
    add("--seed", type=not_negative, default=0, metavar="N",
        help="of a generator's first image; image i is the latent of seed N + i (default 0)")
    add("--size", type=positive, metavar="PX",
        help="crop and resize all images to PX x PX first, as the trainers do with --size PX "
             "(default: judge them as they are)")
    add("--dims", type=int, choices=tuple(LAST), default=2048,
        help="width of the features; only 2048 is FID, the others rank models by simpler "
             "features and are named FID-64, FID-192, FID-768 (default 2048)")
    add("--kid", action="store_true",
        help="kernel Inception distance as well: its estimate has no bias, so it serves few images")
    add("--is", action="store_true", dest="inception_score",
        help="Inception score of each FAKE as well: higher is better; it does not look at REAL")
    add("--prdc", action="store_true",
        help="precision, recall, density and coverage as well: fidelity and variety told apart")
    add("--save-stats", metavar="FILE",
        help="write REAL's statistics to this .npz, which serves as REAL here and in pytorch-fid")
    add("--json", metavar="FILE", help="write all results, in full precision, to this file")
    add("--plot", metavar="FILE",
        help="FAKEs are snapshots: draw their FID over the epochs, a curve per run, to this .png, "
             "and its numbers to a .csv beside it (a FILE ending in .csv: the numbers alone)")
    add("--allow-few", action="store_true",
        help="accept fewer than 2048 images, for comparisons at equal N; never to quote")
    add("--skip-corrupt", action="store_true",
        help="leave unreadable files out and say how many, instead of stopping")
    add("--weights", metavar="FILE",
        help="Inception weights in pytorch-fid's names (default: the published file, fetched once)")
    add("--cache", default="data", metavar="DIR",
        help="folder of downloads and of REAL's statistics (default data)")
    add("--batch-size", type=positive, metavar="N",
        help="images in one pass; costs memory, changes nothing else (default 128 on a GPU; 4 on a "
             "CPU, 8 in bf16, whose maps malloc can keep, while larger ones are mapped anew)")
    add("--device", default="auto", metavar="NAME",
        help="auto, cpu, cuda, cuda:1, mps (default auto: cuda, else mps, else cpu)")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="fp32",
        help="of the network; tf32 (on a GPU) and bf16 are faster and shift the result: bf16 an "
             "FID-768 of 1.1360 to 1.1378, so use the same on both sides (default fp32)")
    return parser


# fmt: on


def parse_args(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.fake and not args.save_stats:
        parser.error("nothing to do: name a FAKE, or --save-stats FILE")
    if not args.fake and (args.kid or args.inception_score or args.prdc or args.json or args.plot):
        parser.error("--kid, --is, --prdc, --json and --plot take a FAKE")
    if args.plot and Path(args.plot).suffix not in (".png", ".csv"):
        parser.error(f"--plot {args.plot}: its name must end in .png or .csv")
    if args.plot and any(Path(fake).suffix not in (".pt", ".pth") for fake in args.fake):
        parser.error("--plot: takes checkpoints and snapshots, which know their epoch, as FAKE")
    if args.save_stats and Path(args.save_stats).suffix != ".npz":
        parser.error(f"--save-stats {args.save_stats}: its name must end in .npz")
    return args


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def not_negative(text):
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return int(text)


# ---- main ----------------------------------------------------------------------------------------


def check_output(path):
    """SystemExit now rather than after the work if `path` cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=Path(path).parent).close()
        if Path(path).is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise SystemExit(f"{path}: cannot be written ({first_line(error)})")


def is_statistics(path):
    """Whether a path is an .npz that holds mu and sigma."""
    try:
        if Path(path).suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {"mu", "sigma"} <= set(file.files)
    except (OSError, ValueError, zipfile.BadZipFile):
        pass  # it is named when it is opened as images
    return False


def statistics(name, images, network, digits, args, keep, cached=False):
    """The Stats of REAL or of a FAKE: read from its .npz or from the cache, or measured."""
    if images is None:
        return load_stats(name, args)
    key = json.dumps([images.key, args.dims, digits, args.precision])
    path = Path(args.cache) / f"fid-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if cached and not keep and is_statistics(path):
        return load_stats(path, args)
    stats = measure_images(images, network, args, keep)._replace(weights=digits)
    if cached and world_of()[0] == 0:
        try:
            save_stats(path, stats)
        except SystemExit as error:  # a cache that cannot be written costs time, not the result
            print(f"not cached: {error}", file=sys.stderr)
    return stats


def write_plot(path, results, measure):
    """The table of an FID over the epochs of each run, and its picture if path is a .png."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "script", "epoch", "step", "n", measure])
    runs = {}
    for row in results:
        folder = Path(row["path"]).resolve().parent
        folder = folder.parent if folder.name == "snapshots" else folder
        table.writerow([folder.name, *(row[k] for k in ("script", "epoch", "step", "n", measure))])
        runs.setdefault(folder, []).append((row["epoch"], row[measure]))
    write_file(Path(path).with_suffix(".csv"), lambda f: f.write(text.getvalue().encode()))
    if Path(path).suffix == ".csv":
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for folder, points in runs.items():
        axes.plot(*zip(*sorted(points)), marker=".", label=folder.name)
    axes.set(xlabel="epoch", ylabel=f"{measure} (N = {results[0]['n']:,})")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    write_file(Path(path), lambda f: figure.savefig(f, format="png", dpi=120))


def main(argv=None):
    args = parse_args(argv)
    for path in filter(None, (args.save_stats, args.json, args.plot)):
        check_output(path)
    if args.plot and Path(args.plot).suffix == ".png" and not find_spec("matplotlib"):
        raise SystemExit(f"--plot {args.plot}: takes matplotlib; install it, or name a .csv")
    device, device_name, _ = pick_device(join_processes(args.device), args.precision)
    small = 8 if args.precision == "bf16" else 4  # 22 MB at most, under the 32 that malloc keeps
    args.batch_size = args.batch_size or (small if device.type == "cpu" else 128)
    torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    torch.set_flush_denormal(True)
    width = "" if args.dims == 2048 else f"-{args.dims}"
    rank, measure, kernel = world_of()[0], f"FID{width}", f"KID{width}"

    wants_features = args.kid or args.prdc
    sets = [open_images(path, args, device) for path in (args.real, *args.fake)]
    for path in args.fake:
        if os.path.exists(path) and os.path.realpath(path) == os.path.realpath(args.real):
            print(f"{path}: is REAL itself; a distance of 0 says nothing", file=sys.stderr)
    if None in sets and (wants_features or (args.inception_score and None in sets[1:])):
        raise SystemExit("--kid, --is and --prdc take images; one of the sets is statistics alone")
    network = digits = None
    if any(sets):
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        needs = args.weights, args.dims, args.inception_score, device, dtype
        network, digits = load_inception(*needs)
        if rank == 0:
            print(f"{device_name}, {args.precision}, weights {digits}", file=sys.stderr, flush=True)

    real = statistics(args.real, sets[0], network, digits, args, wants_features, cached=True)
    if args.save_stats and rank == 0:
        save_stats(args.save_stats, real)
        print(f"{args.save_stats}: statistics of {args.real} (N {count(real)}), width {args.dims}")
    results = []
    for path, images in zip(args.fake, sets[1:]):
        keep = wants_features or args.inception_score
        fake = statistics(path, images, network, digits, args, keep)
        if rank:
            continue
        if real.weights and fake.weights and real.weights != fake.weights:
            made = f"made with the weights {fake.weights}, {args.real} with {real.weights}"
            raise SystemExit(f"{path}: {made}; they cannot be compared")
        row = {"path": path, "n": fake.n} | (images.info if images else {})
        row[measure] = frechet_distance(real.mu, real.root, fake.mu, fake.root)
        words = [f"{measure} {decimals(row[measure])}"]
        if args.kid:
            row[kernel], row[f"{kernel} std"] = kid(real.features, fake.features)
            words.append(f"{kernel} {row[kernel]:.6f} ± {row[f'{kernel} std']:.6f}")
        if args.inception_score:
            row["IS"], row["IS std"] = inception_score(fake.logits)
            words.append(f"IS {row['IS']:.4f} ± {row['IS std']:.4f}")
        if args.prdc:
            shares = prdc(real.features, fake.features)
            row |= {f"{key}{width}": value for key, value in shares.items()}
            words += [f"{key}{width} {value:.4f}" for key, value in shares.items()]
        where = f"{path} (N {count(fake)}) against {args.real} (N {count(real)})"
        print(f"{'  '.join(words)}  {where}", flush=True)
        results.append(row)
    if args.json and rank == 0:
        facts = {"real": {"path": args.real, "n": real.n}, "weights": real.weights or fake.weights}
        facts |= {"dims": args.dims, "precision": args.precision, "device": device_name}
        facts |= {module.__name__: module.__version__ for module in (torch, torchvision, np)}
        text = json.dumps(facts | {"results": results}, indent=2)
        write_file(Path(args.json), lambda file: file.write(text.encode()))
    if args.plot and rank == 0:
        write_plot(args.plot, results, measure)
    if dist.is_initialized():
        dist.destroy_process_group()


def count(stats):
    return "unknown" if stats.n is None else f"{stats.n:,}"


def decimals(value):
    """Six decimals and no rounding noise below 0."""
    return f"{max(value, 0):.6f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
