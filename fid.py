# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=2", "scipy>=1.13", "pillow>=10.1",
#                 "tqdm", "matplotlib"]
# ///
"""FID: the Fréchet Inception distance between sets of images (Martin Heusel, Hubert Ramsauer,
Thomas Unterthiner, Bernhard Nessler, Sepp Hochreiter, NeurIPS 2017, arXiv 1706.08500, equation 6).

    x -> features of the Inception network of 2015-12-05        2048 numbers an image
    mu, Sigma = their mean and covariance, in float64           of REAL and of each FAKE
    FID = |mu1 - mu2|^2 + tr(Sigma1 + Sigma2 - 2 (Sigma1 Sigma2)^(1/2))

FID falls as N grows, so N is always printed, and numbers at different N are not comparable.
Features of another width are another quantity: FID-768 is not FID.

Usage
    python fid.py real/ fake/
    python fid.py photos.zip fake-a/ fake-b.npz               REAL's statistics are computed once
    python fid.py cifar10 runs/dcgan/checkpoint.pt            50,000 samples, made on the fly
    python fid.py cifar10 --save-stats cifar10.npz            statistics, for pytorch-fid as well
    python fid.py real/ fake/ --kid --is --prdc --json result.json
    python fid.py cifar10 runs/dcgan/checkpoint.pt --nearest nearest.png
    python fid.py cifar10 runs/dcgan/checkpoint.pt --per-class        of a conditional generator
    python fid.py cifar10.npz runs/dcgan/snapshots/epoch_0010.pt --plot fid.png
    torchrun --nproc-per-node=4 fid.py real/ fake/            each process takes a share

REAL and FAKE are folders at any depth, .zip archives, .npy or .npz files of uint8 (N, H, W[, 3]),
.npz files of statistics (mu, sigma), cifar10, stl10, celeba, lsun-NAME, sprites, or generators:
checkpoints and snapshots of dcgan.py, wgan.py and wgan_gp.py, and state dicts in the layout of
pytorch/examples. Files written: those of the flags, and REAL's statistics in --cache.

Departures from pytorch-fid, whose number it gives
    1. Transparency is composed on white, 16 bits are scaled to 8 and EXIF rotations are applied;
       pytorch-fid drops, clips and ignores them.
    2. tr (Sigma1 Sigma2)^(1/2) is the nuclear norm of R1 R2^T for any R with R^T R = Sigma: real by
       construction, and small where N < width. Batch norms are folded into the convolutions.

Measured
    On two cores of an AMD EPYC with AVX-512 bfloat16, torch 2.14.1: FID-768 of 2,500 against 2,500
    CIFAR-10 images 0.0596578035, pytorch-fid 0.3.0 0.0596578010; an image takes the network 28 ms
    at 2048 features, 15 ms with --precision bf16 (medians of three).
"""

import argparse
import csv
import hashlib
import io
import json
import os
import re
import socket
import sys
import time
import warnings
import zipfile
from collections import Counter, OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from itertools import groupby, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import scipy.linalg
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageDraw, ImageOps
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

# ---- Inception -----------------------------------------------------------------------------------

FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
LAST = {64: "maxpool1", 192: "maxpool2", 768: "Mixed_6e", 2048: "Mixed_7c"}  # layer of each width


class Inception:
    """Images, a sequence of uint8 (3, H, W) -> features (B, dims), logits (B, 1008 or 0), float32.

    The network of Szegedy et al. (2015, arXiv 1512.00567) as released for TensorFlow on 2015-12-05:
    torchvision's, but average pooling does not count its padding, and the last block has max
    pooling. `weights` is a state dict in its names; what lies beyond `dims` may be missing.
    Features are means of the map after LAST[dims]; logits are without their bias, as in the
    Inception score's own code. ValueError names a tensor that is missing or of another shape.
    """

    def __init__(self, weights, dims=2048, logits=False, device="cpu", dtype=torch.float32):
        self.dims, self.device, self.dtype = dims, torch.device(device), dtype
        options = {"weights": None, "num_classes": 1008, "aux_logits": False, "init_weights": False}
        with torch.device("meta"):
            net = torchvision.models.inception_v3(**options).eval()
        layers = create_feature_extractor(net, [LAST[dims], *[LAST[2048]] * logits])
        shapes = layers.state_dict() | ({"fc.weight": net.fc.weight} if logits else {})
        shapes = {k: x.shape for k, x in shapes.items() if not k.endswith("num_batches_tracked")}
        for key, shape in shapes.items():
            if getattr(weights.get(key), "shape", None) != shape:
                found = f"is {tuple(weights[key].shape)}" if key in weights else "is missing"
                raise ValueError(f"{key} {found}, not {tuple(shape)}")
        state = {key: weights[key].float() for key in shapes}
        self.fc = state.pop("fc.weight", torch.empty(0, 2048)).to(device)
        layers.load_state_dict(state, strict=False, assign=True)
        for name, norm in [*layers.named_modules()]:
            if isinstance(norm, nn.BatchNorm2d):
                layer = layers.get_submodule(name.removesuffix(".bn"))
                layer.conv, layer.bn = fuse_conv_bn_eval(layer.conv, norm), nn.Identity()
        pools = [node for node in layers.graph.nodes if node.target is F.avg_pool2d]
        for node in pools[:8]:  # of Mixed_5b to Mixed_7b
            node.update_kwarg("count_include_pad", False)
        for node in pools[8:]:  # of Mixed_7c
            node.target = F.max_pool2d
        layers.recompile()
        mps = self.device.type == "mps"  # where channels_last is not safe
        self.layout = torch.contiguous_format if mps else torch.channels_last
        self.layers = layers.to(device).to(dtype, memory_format=self.layout)

    @torch.no_grad()
    def __call__(self, images):
        batch = []
        for _, group in groupby(images, key=lambda image: image.shape):
            x = torch.from_numpy(np.stack([*group])).to(self.device).float() / 255
            batch.append(F.interpolate(x, (299, 299), mode="bilinear", align_corners=False))
        x = (2 * torch.cat(batch) - 1).to(self.dtype, memory_format=self.layout)
        means = {name: x.mean((2, 3), dtype=torch.float32) for name, x in self.layers(x).items()}
        logits = means[LAST[2048]] @ self.fc.T if len(self.fc) else x.new_empty(len(x), 0).float()
        return means[LAST[self.dims]], logits


def load_inception(args, device):
    """The Inception network and the first eight digits of its weights' sha256. The published file
    is downloaded once and checked by the hash in its name."""
    path = Path(args.weights or f"{torch.hub.get_dir()}/checkpoints/{FILE}")
    if not args.weights and not path.exists():
        print(f"downloading {WEIGHTS} (91 MB), once, to {path}", file=sys.stderr, flush=True)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)  # seconds without a byte, then it counts as stalled
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(WEIGHTS, str(path), hash_prefix="6726825d")
        except (OSError, RuntimeError) as error:
            reason = f"the Inception weights cannot be downloaded ({first_line(error)})"
            raise SystemExit(f"{reason}. Put {WEIGHTS} at {path}, or name it with --weights")
        finally:
            socket.setdefaulttimeout(before)
    dtype, weights = {"bf16": torch.bfloat16}.get(args.precision, torch.float32), read_weights(path)
    try:
        net = Inception(dict(weights), args.dims, args.inception_score, device, dtype)
    except (AttributeError, TypeError, ValueError) as error:
        need = f"--dims {args.dims}" + " and --is" * args.inception_score
        raise SystemExit(f"{path}: not the Inception weights for {need} ({error})")
    return net, hashlib.sha256(path.read_bytes()).hexdigest()[:8]


# ---- Distances -----------------------------------------------------------------------------------


def frechet_distance(mu1, root1, mu2, root2):
    """Squared Fréchet distance of the Gaussians N(mu1, R1^T R1) and N(mu2, R2^T R2), float64.

    mu (d,), roots (any, d): `square_root(sigma)`, or for N < d centred features / sqrt(N - 1).
    Dowson and Landau 1982: |mu1 - mu2|^2 + tr Sigma1 + tr Sigma2 - 2 tr (Sigma1 Sigma2)^(1/2), the
    last being the nuclear norm of M = R1 R2^T, the sum of the roots of M M^T's eigenvalues.
    """
    m = root1 @ root2.T
    m = m @ m.T if len(m) <= m.shape[1] else m.T @ m
    apart = ((mu1 - mu2) ** 2).sum() + (root1**2).sum() + (root2**2).sum()
    if not np.isfinite(apart + m.sum()):
        raise SystemExit("these statistics are too large: their distance is not finite")
    nuclear = np.sqrt(scipy.linalg.eigvalsh(m).clip(0)).sum()
    return max(0.0, float(apart - 2 * nuclear))  # rounding may lead below 0


def square_root(sigma):
    """R (rank, d) with R^T R = sigma (d, d), by a Cholesky decomposition with pivots."""
    upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(sigma)
    root = np.empty((rank, len(sigma)))
    root[:, pivots - 1] = np.triu(upper)[:rank]
    return root


def kid(x, y, subsets=100, subset_size=1000):
    """Kernel Inception distance of features (N, d) and (M, d): mean and standard deviation.

    Bińkowski et al. 2018 (arXiv 1801.01401), section 4: the unbiased estimate of the squared MMD
    with the kernel (x.y / d + 1)^3, over random subsets of both; 0 is the same distribution.
    """
    rng, n = np.random.default_rng(0), min(subset_size, len(x), len(y))
    estimates = []
    for _ in range(subsets):
        a, b = (part[rng.choice(len(part), n, replace=False)].double() for part in (x, y))
        aa, bb, ab = ((p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        same = sum((k.sum() - k.trace()) / (n * (n - 1)) for k in (aa, bb))
        estimates.append(float(same - 2 * ab.mean()))
    return float(np.mean(estimates)), float(np.std(estimates))


def inception_score(logits, splits=10):
    """exp E KL(p(y|x) || p(y)) of logits (N, classes): mean and standard deviation over splits.

    Salimans et al. 2016 (arXiv 1606.03498), section 4; from 1 to the number of classes. The splits
    are random: in a split of one class the score is 1.
    """
    order, scores = np.random.default_rng(0).permutation(len(logits)), []
    for part in np.array_split(order, min(splits, len(logits))):
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
    real, fake, k = real.double(), fake.double(), 1 + max(k_pr, k_dc)
    near, near_fake = (  # distances to the k nearest, the first of which is the image itself
        torch.cat([neighbours(part, x.split(4096), k)[0] for part in x.split(1024)])
        for x in (real, fake)
    )
    radius_pr, radius_dc = near[:, : k_pr + 1][:, -1], near[:, : k_dc + 1][:, -1]
    precise, recalled, inside, covered = [], [], [], []
    for part, radius in zip(fake.split(1024), near_fake[:, : k_pr + 1][:, -1:].split(1024)):
        distance = torch.cdist(part, real)  # (1024, N)
        precise.append((distance <= radius_pr).any(1))
        recalled.append((distance <= radius).any(0))
        inside.append((distance <= radius_dc).sum(1))
        covered.append((distance <= radius_dc).any(0))
    found = torch.cat(precise), torch.stack(recalled).any(0)
    found += torch.cat(inside) / k_dc, torch.stack(covered).any(0)
    names = "precision", "recall", "density", "coverage"
    return {name: float(x.double().mean()) for name, x in zip(names, found)}


def per_class(images, stats, args):
    """Prints and returns the Fréchet distance of each class that is in both sets, by its name;
    images and stats are those of REAL and of the fakes."""
    found, width = {}, "" if args.dims == 2048 else f"-{args.dims}"
    labels = [part.labels(s.index) for part, s in zip(images, stats)]
    for name in np.intersect1d(*labels).tolist():
        gaussians, counts = [], []
        for part, label in zip(stats, labels):
            x = part.features.numpy()[label == name].astype(np.float64)
            check_number(f"class {name}", len(x), args)
            root = (x - x.mean(0)) / np.sqrt(len(x) - 1)
            gaussians += [x.mean(0), root if len(x) < x.shape[1] else square_root(root.T @ root)]
            counts += [f"{len(x):,}"]
        found[f"FID{width} {name}"] = value = frechet_distance(*gaussians)
        say(f"    {name}: FID{width} {value:.6f} (N {counts[1]} against {counts[0]})")
    return found


def neighbours(x, parts, k):
    """Distances (N, k), ascending, and row numbers of the k rows of `parts` (each (M, D)) that are
    nearest to each row of x (N, D)."""
    best, index, seen = x.new_empty(len(x), 0), x.new_empty(len(x), 0, dtype=torch.int64), 0
    for part in parts:
        numbers = torch.arange(seen, seen + len(part), device=x.device).expand(len(x), -1)
        best = torch.cat([best, torch.cdist(x, part.to(x))], 1)
        index = torch.cat([index, numbers], 1)
        best, order = best.topk(min(k, best.shape[1]), largest=False)
        index, seen = index.gather(1, order), seen + len(part)
    return best, index


# ---- Statistics ----------------------------------------------------------------------------------

FEW = 2048  # images, under which the covariance of 2048 features cannot have full rank

# Of one set: n images (None: not known), mean (d,) and covariance (d, d) in float64, a square root
# of it (rank, d), eight digits that name the network's weights (None: not known); and where they
# are kept, features (n, d) and logits (n, 1008) in float32 with the numbers of their images.
Stats = namedtuple("Stats", "n mu sigma root weights features logits index", defaults=[None] * 4)


def measure(images, net, args, keep):
    """The Stats of a set of images, of which each process of a torchrun takes a share. What is kept
    is in the order of the images' hashes, so that no number depends on the order of files."""
    home = "cpu" if net.device.type == "mps" else net.device  # MPS has no float64
    total = torch.zeros(1 + net.dims, 1 + net.dims, dtype=torch.float64, device=home)
    numbers, rows, keys = range(args.rank, len(images.items), args.world), [], []
    keep, bar = keep or len(images.items) < net.dims, progress(len(images.items), "image")
    loaded = images.load(numbers)
    for _ in numbers[::1024]:  # in a few large blocks, which do not fragment the heap
        block, filled = torch.empty(1024, net.dims + len(net.fc), device=net.device), 0
        while batch := list(islice(loaded, min(args.batch_size, 1024 - filled))):
            found = net([pixels for _, pixels in batch])
            block[filled : filled + len(batch)] = torch.cat(found, 1)
            filled += len(batch)
            keys += [(hashlib.sha1(x.tobytes()).digest() if keep else b"", i) for i, x in batch]
            bar.update(len(batch) * args.world)
        x = F.pad(block[:filled, : net.dims].to(home).double(), (1, 0), value=1.0)
        total += x.T @ x  # n, sum and products of (1, features)
        rows += [block[:filled].cpu()] if keep else []
    bar.close()
    if args.world > 1:
        shares = [None] * args.world
        dist.all_reduce(total)
        dist.all_gather_object(shares, (rows, keys))
        rows, keys = ([x for share in shares for x in share[i]] for i in (0, 1))
    n, total = len(keys), total.cpu().numpy()
    if n < len(images.items):
        say(f"{images.name}: {len(images.items) - n:,} unreadable files left out")
    check_number(images.name, n, args)
    mu = total[0, 1:] / n
    sigma = (total[1:, 1:] - n * np.outer(mu, mu)) / (n - 1)
    if not keep:
        return Stats(n, mu, sigma, square_root(sigma))
    order = sorted(range(n), key=keys.__getitem__)
    features, logits = torch.cat(rows)[order].split([net.dims, len(net.fc)], 1)
    gram = n < net.dims
    root = (features.double().numpy() - mu) / np.sqrt(n - 1) if gram else square_root(sigma)
    return Stats(n, mu, sigma, root, None, features, logits, [keys[i][1] for i in order])


def check_number(name, n, args):
    """SystemExit for too few images, before or after they have been measured."""
    if n < (2 if args.allow_few else FEW):
        reason = f"FID grows as N falls, and under {FEW:,} the covariance of 2,048 loses rank"
        raise SystemExit(f"{name}: {n:,} images are few: {reason}; --allow-few takes two or more")


def load_stats(path, args):
    """The Stats in an .npz of pytorch-fid's or this script's; None where it holds other arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("mu", "sigma") if key in file}
            n = int(file["n"]) if "n" in file else None
            weights = str(file["weights"].item()) if "weights" in file else None
    except Exception as error:  # zipfile and zlib raise nearly anything on a damaged file
        raise SystemExit(f"{path}: cannot be read ({first_line(error)})")
    if not {"mu", "sigma"} <= arrays.keys():
        return None
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.shape != (args.dims,) or sigma.shape != (args.dims, args.dims):
        raise SystemExit(f"{path}: statistics of width {mu.size}: they take --dims {mu.size}")
    good = mu.dtype.kind == sigma.dtype.kind == "f" and np.isfinite(mu).all()
    if not (good and np.isfinite(sigma).all() and np.allclose(sigma, sigma.T)):
        raise SystemExit(f"{path}: mu and sigma are not a finite mean and a symmetric covariance")
    check_number(path, FEW if n is None else n, args)
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    return Stats(n, mu, sigma, square_root(sigma), weights)


def save_stats(path, stats):
    """Write what load_stats and pytorch-fid read; the latter looks at mu and sigma alone."""
    arrays = {key: getattr(stats, key) for key in ("mu", "sigma", "n", "weights")}
    arrays = {key: np.asarray(value) for key, value in arrays.items() if value is not None}
    np.savez_compressed(archive := io.BytesIO(), **arrays)
    atomic_write(path, lambda file: file.write(archive.getbuffer()))


def statistics(images, net, digits, args, keep, cached=False):
    """The Stats of a set: its own, those in the cache, or measured ones."""
    if isinstance(images, Stats):
        return images
    key = json.dumps([images.key, args.size, args.dims, digits, args.precision])
    path = Path(args.cache, f"fid-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz")
    if cached and not keep and path.exists() and (stats := load_stats(path, args)):
        return stats
    stats = measure(images, net, args, keep)._replace(weights=digits)
    if cached and not args.rank:
        try:
            save_stats(path, stats)
        except SystemExit as error:  # a cache that cannot be written costs time, not the result
            print(f"not cached: {error}", file=sys.stderr)
    return stats


# ---- Images --------------------------------------------------------------------------------------

GENERATORS = (".pt", ".pth", ".ckpt")  # suffixes

# items: the images' names; load(numbers, size): (number, uint8 (3, H, W)) of each that is readable,
# in the order of `numbers`; key names the content, for the cache; info describes a generator;
# labels(numbers): the names of these images' classes.
Images = namedtuple("Images", "name items load key info labels", defaults=[None])


def open_set(name, args, device):
    """The Images of a path or a data name, or the Stats that it holds."""
    if Path(name).suffix == ".npz" and (stats := load_stats(name, args)):
        return stats
    if Path(name, "checkpoint.pt").exists():  # a run folder
        name = str(Path(name, "checkpoint.pt"))
    generator = name.endswith(GENERATORS)
    images = open_generator(name, args, device) if generator else open_images(name, args)
    check_number(name, len(images.items), args)
    return images


def open_images(name, args):
    """The Images of a path or a data name."""
    source = open_data(name, args.size or 32, args.cache)

    def read(i, size):
        try:
            with source.read(i) as image:
                return np.array(to_rgb(image, size))
        except Exception as error:  # on a damaged file Pillow raises nearly anything
            return error

    def load(numbers, size=args.size):
        window, waiting = args.batch_size + 4 * os.cpu_count(), ()
        with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # here, for the filters are common to all threads
            for start in range(0, len(numbers) + window, window):
                part = numbers[start : start + window]
                waiting, done = zip(part, pool.map(partial(read, size=size), part)), waiting
                for i, pixels in done:
                    if not isinstance(pixels, Exception):
                        yield i, pixels
                    elif not args.skip_corrupt:
                        wrong = f"{name}: {source.items[i]} cannot be read ({first_line(pixels)})"
                        raise SystemExit(f"{wrong}; --skip-corrupt leaves it out")

    def labels(numbers):
        return np.take(source.names, np.take(source.labels, numbers))

    key = ["images 2", source.key, args.skip_corrupt]
    return Images(name, source.items, load, key, {}, labels)


def open_generator(name, args, device):
    """The Images of a generator: number i is the latent of seed --seed + i, rounded to bytes, and
    where there are classes, the i-th of them, again from the first after the last."""
    G, info = load_generator(name, key=args.key)
    codes = torch.eye(len(info["classes"]) or 1)[:, : len(info["classes"])]
    mps = device.type == "mps"  # where channels_last is not safe
    G.to(device, memory_format=torch.contiguous_format if mps else torch.channels_last)

    def load(numbers, size=args.size):
        for start in range(0, len(numbers), args.batch_size):
            part = numbers[start : start + args.batch_size]
            z = latents([args.seed + i for i in part], info["z_dim"])
            z = torch.cat([z, codes[[i % len(codes) for i in part]]], 1)
            for i, image in zip(part, sample(G, z, args.batch_size)):
                pixels = image.expand(3, -1, -1).numpy()
                if size:
                    pixels = np.array(to_rgb(Image.fromarray(pixels.transpose(1, 2, 0)), size))
                yield i, pixels

    stat, items = os.stat(name), [f"seed {args.seed + i}" for i in range(args.n)]
    key = [os.path.realpath(name), stat.st_size, stat.st_mtime_ns, args.key, args.n, args.seed]
    labels = partial(np.take, info["classes"] or [name], mode="wrap")
    return Images(name, items, load, ["samples 2", *key], info, labels)


# ---- Nearest real images -------------------------------------------------------------------------


def nearest(images, stats, args, shown=8, k=6, some=100):
    """Write the image grid --nearest: fakes, each beside the k real images nearest to it, in
    features and then in pixels, with the root mean square distances. Prints and returns the median
    distance to the nearest real image of `some` fakes, and of `some` of the other real images.
    images and stats are those of REAL and of the fakes; pixels are compared at the fakes' size.
    """
    (real, fake), (reals, fakes) = images, stats
    first = np.argsort(fakes.index)[:shown].tolist()
    asked = [*first, *range(min(some, fakes.n))]  # rows of fakes
    size = args.size or min(next(fake.load([fakes.index[first[0]]]))[1].shape[1:])

    def pixels(images, numbers):
        loaded = images.load(numbers, size)
        while part := [torch.tensor(image).flatten() for _, image in islice(loaded, 256)]:
            yield torch.stack(part)

    x = torch.cat([*pixels(fake, [fakes.index[row] for row in asked])])
    others = torch.cat([*pixels(real, reals.index[:some])])
    spaces = {
        "features": (fakes.features[asked], reals.features[:some], reals.features.split(1024)),
        "pixels": (x, others, pixels(real, reals.index)),
    }
    grid = [[(image, fake.items[fakes.index[row]])] for image, row in zip(x, first)]
    medians = {}
    for space, (x, others, parts) in spaces.items():
        distance, index = neighbours(torch.cat([x, others]).double(), parts, max(2, k))
        distance = distance / x.shape[1] ** 0.5
        near = float(distance[len(first) : len(x), 0].median())
        own = float(distance[len(x) :, 1].median())  # the first is the image itself
        say(f"nearest in {space}: median {near:.4g}, of real images to each other {own:.4g}")
        medians |= {f"nearest in {space}": near, f"nearest in {space}, REAL": own}
        for row, numbers, values in zip(grid, index[:, :k].tolist(), distance.tolist()):
            loaded = real.load([reals.index[i] for i in numbers], size)
            row += [(image, f"{space} {v:.3g}") for (_, image), v in zip(loaded, values)]
    atomic_write(args.nearest, lambda file: neighbour_grid(grid, size).save(file, "PNG"))
    return medians


def neighbour_grid(rows, size):
    """A picture of rows of (pixels of uint8 (3, size, size), text below), about 96 pixels each."""
    cell = size * max(1, round(96 / size))
    width, height = len(rows[0]) * (cell + 4) + 4, len(rows) * (cell + 20) + 4
    page = Image.new("RGB", (width, height), "white")
    for y, row in zip(range(4, height, cell + 20), rows):
        for x, (pixels, text) in zip(range(4, width, cell + 4), row):
            pixels = np.moveaxis(np.asarray(pixels).reshape(3, size, size), 0, 2)
            image = Image.fromarray(np.ascontiguousarray(pixels))
            page.paste(image.resize((cell, cell), Image.Resampling.NEAREST), (x, y))
            ImageDraw.Draw(page).text((x, y + cell + 2), str(text)[-16:], "black")
    return page


# ---- Tools (same in the other scripts) -----------------------------------------------------------


def latents(seeds, z_dim):
    """N(0, I) latents (len(seeds), z_dim), each row a function of its seed alone."""
    rows = [torch.randn(z_dim, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


@torch.no_grad()
def sample(G, z, batch_size=64):
    """Images of the latents z: uint8 (N, C, H, W), in eval mode and float32, so each on its own."""
    device, mode = next(G.parameters()).device, G.training
    G.eval()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        images = [((G(part.to(device)) + 1) * 127.5).cpu() for part in z.split(batch_size)]
    G.train(mode)
    return torch.cat(images).round().clamp(0, 255).to(torch.uint8)


def set_up_device(device, precision):
    """torch.device, its name, and "fp32" or "bf16" where `precision` is "auto"."""
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if device == "cuda":  # one for each process of a torchrun
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {device}: cannot be used here ({first_line(error)})")
    device, name, bf16 = torch.device(device), device, False
    if device.type == "cuda":
        torch.cuda.set_device(device)
        name, bf16 = torch.cuda.get_device_name(device), torch.cuda.get_device_capability()[0] >= 8
    elif device.type == "cpu":
        _ = np.finfo(np.float32), np.finfo(np.float64)  # which numpy 2.0 cannot tell afterwards
        torch.set_flush_denormal(True)  # a denormal costs a hundred times a normal number
        name = f"cpu ({torch.get_num_threads()} threads)"
        bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return device, name, ("bf16" if bf16 else "fp32") if precision == "auto" else precision


def join_processes(device):
    """(rank, number of processes), after joining the others of a torchrun if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    how = {"device_id": device} if device.type == "cuda" else {"backend": "gloo"}
    dist.init_process_group(timeout=timedelta(hours=12), **how)  # decoding may take its time
    if dist.get_rank():
        sys.stdout = open(os.devnull, "w")  # one process speaks for all
    return dist.get_rank(), dist.get_world_size()


def say(text):
    """print, which a closed pipe does not bring to an end."""
    try:
        print(text, flush=True)
    except OSError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(total, unit, done=0):
    """A tqdm bar on a terminal, where there is tqdm, and for the first process of a torchrun."""
    if tqdm and os.environ.get("RANK", "0") == "0":
        return tqdm(total=total, initial=done, unit=unit, disable=None, dynamic_ncols=True)
    return SimpleNamespace(**dict.fromkeys(("update", "clear", "close"), lambda *_: None))


def first_line(error):
    """An exception's message as one line, or its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def atomic_write(path, write):
    """Let write(file) fill `path` whole or not at all; what was there before survives a failure."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        with suppress(PermissionError):  # on Windows, while another program reads it
            return os.replace(partial, path)
        time.sleep(2)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save turns the first into the second
        kept = "the previous version is intact" if path.exists() else "no file is left"
        raise SystemExit(f"{path}: not written ({first_line(error.__context__ or error)}); {kept}")
    finally:
        with suppress(OSError):
            partial.unlink()


# ---- Generators (same in fid.py, interpolate.py) -------------------------------------------------

FORMAT = 2  # of checkpoints and snapshots


def from_shapes(state, options=None):
    """The DCGAN generator that a state dict's shapes describe; ValueError if it is another network.

    main.0 is a transposed convolution (b, 1, 0), main.3, main.6, ... are (4, 2, 1), with a bias
    where there is one, each but the last followed by a batch norm, where there is one, and ReLU;
    tanh comes last: the layout of pytorch/examples and of these scripts, at any width and depth.
    """
    layers, i = [], 0
    while i < 6 or f"main.{i}.weight" in state:
        c_in, c_out, kernel, _ = state[f"main.{i}.weight"].shape
        if i and kernel != 4:
            raise ValueError(f"main.{i} has a kernel of {kernel}, a layer that doubles has 4")
        bias, norm = f"main.{i}.bias" in state, f"main.{i + 1}.weight" in state
        stride, padding = (2, 1) if i else (1, 0)
        layers += [nn.ConvTranspose2d(c_in, c_out, kernel, stride, padding, bias=bias)]
        layers += [nn.BatchNorm2d(c_out) if norm else nn.Identity(), nn.ReLU(inplace=True)]
        i += 3
    G = nn.Sequential(OrderedDict(main=nn.Sequential(*layers[:-2], nn.Tanh())))
    G.load_state_dict(state)
    return G


def load_generator(path, raw=False, key=None, build=from_shapes):
    """The generator in a file and a dict that describes it: script, epoch, step (None: not known),
    z_dim, the names of its classes and, in words, the weights. It maps latents, beside them one-hot
    classes if it has some, (B, z_dim + classes), to images (B, 1 or 3, H, W).

    The file is a trainer's checkpoint or snapshot, or holds, at any depth and behind any prefix,
    one state dict that `build(state, options)` makes a network of; `options` is what a trainer
    says of its generator. `key` chooses among several. SystemExit says what else the file is.
    """
    tree, info = read_weights(path), dict.fromkeys(("script", "epoch", "step"))
    options, classes, words = {}, [], "of its class"
    if build is from_shapes:
        words = "of layers (b, 1, 0), then (4, 2, 1), as in pytorch/examples"
    if isinstance(tree, dict) and {"format", "script", "generator"} <= tree.keys():
        if not isinstance(tree["format"], int) or tree["format"] > FORMAT:
            newer = f"format {first_line(tree['format'])}, newer than this script can read"
            raise SystemExit(f"{path}: {newer}")
        options, info = tree["generator"], {name: tree.get(name) for name in info}
        words, classes = f"of {info['script']}, epoch {info['epoch']}", tree.get("classes", [])
        key = key or ("G" if raw or "G_ema" not in tree else "G_ema")
        if key not in tree:
            raise SystemExit(f"{path}: a snapshot, which has no {key}; leave --raw out")
    tensors, found, reasons = dict(flatten(tree)), {}, []
    ends = {name[: i + 1] for name in tensors for i, c in enumerate(name) if c == "."} | {""}
    for prefix in sorted(end for end in ends if not key or end.startswith(f"{key}.")):
        state = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
        try:
            found[prefix[:-1] or "state dict"] = build(state, options)
        except Exception as error:  # of a class of any kind
            reasons.append(first_line(error))
    if len(found) > 1:
        raise SystemExit(f"{path}: holds several generators; --key takes one of {', '.join(found)}")
    if not found:
        told = sorted(reasons, key=lambda reason: "main.0.weight" in reason) or ["no tensors"]
        advice = "A network of another layout takes interpolate.py --generator FILE.py:CLASS"
        raise SystemExit(f"{path}: holds no generator that is understood ({told[0]}). {advice}")
    ((name, G),) = found.items()
    G, width, (_, channels, H, W) = check_generator(G, path)
    if type(classes) is not list or {*map(type, classes)} - {str} or len(classes) >= width:
        raise SystemExit(f"{path}: its classes are no list of names, or more than it takes")
    info |= {"classes": classes, "z_dim": width - len(classes)}
    info["weights"] = f"{name} {words}, {W}x{H}x{channels}"
    return G, info


def check_generator(G, path):
    """G as a function of latents (B, z_dim), z_dim, and the shape of what it makes of two."""
    G.eval().requires_grad_(False)
    reasons, z_dim = [], first_layer(G)[0]
    for net in (G, nn.Sequential(nn.Unflatten(1, (z_dim, 1, 1)), G)):
        try:
            images = net(torch.zeros(2, z_dim))
        except Exception as error:  # of a class of any kind
            reasons.append(first_line(error))
            continue
        if images.dim() == 4 and len(images) == 2 and images.shape[1] in (1, 3):
            if images.isfinite().all():
                return net, z_dim, images.shape
            raise SystemExit(f"{path}: its weights are not finite, from a training that diverged")
        reasons.append(f"of two latents it makes {tuple(images.shape)}")
    raise SystemExit(f"{path}: makes no images (B, 1 or 3, H, W) ({'; '.join(reasons)})")


def first_layer(G):
    """z_dim and the matrix A (outputs, z_dim), float64, of the layer that a latent enters first."""
    for m in G.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            A = m.weight.detach().cpu().double()
            A = A if isinstance(m, nn.ConvTranspose2d) else A.transpose(0, 1)
            return len(A), A.flatten(1).T
    raise SystemExit("the generator has no linear or convolutional layer that a latent could enter")


def flatten(tree, prefix=""):
    """(dotted name, tensor) of each tensor in nested dicts; torch.compile's prefix is taken off.
    Left out: tensors that repeat their numbers, and what lies deeper, as in dicts in themselves."""
    for name, value in tree.items() if isinstance(tree, dict) and prefix.count(".") < 9 else ():
        if not torch.is_tensor(value):
            yield from flatten(value, f"{prefix}{name}.")
        elif value.is_sparse or value.untyped_storage().nbytes() >= value.nbytes:
            yield f"{prefix}{name}".replace("_orig_mod.", ""), value


def read_weights(path):
    """What torch.save wrote to a file, on the CPU, without running code from it."""
    path = Path(path, "checkpoint.pt") if os.path.isdir(path) else path
    try:
        with warnings.catch_warnings():  # of a foreign pickle's protocol
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such checkpoint")
    except Exception as error:  # on a damaged file torch.load raises nearly anything
        reason = getattr(error, "strerror", None) or "cut short, damaged, not a file of torch.save"
        if Path(path).suffix == ".safetensors":
            reason = "a safetensors file; save its tensors with torch.save"
        elif blocked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"holds {blocked[1]}, which could run code; save a state dict alone"
        raise SystemExit(f"{path}: cannot be read: {reason} (nothing in it was run)")


# ---- Data (same in dcgan.py, wgan.py, wgan_gp.py, fid.py) ----------------------------------------

NAMES = ("sprites", "cifar10", "stl10", "celeba", "lsun-NAME")
FORMATS = "PNG JPEG WEBP GIF BMP TIFF PPM AVIF JPEG2000 TGA ICO PCX SGI QOI DDS PSD XBM SUN".split()
FORMATS += "BLP DIB ICNS IM MSP XPM".split()  # by frequency; none of them runs a program
CLUTTER = (".", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
Source = namedtuple("Source", "key items labels names read")  # read(i): the i-th PIL image


def open_data(data, size, cache):
    """The Source of a data name or a path; SystemExit says what is wrong with it."""
    path, known = Path(data), data in NAMES or data.startswith("lsun-")
    if known and os.path.exists(data):
        say(f"{data}: taken for the data set of that name; write ./{data} for the folder")
    if data == "sprites":
        kinds = np.arange(2048) % 4
        return Source("sprites 3", range(2048), kinds, [*SPRITES], partial(sprite, size))
    if known:
        return download(data, Path(cache))
    try:
        key = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
        if path.is_dir() or path.suffix.lower() == ".zip":
            return open_files(path, key)
        if path.suffix.lower() not in (".npy", ".npz"):
            raise ValueError("neither a folder nor a .zip, .npy or .npz")
        arrays = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = dict(arrays) if hasattr(arrays, "files") else {"images": arrays}
        fit = [a for a in arrays.values() if a.dtype == np.uint8 and a.size]
        fit = [a for a in fit if a.shape[3:] == (3,) or a.ndim == 3 < a.shape[2]]  # colour, grey
        pixels = arrays.get("images", fit[0] if len(fit) == 1 else np.zeros(0))
        labels = arrays.get("labels", np.zeros(pixels.shape[:1], int))
        integers = labels.shape == pixels.shape[:1] and labels.dtype.kind in "iu"
        if not integers or not any(pixels is a for a in fit):
            found = ", ".join(f"{key} {a.dtype} {a.shape}" for key, a in arrays.items())
            raise ValueError(f"must be images uint8 (N, H, W[, 3]), labels int (N,), not {found}")
    except FileNotFoundError:
        raise SystemExit(f"{data}: no such file or folder, and none of {', '.join(NAMES)}")
    except Exception as error:  # numpy and zipfile raise nearly anything on a damaged file
        raise SystemExit(f"{data}: cannot be read ({first_line(error)})")
    names, labels = np.unique(labels, return_inverse=True)
    names, items = [*map(str, names)], range(len(pixels))
    return Source(key, items, labels, names, lambda i: Image.fromarray(pixels[i]))


def open_files(path, key):
    """The Source of the pictures in a folder or a .zip, at any depth. Their classes are the folders
    at the first level where the paths differ. One line counts the other files by suffix."""
    archive = None if path.is_dir() else zipfile.ZipFile(path)
    files = {} if archive else dict(walk(path))
    for entry in archive.infolist() if archive else ():  # the names never become paths
        name = entry.filename.replace("\\", "/")
        if not entry.flag_bits & 0x800:  # macOS writes UTF-8 without saying so
            with suppress(UnicodeError):
                name = name.encode("cp437").decode()
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        if not name.endswith("/") and not any(part.startswith(CLUTTER) for part in parts):
            files["/".join(parts)] = entry  # of two of one name, the later one counts
    pictures = {s for s, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    formats = [kind for kind in FORMATS if kind in Image.OPEN]  # what this Pillow has
    suffixes = {name: os.path.splitext(name)[1].lower() for name in files}
    names = sorted(name for name in files if suffixes[name] in pictures or not files[name])
    other = Counter(suffixes[name] or "no suffix" for name in sorted({*files} - {*names}))
    other = ", ".join(f"{n:,} {suffix}" for suffix, n in other.most_common(9))
    other = other and f"; not read: {other}"
    if not names:
        raise SystemExit(f"{path}: there are no images in it{other}")
    if len(names) < len(files):
        say(f"{path}: {len(names):,} images{other}")
    if not archive:
        stats = [os.stat(files[name]) for name in names if files[name]]
        key = [key[0], names, [(stat.st_size, stat.st_mtime_ns) for stat in stats]]
    folders = [(*name.split("/")[:-1], ".") for name in names]
    depth = next((i for i, level in enumerate(zip(*folders)) if len({*level}) > 1), 0)
    classes, labels = np.unique([folder[depth] for folder in folders], return_inverse=True)

    def read(i):
        file = files[names[i]]
        if not file:
            raise ValueError("a broken link, or not a regular file")
        if archive and file.file_size > 2**28:
            raise ValueError("more than 256 MiB when unpacked")
        return Image.open(io.BytesIO(archive.read(file)) if archive else file, formats=formats)

    return Source(key, names, labels, [*map(str, classes)], read)


def walk(folder, within="", above=frozenset()):
    """(name, path) of each file below a folder, False for the path of a broken link or a pipe,
    which would block. Links are followed, but not to a folder that holds them."""
    here = Path(folder).resolve()
    for entry in [] if here in above else [*os.scandir(folder)]:
        if os.path.isdir(entry) and not entry.name.startswith(CLUTTER):
            yield from walk(entry.path, f"{within}{entry.name}/", {*above, here, *here.parents})
        elif not entry.name.startswith(CLUTTER):
            yield within + entry.name, os.path.isfile(entry) and entry.path


def download(data, cache):
    """The Source of one of torchvision's sets in `cache`, fetched if it is not there."""
    sets, before, options = torchvision.datasets, socket.getdefaulttimeout(), {"download": True}
    if data.startswith("lsun-"):
        kind, options = sets.LSUN, {"classes": [f"{data[5:]}_train"]}
        files = [f"{data[5:]}_train_lmdb (unpacked; reading it takes `pip install lmdb`)"]
    elif data == "celeba":
        kind, options = sets.CelebA, options | {"split": "all", "target_type": "identity"}
        files = [f"celeba/{name} (md5 {md5})" for _, md5, name in kind.file_list]
    else:
        kind = sets.CIFAR10 if data == "cifar10" else sets.STL10
        options |= {"split": "train+unlabeled"} if data == "stl10" else {}
        files = [f"{kind.filename} (md5 {kind.tgz_md5})"]
    socket.setdefaulttimeout(30)  # seconds without a byte, then a download counts as stalled
    try:
        found = kind(str(cache), **options)
    except Exception as error:  # lmdb, gdown and http.client have errors of their own
        wanted = ", ".join(f"{cache / file}" for file in files)
        raise SystemExit(f"{data}: no download ({first_line(error)}). Put there: {wanted}")
    finally:
        socket.setdefaulttimeout(before)
    labels = getattr(found, "targets", getattr(found, "labels", [0] * len(found)))
    names = [*getattr(found, "classes", [data])] + ["unlabeled"] * (data == "stl10")
    labels = np.asarray(labels) % len(names)  # "unlabeled" is -1
    return Source([data], range(len(found)), labels, names, lambda i: found[i][0])


def to_rgb(image, size=None):
    """A PIL image of any mode -> RGB, uint8 array (3, H, W): upright, on white, 16 bits scaled to
    8; with `size`, its center square resized to that."""
    raw = str(image.tile[0][3]) if getattr(image, "tile", None) else ""  # the file's own mode
    tags, clear = getattr(image, "tag_v2", {}), image.info.get("transparency")
    if image.mode == "F" or (image.mode == "I" and image.format not in (None, "PNG", "PPM")):
        raise ValueError("pixels of 32 bits have no known range; save it with 8 or 16 bits")
    image.load()
    with suppress(Exception):  # damaged EXIF says nothing of the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, or the 12 of a TIFF
        white = 2 ** tags.get(258, (16,))[0] - 1
        grey = np.asarray(image).clip(0, white)
        grey = np.where(grey == clear, white, white - grey if tags.get(262) == 0 else grey)
        image = Image.fromarray((grey * (255 / white)).round().astype(np.uint8))
    elif isinstance(clear, int) and raw in ("L;2", "L;4"):  # Pillow scales the pixels alone
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    elif isinstance(clear, tuple) and raw.startswith("RGB;16"):
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if size:
        side = min(image.size)
        x, y = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((x, y, x + side, y + side)).resize((size, size), Image.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


SPRITES = {  # the left half of 16 x 16 cells, two bits each: ground, body, white, pupil
    "ghost": "000000550155055505550569056d055505550555055505550555055504510000",
    "beetle": "010000400015005500a510b50555005515550055005515550055001500000000",
    "robot": "000100010155015501a501b50155000515551155115511550155014001400000",
    "cat": "0400050005400555055505a505b5055501550055015501550155014501450000",
}


def sprite(size, i):
    """The i-th of many small mirrored creatures, a PIL image, always the same: of four kinds by
    turns, in its own colour. Shading and grain keep a discriminator from winning at a glance."""
    rng, code = np.random.default_rng(i), [*SPRITES.values()][i % len(SPRITES)]
    half = np.frombuffer(bytes.fromhex(code), ">u2")[:, None] >> np.arange(14, -2, -2) & 3
    color = 0.5 + 0.45 * np.cos(2 * np.pi * (rng.uniform() + np.arange(3) / 3))
    palette = np.array([0.95 - 0.25 * (1 - color), color, [1, 1, 1], [0.1, 0.1, 0.1]])
    cells = (255 * palette[np.hstack([half, half[:, ::-1]])]).astype(np.uint8)
    cells = Image.fromarray(cells).resize((size, size), Image.BILINEAR)
    left = np.asarray(cells)[:, : size // 2] * np.linspace(1.15, 0.75, size)[:, None, None]
    left = (left + rng.normal(0, 6, left.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.hstack([left, left[:, ::-1]]))


# ---- Options -------------------------------------------------------------------------------------
# fmt: off


def build_parser():
    parser = argparse.ArgumentParser(
        prog="fid.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("real", metavar="REAL",
        help="the images to compare with: a path, a data name, or .npz statistics of them")
    add("fake", metavar="FAKE", nargs="*",
        help="the images to measure, likewise, or generators: one line of output each")
    add("--n", type=int, default=50000, metavar="N",
        help="images to sample from a generator (default 50000, as in publications)")
    add("--seed", type=int, default=0, metavar="N",
        help="of a generator's first image; image i is the latent of seed N + i (default 0)")
    add("--key", metavar="NAME", help="which state dict of the file is the generator, where it "
        "holds several; the message that asks for it lists them")
    add("--size", type=int, metavar="PX",
        help="crop and resize all images to PX x PX first, as the trainers do (default: keep them)")
    add("--dims", type=int, choices=tuple(LAST), default=2048,
        help="width of the features; only 2048 is FID, others are named FID-768 (default 2048)")
    add("--kid", action="store_true", help="kernel Inception distance too: for few images as well")
    add("--is", action="store_true", dest="inception_score",
        help="Inception score of each FAKE too: higher is better; it does not look at REAL")
    add("--prdc", action="store_true", help="precision, recall, density and coverage as well")
    add("--per-class", action="store_true", help="FID of each class too, of labelled images and of "
        "conditional generators, which make their classes by turns")
    add("--nearest", metavar="FILE",
        help="write images of the first FAKE, each beside the nearest real ones, to this .png "
             "and say how near: a generator that copies is nearer than real images to each other")
    add("--save-stats", metavar="FILE",
        help="write REAL's statistics to this .npz, which serves as REAL here and in pytorch-fid")
    add("--json", metavar="FILE", help="write all results, in full precision, to this file")
    add("--plot", metavar="FILE",
        help="draw FID over generator updates, of snapshots or run folders as FAKE, to this .png, "
             "and its numbers to a .csv beside it (a FILE ending in .csv: the numbers alone)")
    add("--allow-few", action="store_true",
        help="accept fewer than 2048 images, for comparisons at equal N; never to quote")
    add("--skip-corrupt", action="store_true",
        help="leave unreadable files out and say how many, instead of stopping")
    add("--weights", metavar="FILE",
        help="Inception weights in pytorch-fid's names (default: the published file, fetched once)")
    add("--cache", default="data", metavar="DIR",
        help="folder of downloads and of REAL's statistics (default data)")
    add("--batch-size", type=int, metavar="N",
        help="images in one pass: costs memory (default 128 on a GPU; 4 on a CPU, 8 in bf16)")
    add("--device", default="auto", metavar="NAME",
        help="auto, cpu, cuda, cuda:1, mps (default auto: cuda, else mps, else cpu)")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="fp32",
        help="of the network; tf32 (on a GPU) and bf16 are faster and shift the result, bf16 an "
             "FID-768 of 1.1360 to 1.1378: use the same on both sides (default fp32)")
    return parser


# fmt: on


def parse_args(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)
    for flag, least in {"n": 1, "seed": 0, "size": 1, "batch_size": 1}.items():
        if (value := getattr(args, flag)) is not None and value < least:
            parser.error(f"--{flag.replace('_', '-')} {value}: less than {least}")
    of_fakes = args.kid, args.inception_score, args.prdc, args.nearest, args.json, args.plot
    if not args.fake and (any(of_fakes) or not args.save_stats):
        parser.error("name a FAKE; without one there is --save-stats FILE alone")
    if args.plot:  # of a folder of snapshots, all
        folders = [sorted(map(str, Path(fake).rglob("epoch_*.pt"))) or [fake] for fake in args.fake]
        args.fake = [fake for folder in folders for fake in folder]
    if args.plot and not all(fake.endswith(GENERATORS) for fake in args.fake):
        parser.error("--plot: takes checkpoints and snapshots, which know their step, as FAKE")
    outputs = {args.save_stats: ".npz", args.nearest: ".png", args.plot: ".png .csv", args.json: ""}
    outputs.pop(None, None)
    for path, suffixes in outputs.items():
        if suffixes and Path(path).suffix not in suffixes.split():
            parser.error(f"{path}: its name must end in {suffixes.replace(' ', ' or ')}")
        folder = next(p for p in Path(path).absolute().parents if os.path.exists(p))
        if os.path.isdir(path) or not folder.is_dir() or not os.access(folder, os.W_OK):
            parser.error(f"{path}: cannot be written: a folder, or in none that can be written to")
    if Path(args.plot or "").suffix == ".png" and not find_spec("matplotlib"):
        parser.error(f"--plot {args.plot}: takes matplotlib; install it, or name a .csv")
    return args


# ---- main ----------------------------------------------------------------------------------------


def compare(real, fake, args, device):
    """What is asked for of the Stats of REAL and a FAKE, by name."""
    width = "" if args.dims == 2048 else f"-{args.dims}"
    found = {f"FID{width}": frechet_distance(real.mu, real.root, fake.mu, fake.root)}
    home = device if device.type == "cuda" else "cpu"  # has float64
    if args.kid or args.prdc:
        x, y = real.features.to(home), fake.features.to(home)
    if args.kid:
        found[f"KID{width}"], found[f"KID{width} std"] = kid(x, y)
    if args.inception_score:
        found["IS"], found["IS std"] = inception_score(fake.logits)
    if args.prdc:
        found |= {f"{key}{width}": value for key, value in prdc(x, y).items()}
    return found


def write_plot(path, results, measure):
    """The table of FID over each run's generator updates, and its picture if path is a .png."""
    text, runs = io.StringIO(), {}
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "script", "epoch", "step", "n", measure])
    for row in results:
        folder = Path(row["path"]).resolve().parent
        folder = folder.parent if folder.name == "snapshots" else folder
        table.writerow([folder.name, *(row[k] for k in ("script", "epoch", "step", "n", measure))])
        runs.setdefault(folder, []).append((row["step"], row[measure]))
    atomic_write(Path(path).with_suffix(".csv"), lambda f: f.write(text.getvalue().encode()))
    if Path(path).suffix == ".csv":
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for folder, points in runs.items():
        axes.plot(*zip(*sorted(points)), marker=".", label=folder.name)
    name = f"{measure} (N = {results[0]['n']:,})"
    axes.set(xlabel="generator updates", ylabel=name, ylim=(0, None), ymargin=0.1)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    atomic_write(path, lambda f: figure.savefig(f, format="png", dpi=120))


def check_sets(sets, args, keep):
    """SystemExit for what is asked of REAL and the FAKEs, and cannot be had of them."""
    for path, images in zip(args.fake, sets[1:]):
        if os.path.realpath(path) == os.path.realpath(args.real):
            print(f"{path}: is REAL itself; a distance of 0 says nothing", file=sys.stderr)
        if args.plot and images.info["step"] is None:
            raise SystemExit(f"--plot: {path} does not say its step; a trainer's snapshot does")
    of_images = sets if keep else sets[1:] * args.inception_score
    if any(isinstance(each, Stats) for each in of_images):
        asked = "--kid, --is, --prdc, --per-class and --nearest"
        raise SystemExit(f"{asked} take images, not statistics of them")
    if args.n != 50000 and not any(getattr(each, "info", None) for each in sets):
        raise SystemExit(f"--n {args.n}: is for generators; of other sets all images count")
    for images in sets[1:] if args.per_class else ():
        real, fake = ({*each.labels(range(len(each.items)))} for each in (sets[0], images))
        if len(real) < 2 or not real & fake:
            known = f"{args.real} ({', '.join(sorted(real)[:20])}) and {images.name} "
            known += f"({', '.join(sorted(fake)[:20])})"
            raise SystemExit(f"--per-class: {known} have no classes in common")


def main(argv=None):
    args = parse_args(argv)
    device, device_name, _ = set_up_device(args.device, args.precision)
    args.rank, args.world = join_processes(device)
    small = 8 if args.precision == "bf16" else 4  # 22 MB at most, under the 32 that malloc keeps
    args.batch_size = args.batch_size or (small if device.type == "cpu" else 128)
    torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    keep, results = bool(args.kid or args.prdc or args.nearest or args.per_class), []
    if args.rank:  # the first process downloads and unpacks, then the others read
        dist.barrier()
    sets = [open_set(path, args, device) for path in (args.real, *args.fake)]
    check_sets(sets, args, keep)
    measured = any(isinstance(each, Images) for each in sets)
    net, digits = load_inception(args, device) if measured else (None, None)
    if args.world > 1 and not args.rank:
        dist.barrier()
    if net and not args.rank:
        print(f"{device_name}, {args.precision}, weights {digits}", file=sys.stderr, flush=True)

    real = statistics(sets[0], net, digits, args, keep, cached=True)
    named = f"{args.real} (N {count(real)})"
    if args.save_stats and not args.rank:
        save_stats(args.save_stats, real)
        say(f"{args.save_stats}: statistics of {named}, width {args.dims}")
    for path, images in zip(args.fake, sets[1:]):
        fake = statistics(images, net, digits, args, keep or args.inception_score)
        if args.rank:
            continue
        if real.weights and fake.weights and real.weights != fake.weights:
            made = f"made with the weights {fake.weights}, {args.real} with {real.weights}"
            raise SystemExit(f"{path}: {made}; they cannot be compared")
        found = compare(real, fake, args, device)
        words = [f"± {v:.6f}" if k.endswith(" std") else f" {k} {v:.6f}" for k, v in found.items()]
        say(f"{' '.join(words).strip()}  {path} (N {count(fake)}) against {named}")
        if args.per_class:
            found |= per_class((sets[0], images), (real, fake), args)
        if args.nearest and not results:
            found |= nearest((sets[0], images), (real, fake), args)
        results.append({"path": path, "n": fake.n} | getattr(images, "info", {}) | found)
    if args.json and not args.rank:
        facts = {"real": {"path": args.real, "n": real.n}, "weights": real.weights or fake.weights}
        facts |= {"dims": args.dims, "precision": args.precision, "device": device_name}
        facts |= {module.__name__: module.__version__ for module in (torch, torchvision, np)}
        text = json.dumps(facts | {"results": results}, indent=2)
        atomic_write(args.json, lambda file: file.write(text.encode()))
    if args.plot and not args.rank:
        write_plot(args.plot, results, next(iter(found)))
    if args.world > 1:
        dist.destroy_process_group()


def count(stats):
    return "unknown" if stats.n is None else f"{stats.n:,}"


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # it may lack a letter, as on Windows
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
