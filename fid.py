# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=2.1", "scipy>=1.13", "pillow>=10.1",
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
    python fid.py cifar10 runs/cifar10                        50,000 samples, made on the fly
    python fid.py cifar10 --save-stats cifar10.npz            statistics, for pytorch-fid as well
    python fid.py real/ fake/ --kid --is --prdc --json result.json
    python fid.py cifar10 runs/cifar10 --nearest nearest.png
    python fid.py cifar10 runs/cifar10 --per-class            of a conditional generator
    python fid.py cifar10.npz runs/cifar10 --plot fid.png     of all snapshots of a run
    torchrun --nproc-per-node=4 -- fid.py real/ fake/         4 processes; -- ends torchrun's flags

REAL and FAKE are folders at any depth, .zip archives, .npy or .npz files of uint8 (N, H, W[, 3]),
.npz files of statistics (mu, sigma), cifar10, stl10, sprites, LSUN's folders with data.mdb, or
generators: run folders, checkpoints and snapshots of dcgan.py, wgan.py and wgan_gp.py, and state
dicts in the layout of pytorch/examples. Beside a generator, images are cropped and resized to its
size, as for its training (--size). A file that cannot be read ends the script: N never changes in
silence. Files written: those of the flags, and in --cache REAL's statistics and downloads of data;
the Inception weights are kept where torch.hub keeps its files.

How it differs from pytorch-fid, whose number it gives
    1. Alpha is composited on white, 16 bits are scaled to 8 and EXIF rotations are applied;
       pytorch-fid drops, clips and ignores them. Sub-folders, .gif and .avif count as well.
    2. tr (Sigma1 Sigma2)^(1/2) is the nuclear norm of R1 R2^T for any R with R^T R = Sigma: real by
       construction, and of a small matrix where N < width.
    3. Batch norms are folded into the convolutions.

Measured on two cores of an AMD EPYC with AVX-512 bfloat16, torch 2.14.1: FID-768 of 2,500 against
2,500 CIFAR-10 images 0.0596578035, pytorch-fid 0.3.0 0.0596578010; an image takes the network 28 ms
at 2048 features, 15 ms with --precision bf16 (medians of three).
"""

import argparse
import hashlib
import io
import json
import os
import re
import sys
import warnings
import zipfile
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

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
from torchvision.models.inception import BasicConv2d, Inception3
from torchvision.transforms.functional import to_pil_image

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

RANK = int(os.environ.get("RANK", 0))  # of this process in a torchrun
WORLD = int(os.environ.get("WORLD_SIZE", 1))  # its number of processes

# ---- Inception -----------------------------------------------------------------------------------

PUBLISHED = "6726825d"  # first digits of the published file's sha256
FILE = f"pt_inception-2015-12-05-{PUBLISHED}.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
LAYERS = {64: "maxpool1", 192: "maxpool2", 768: "Mixed_6e", 2048: "Mixed_7c"}  # by width


class Inception:
    """Images, a list of uint8 (3, H, W) -> features (B, dims), float32.

    The network of Szegedy et al. (2015, arXiv 1512.00567) as released for TensorFlow on 2015-12-05:
    torchvision's, but average pooling does not count its padding, and the last block has max
    pooling. `weights` is a state dict in torchvision's names; layers after LAYERS[dims] may be
    missing. Features are the means of that layer's maps.
    """

    def __init__(self, weights, dims=2048, device="cpu", dtype=torch.float32, tf32=False):
        self.device, self.dtype, self.tf32 = torch.device(device), dtype, tf32
        self.float64_device = device if self.device.type == "cuda" else "cpu"  # MPS has no float64
        with torch.device("meta"):  # makes no weights: load_state_dict assigns those of the file
            net = Inception3(aux_logits=False, init_weights=False).eval()
        leaves = {"leaf_modules": [BasicConv2d]}  # kept whole, to fold the batch norms below
        layers = create_feature_extractor(net, {LAYERS[dims]: "map"}, tracer_kwargs=leaves)
        missing, _ = layers.load_state_dict(dict(weights), strict=False, assign=True)
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        for block in layers.float().modules():
            if isinstance(block, BasicConv2d):
                block.conv = fuse_conv_bn_eval(block.conv, block.bn)
                block.bn = nn.Identity()
        pools = [node for node in layers.graph.nodes if node.target is F.avg_pool2d]
        for node in pools[:8]:  # of Mixed_5b to Mixed_7b
            node.update_kwarg("count_include_pad", False)
        for node in pools[8:]:  # of Mixed_7c
            node.target = F.max_pool2d
        layers.recompile()
        self.layers = layers.to(device).to(dtype, memory_format=layout(self.device))

    @torch.no_grad()
    def __call__(self, images):
        batch = []
        for image in images:  # of any size
            x = torch.tensor(image, device=self.device)[None].float() / 255
            batch.append(F.interpolate(x, (299, 299), mode="bilinear", align_corners=False))
        x = (2 * torch.cat(batch) - 1).to(self.dtype, memory_format=layout(self.device))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self.tf32):
            return self.layers(x)["map"].mean((2, 3), dtype=torch.float32)


def layout(device):
    """The memory format of networks: on MPS channels_last is not safe."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def load_inception(args, device):
    """The Inception network. sha256: the first digits of its file's; fc, with --is: the last
    layer's weights (1008, 2048), without the bias, as in the code of Salimans et al."""
    path = Path(args.weights or f"{torch.hub.get_dir()}/checkpoints/{FILE}")
    if not args.weights and not path.exists():
        with one_line(f"{URL}: download failed; put it at {path}, or use --weights"):
            torch.hub.load_state_dict_from_url(URL, check_hash=True, weights_only=True)
    weights = read_weights(path)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    with one_line(f"{path}: not the Inception weights for these flags"):
        net = Inception(weights, args.dims, device, dtype, args.precision == "tf32")
        if args.inception_score:
            net.fc = weights["fc.weight"].float()
    net.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    if net.sha256 != PUBLISHED and RANK == 0:
        print(f"warning: {path} is not the published file; its FID is comparable to no other",
              file=sys.stderr)  # fmt: skip
    return net


# ---- Distances -----------------------------------------------------------------------------------


def frechet_distance(a, b):
    """Squared Fréchet distance of two measured Sets, as of Gaussians N(mu, R^T R) with R = root. Of
    features, a tensor x (N, d), summarize(Set(), moments(x)) makes one.

    Dowson and Landau 1982: |mu1 - mu2|^2 + tr Sigma1 + tr Sigma2 - 2 tr (Sigma1 Sigma2)^(1/2), the
    last being the nuclear norm of M = R1 R2^T, the sum of the roots of M M^T's eigenvalues.
    """
    if len(a.root) > len(b.root):  # so that M M^T is smaller than M^T M
        a, b = b, a
    m = a.root @ b.root.T
    nuclear = np.sqrt(np.linalg.eigvalsh(m @ m.T).clip(0)).sum()
    distance = ((a.mu - b.mu) ** 2).sum() + (a.root**2).sum() + (b.root**2).sum() - 2 * nuclear
    if not np.isfinite(distance):
        raise ValueError("features or statistics are not finite")
    return max(float(distance), 0.0)  # rounding may lead below 0


def square_root(sigma):
    """R (rank, d) with R^T R = sigma, a covariance (d, d), by a pivoted Cholesky decomposition."""
    upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(sigma)
    return np.triu(upper)[:rank, np.argsort(pivots)]  # its columns in sigma's order


def kid(x, y, subsets=100, subset_size=1000):
    """Kernel Inception distance of features, tensors (N, d) and (M, d): mean, standard deviation.

    Bińkowski et al. 2018 (arXiv 1801.01401), section 4: the unbiased estimate of the squared MMD
    with the kernel (x.y / d + 1)^3, averaged over random subsets, the same ones in every call.
    About 0, and then as often negative as positive, where both sets have the same distribution.
    """
    rng = np.random.default_rng(0)
    n = min(subset_size, len(x), len(y))
    if n == len(x) == len(y):  # all subsets are the same
        subsets = 1
    estimates = []
    for _ in range(subsets):
        a = x[rng.choice(len(x), n, replace=False)]
        b = y[rng.choice(len(y), n, replace=False)]
        both = torch.cat([a, b]).double()
        kernel = (both @ both.T / both.shape[1] + 1) ** 3  # (2n, 2n)
        kernel.fill_diagonal_(0)  # no image beside itself, which makes the estimate unbiased
        same = kernel[:n, :n].sum() + kernel[n:, n:].sum()
        estimates.append(float(same / (n * (n - 1)) - 2 * kernel[:n, n:].mean()))
    return np.mean(estimates), np.std(estimates)


def inception_score(logits, splits=10):
    """exp E KL(p(y|x) || p(y)) of logits (N, classes): mean and standard deviation over splits.

    Salimans et al. 2016 (arXiv 1606.03498), section 4; it is 1 to the number of classes. Images are
    put into the splits at random, since a split that holds one class alone would score 1.
    """
    order = np.random.default_rng(0).permutation(len(logits))
    scores = []
    for log_p in logits[order].double().log_softmax(1).tensor_split(min(splits, len(logits))):
        log_mean = log_p.logsumexp(0) - np.log(len(log_p))
        scores.append(float((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp()))
    return np.mean(scores), np.std(scores)


def prdc(real, fake):
    """Precision, recall, density and coverage of features, tensors (N, d) and (M, d).

    Precision: the share of fakes inside the ball of at least one real image, whose radius is the
    distance to its third neighbour; recall: the same with the roles exchanged (Kynkäänniemi et al.
    2019, arXiv 1904.06991, there of VGG-16's features). With radii to the fifth neighbour, density
    is the mean number of balls that a fake is in, over 5; coverage the share of balls with a fake
    (Naeem et al. 2020, arXiv 2002.09797).
    """
    real, fake = real.double(), fake.double()
    real_radii, _ = neighbours(real, real, 6)  # column k: to the k-th neighbour; 0 is the image
    fake_radii, _ = neighbours(fake, fake, 4)
    precise, dense = 0, 0  # sums over the fakes
    recalled, covered = False, False  # of each real image, so far
    for part, radii in zip(fake.split(1024), fake_radii[:, 3, None].split(1024)):
        distances = torch.cdist(part, real)  # (1024, N)
        inside = distances <= real_radii[:, 5]
        precise += (distances <= real_radii[:, 3]).any(1).sum().item()
        recalled = (distances <= radii).any(0) | recalled
        dense += inside.sum().item()
        covered = inside.any(0) | covered
    return {
        "precision": precise / len(fake),
        "recall": recalled.double().mean().item(),
        "density": dense / len(fake) / 5,
        "coverage": covered.double().mean().item(),
    }


def neighbours(x, y, k):
    """Distances and row numbers (N, k) of the k rows of y (M, d) nearest to each row of x (N, d),
    the nearest first."""
    if len(y) < k:
        raise SystemExit(f"--prdc and --nearest take {k} images or more, not {len(y)}")
    parts = [torch.cdist(part, y).topk(k, largest=False) for part in x.split(1024)]
    distances, rows = zip(*parts)
    return torch.cat(distances), torch.cat(rows)


# ---- Sets of images ------------------------------------------------------------------------------

# REAL or a FAKE. n: number of images, or "unknown". size: (H, W) of the first one, or () where it
# is not known. key: changes with the images. classes: names.
# labels (n,): indices into classes. pixels(numbers): reads those images, a list of uint8 (3, H, W);
# None for statistics. info: load_generator's dict, or {}. Once measured, mu (d,) and root (any, d),
# float64: root^T root is the covariance. Where a flag needs them, features (n, d), float32, and
# numbers (n,): which image each row is of. Rows are in the order of the images' hashes, so that no
# random subset depends on the names of files.
FIELDS = "path n size key labels classes pixels info mu root features numbers"
Set = namedtuple("Set", FIELDS, defaults=[None] * 12)


def open_sets(args, device):
    """The Sets of REAL and of the FAKEs. REAL is opened last, since a generator sets args.size."""
    fakes = [open_set(path, args, device) for path in args.fake]
    real = open_set(args.real, args, device)
    sizes = {images.size for images in (real, *fakes) if images.size}
    if len(sizes) > 1 and args.size != 0:
        print(f"images differ in size: {sizes}; --size 64 makes all 64x64 that are no statistics")
    if args.plot and None in [fake.info.get("step") for fake in fakes]:
        raise SystemExit("--plot: takes run folders and snapshots of the trainers as FAKE")
    return real, fakes


def open_set(path, args, device):
    """The Set of a path or a data name; from an .npz file of statistics, a measured one."""
    if path.endswith((".pt", ".pth", ".ckpt", ".pth.tar")) or Path(path, "checkpoint.pt").exists():
        return open_generator(path, args, device)
    with one_line(f"{path}: cannot be read"):
        if path.endswith(".npz"):
            images = load_stats(path, args)
            if images:
                return images
        source = open_data(path, args.size or 32, args.cache)  # sprites alone take the size
    pool = ThreadPoolExecutor()

    def read(i):
        with one_line(f"{path}: {source.items[i]} cannot be read"), source.read(i) as image:
            return to_rgb(image, args.size)

    def pixels(numbers):
        return list(pool.map(read, numbers))

    n = len(source.items)
    check_number(path, n, args)
    size = pixels([0])[0].shape[1:]
    return Set(path, n, size, source.key, source.labels, source.classes, pixels, {})


def open_generator(path, args, device):
    """The Set of a generator's images: image i has seed --seed + i and class i % len(classes).
    Without --size, args.size becomes the generator's."""
    check_number(path, args.n, args)
    G, info = load_generator(path, key=args.key or None)
    print(f"{path}: {info['weights']}")
    if args.size is None:
        args.size = info["size"]
        print(f"images are made {args.size}x{args.size}, as the generator's; --size 0 keeps sizes")
    elif args.size not in (0, info["size"]):
        print(f"its images are resized to {args.size}x{args.size}")
    G.to(device, memory_format=layout(device))
    classes = info["classes"] or [path]  # without classes all images are of one, named by the path
    labels = np.arange(args.n) % len(classes)
    onehots = torch.eye(len(classes))

    def pixels(numbers):
        z = latents([args.seed + i for i in numbers], info["z_dim"])
        if info["classes"]:
            z = torch.cat([z, onehots[labels[numbers]]], 1)
        return [to_rgb(to_pil_image(image), args.size) for image in sample(G, z, len(z))]

    file = Path(path, "checkpoint.pt") if os.path.isdir(path) else Path(path)
    key = ["samples", stamp(file), args.key, args.n, args.seed]
    size = pixels([0])[0].shape[1:]
    return Set(path, args.n, size, key, labels, classes, pixels, info)


def check_number(name, n, args):
    """SystemExit where n, a number of images, is too small."""
    if n < 2 or (n < 2048 and not args.allow_few):
        why = f"FID{args.suffix} grows as N falls; take more, or compare equal N with --allow-few"
        raise SystemExit(f"{name}: only {n:,} image(s): {why}")


# ---- Statistics ----------------------------------------------------------------------------------


def measure(images, net, args):
    """The Set with its statistics and, where a flag needs them, features; each process of a
    torchrun takes a share of the images. Features are copied into blocks of 256 images, since
    many small tensors would leave the heap in pieces."""
    if images.mu is not None:
        return images
    blocks = torch.arange(RANK * images.n // WORLD, (RANK + 1) * images.n // WORLD).split(256)
    if tqdm and RANK == 0 and sys.stderr:
        blocks = tqdm(blocks, unit="256 images", disable=None)  # None: shown on a terminal only
    keep = needs_features(images.path, args)
    total, features, hashes = 0, [], []
    for block in blocks:
        x = torch.empty(len(block), args.dims, device=net.float64_device)
        for numbers, part in zip(block.split(args.batch_size), x.split(args.batch_size)):
            batch = images.pixels(numbers.tolist())
            part.copy_(net(batch))
            if keep:
                hashes += [hashlib.sha1(image.tobytes()).digest() for image in batch]
        total += moments(x)
        if keep:
            features.append(x.cpu())
    if WORLD > 1:
        shares = [None] * WORLD
        dist.all_reduce(total)
        dist.all_gather_object(shares, (features, hashes))
        features, hashes = [], []
        for its_features, its_hashes in shares:
            features += its_features
            hashes += its_hashes
    if features:
        order = np.argsort(hashes, kind="stable")
        images = images._replace(features=torch.cat(features)[order], numbers=order)
    return summarize(images, total)


def needs_features(path, args):
    """Whether a flag needs the features of each image of a set, not its statistics alone."""
    return args.keep or (args.inception_score and path in args.fake)


def moments(x):
    """One matrix (1 + d, 1 + d), float64, of features x (n, d): [[n, sum x], [sum x, x^T x]]."""
    x = F.pad(x.double(), (1, 0), value=1.0)
    return x.T @ x


def summarize(images, total):
    """The Set with n, mu and root from the sum `total` of moments; the covariance is over n - 1."""
    total = np.asarray_chkfinite(total.cpu().numpy())
    n = round(total[0, 0])
    mu = total[0, 1:] / n
    sigma = (total[1:, 1:] - n * np.outer(mu, mu)) / (n - 1)
    return images._replace(n=n, mu=mu, root=square_root(sigma))


def measure_real(images, net, args):
    """REAL, measured. Its statistics are kept in --cache, and taken from there where no flag needs
    features."""
    if images.mu is not None:
        return images
    # 3 is the version of the cache file's contents
    key = json.dumps(["fid 3", images.key, args.size, args.dims, net.sha256, args.precision])
    path = Path(args.cache, f"fid-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz")
    cached = [path.exists() and not args.keep]
    if WORLD > 1:  # all do as the first process, which may alone have the file
        dist.broadcast_object_list(cached)
    if cached[0] and RANK > 0:
        return images  # only the first process compares
    if cached[0]:
        return load_stats(path, args)._replace(path=images.path)
    images = measure(images, net, args)
    with one_line(f"{path}: not written; REAL will be measured again", warn=True):
        save_stats(path, images)
    return images


def load_stats(path, args):
    """The measured Set in an .npz file of pytorch-fid or of --save-stats; None if the file holds no
    statistics, or if it holds images too and a flag needs features."""
    keep = needs_features(path, args)
    with np.load(path) as arrays:
        if "mu" not in arrays:
            return None
        if "arr_0" in arrays:  # images, as in Dhariwal and Nichol's reference batches (2105.05233)
            print(f"{path}: holds both; its {'images' if keep else 'statistics'} are taken")
            if keep:
                return None
        elif keep:
            raise ValueError("statistics: --kid, --is, --prdc, --per-class, --nearest need images")
        mu = np.asarray_chkfinite(arrays["mu"], float)
        sigma = np.asarray_chkfinite(arrays["sigma"], float)
        n = arrays["n"].item() if "n" in arrays else "unknown"
        size = tuple(map(int, arrays.get("size", ())))
    if n != "unknown":
        check_number(path, n, args)
    if mu.shape != (args.dims,):
        raise ValueError(f"they need --dims {mu.size}")
    if not np.allclose(sigma, sigma.T):
        raise ValueError("sigma is not symmetric: not a covariance")
    root = square_root(sigma.reshape(args.dims, args.dims))
    return Set(path, n, size, mu=mu, root=root, info={})


def save_stats(path, images):
    """Write what load_stats and pytorch-fid read; pytorch-fid takes mu and sigma alone."""
    if RANK == 0:
        with atomic(path) as file:
            sigma = images.root.T @ images.root
            np.savez(file, mu=images.mu, sigma=sigma, n=images.n, size=images.size)


# ---- Results -------------------------------------------------------------------------------------


def compare(real, fake, net, args):
    """The measures that the flags ask for, of measured REAL and FAKE: numbers by name."""
    results = {f"FID{args.suffix}": frechet_distance(real, fake)}
    if args.kid or args.prdc:
        x, y = real.features.to(net.float64_device), fake.features.to(net.float64_device)
    if args.kid:
        results[f"KID{args.suffix}"], spread = kid(x, y)
        if min(real.n, fake.n) > 1000:  # else each subset holds all of one set
            results[f"KID{args.suffix} std"] = spread
    if args.inception_score:
        results["IS"], results["IS std"] = inception_score(fake.features @ net.fc.T)
    if args.prdc:
        results |= {f"{name}{args.suffix}": value for name, value in prdc(x, y).items()}
    return results


def per_class(real, fake, args):
    """Print and return the Fréchet distance of each class that is in both sets, by its name."""
    results = {}
    names = sorted(set(real.classes) & set(fake.classes))
    for name in names:
        x, y = features_of(name, real), features_of(name, fake)
        counts = f"(N {len(y):,} against {len(x):,})"
        if min(len(x), len(y)) < (2 if args.allow_few else 2048):
            print(f"    {name}: too few images {counts}; --allow-few takes 2 or more")
            continue
        distance = frechet_distance(summarize(real, moments(x)), summarize(fake, moments(y)))
        results[f"FID{args.suffix} {name}"] = distance
        print(f"    {name}: {distance:.6f} {counts}")
    if not names:
        print("    REAL and this FAKE have no classes in common")
    return results


def features_of(name, images):
    """The features (n, d) of the images of one class."""
    labels = np.take(images.labels, images.numbers)  # of the rows
    return images.features[np.take(images.classes, labels) == name]


def nearest(real, fake, args):
    """Print and return two medians over 100 images, in features / sqrt(dims): the distance from a
    fake to the nearest real image, and from a real one to the nearest other. Write --nearest: 8
    fakes, each beside the 6 real images nearest to it."""
    x = fake.features[:100].double() / args.dims**0.5
    y = real.features.double() / args.dims**0.5
    distances, indices = neighbours(x, y, 6)
    others, _ = neighbours(y[:100], y, 2)  # the first is the image itself
    near, own = float(distances[:, 0].median()), float(others[:, 1].median())
    print(f"nearest in features: median {near:.4g}, of real images to each other {own:.4g}")
    grid = Image.new("RGB", (700, 820), "white")
    for column, title in enumerate("fake nearest 2nd 3rd 4th 5th 6th".split()):
        ImageDraw.Draw(grid).text((100 * column, 4), title, "black")
    for row, number in enumerate(fake.numbers[:8].tolist()):
        images = fake.pixels([number]) + real.pixels(real.numbers[indices[row]].tolist())
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels.transpose(1, 2, 0))
            grid.paste(ImageOps.fit(image, (96, 96)), (100 * column, 100 * row + 20))
    with one_line("--nearest: not written", warn=True), atomic(args.nearest) as file:
        grid.save(file, "PNG")
    return {"nearest in features": near, "nearest in features, REAL": own}


def write_curve(results, args):
    """Write --plot: FID over each run's generator updates, as a table and as a picture."""
    name = f"FID{args.suffix}"
    curves = {}
    with atomic(Path(args.plot).with_suffix(".csv"), "w") as file:
        file.write(f"run,script,epoch,step,n,{name}\n")
        for row in results:
            path = Path(row["path"]).as_posix()
            run = re.sub(r"(/?snapshots)?/?epoch_\d+\.pt$", "", path) or "."
            step, value = row["step"], row[name]
            file.write(f"{run},{row['script']},{row['epoch']},{step},{row['n']},{value}\n")
            curves.setdefault(run, []).append((step, value))
    with one_line(f"{args.plot}: not drawn; its numbers are in the .csv", warn=True):
        from matplotlib.figure import Figure

        axes = Figure().subplots()
        for run, points in curves.items():
            axes.plot(*zip(*sorted(points)), marker=".", label=run)
        axes.set(xlabel="generator updates", ylabel=f"{name} (N = {args.n:,})", ylim=(0, None))
        axes.legend()
        with atomic(args.plot) as file:
            axes.figure.savefig(file, dpi=120)


# ---- Tools (same in the other scripts) -----------------------------------------------------------


@contextmanager
def one_line(what, warn=False):
    """Turn whatever the block raises into one line, `what` (cause): an exit, or only a warning."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        if not warn:
            raise SystemExit(f"{what} ({cause})")
        print(f"warning: {what} ({cause})", file=sys.stderr)


@contextmanager
def atomic(path, mode="wb"):
    """A file to write that becomes `path` when the block ends: whole and on the disk, or not at
    all. If the block or the disk fails, the old file stays and the caller gets the exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def latents(seeds, z_dim):
    """N(0, I) latents (len(seeds), z_dim), each row a function of its seed alone."""
    rows = [torch.randn(z_dim, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


@torch.no_grad()
def sample(G, z, batch_size=64):
    """z (N, z_dim + classes) -> uint8 (N, C, H, W), each from its own z: eval mode, float32."""
    device, mode = next(G.parameters()).device, G.training
    G.eval()
    images = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for part in z.split(batch_size):
            pixels = (G(part.to(device)) + 1) * 127.5
            images.append(pixels.cpu().round().clamp(0, 255).to(torch.uint8))
    G.train(mode)
    return torch.cat(images)


def find_device(name):
    """The torch.device that --device names; "auto" is CUDA, else Apple's MPS, else the CPU."""
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    if name == "cuda":  # one for each process of a torchrun
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    with one_line(f"--device {name}: cannot be used here"):
        return torch.ones(1, device=name).device  # an old GPU fails here, not in the first step


def join_processes(device):
    """Join the other processes of a torchrun; only the first one prints."""
    options = {"backend": "gloo"}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        options = {"device_id": device}
    dist.init_process_group(timeout=timedelta(hours=12), **options)  # decoding may take its time
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")


# ---- Generators (same in fid.py, interpolate.py) -------------------------------------------------


def from_shapes(state):
    """The DCGAN generator of a state dict's shapes, not loaded yet, and its number of inputs.

    main.0 is a transposed convolution of kernel b, stride 1, padding 0; main.3, main.6, ... have
    4, 2, 1. Batch norm (if its weights are there) and ReLU follow each but the last, tanh the last.
    """
    layers, i = [], 0
    while f"main.{i}.weight" in state:
        weight = state[f"main.{i}.weight"]
        if weight.ndim != 4 or weight.nbytes > weight.untyped_storage().nbytes():  # a memory bomb
            raise ValueError(f"main.{i} is no convolution")
        c_in, c_out, kernel, _ = weight.shape
        if i > 0 and kernel != 4:
            raise ValueError(f"main.{i} has a kernel of {kernel}, where 4 doubles the size")
        stride, padding = (2, 1) if i > 0 else (1, 0)
        bias, norm = f"main.{i}.bias" in state, nn.Identity()
        if f"main.{i + 1}.weight" in state:
            norm = nn.BatchNorm2d(c_out)
        layers.append(nn.ConvTranspose2d(c_in, c_out, kernel, stride, padding, bias=bias))
        layers += [norm, nn.ReLU(inplace=True)]
        i += 3
    layers[-2:] = [nn.Tanh()]  # in place of the last norm and ReLU
    inputs = len(state["main.0.weight"])
    view = nn.Unflatten(1, (inputs, 1, 1))
    return nn.Sequential(OrderedDict(view=view, main=nn.Sequential(*layers))), inputs


def load_generator(path, raw=False, key=None, first="main.0.weight", build=from_shapes):
    """The generator G in a file, and a dict that describes it.

    G maps latents (B, z_dim), each followed by its one-hot class if there are classes, to images
    (B, 1 or 3, H, W) in [-1, 1]. The dict has script, epoch, step (None: not known), z_dim,
    classes (their names), size (H) and weights (which ones, in words).

    `raw` takes a trainer's G instead of G_ema, `key` one of several state dicts. build(state dict)
    returns a network whose first tensor is called `first`, and its inputs, z_dim + classes.
    """
    tree = read_weights(path)
    with one_line(f"{path}: cannot be used as a generator"):
        info = {name: tree.get(name) for name in ("script", "epoch", "step")}
        info["classes"] = []
        source = "of another program"
        if info["script"]:
            info["classes"] = list(map(str, tree.get("classes", [])))
            source = f"of {info['script']}, epoch {info['epoch']}"
            if key is None:
                key = "G_ema" if "G_ema" in tree and not raw else "G"
        elif build is from_shapes:
            source += " (assumed: ReLU, batch-norm eps 1e-5, tanh)"
        name, (G, inputs) = find_generator(tree, key, first, build)
        info["z_dim"] = inputs - len(info["classes"])
        images = G(torch.zeros(2, inputs))
        _, channels, info["size"], W = images.shape
        if channels not in (1, 3):
            raise ValueError(f"its images have {channels} channels")
        if not images.isfinite().all():
            raise ValueError("its weights are not finite; the training diverged")
        if key == "G_ema" and build is from_shapes and "image" in tree:
            image = sample(G, torch.ones(1, inputs)).int()  # as the trainer's `save`
            if (image - tree["image"]).abs().max() > 8:  # 1 is rounding
                raise ValueError("its layers were edited; interpolate.py --generator takes them")
    info["weights"] = f"{name} {source}, {W}x{info['size']}x{channels}"
    return G, info


def find_generator(tree, key, first, build):
    """(name, (G, inputs)) of the one generator in nested dicts; ValueError if there is not one."""
    generators = {}
    reason = f"no tensor {first} in {key or 'it'}"
    for name, state in state_dicts(tree, first):
        if key and not f"{name}.".startswith(f"{key}."):  # a name or how it begins
            continue
        try:
            G, inputs = build(state)
            G.load_state_dict(state)
            generators[name or "state dict"] = G.eval().requires_grad_(False), inputs
        except Exception as error:  # another program's network may raise anything
            reason = error
    if len(generators) > 1:
        raise ValueError(f"it holds several; --key takes one of {', '.join(generators)}")
    if not generators:
        raise ValueError(f"interpolate.py --generator takes other networks; {reason}")
    return generators.popitem()


def state_dicts(tree, first, path=""):
    """Yield (name, state dict) for each tensor `first`, at any depth and behind any prefix."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from state_dicts(value, first, f"{path}{name}.")
        elif f".{name}".endswith(f".{first}"):
            prefix = name.removesuffix(first)
            tensors = {n: t for n, t in tree.items() if n.startswith(prefix) and torch.is_tensor(t)}
            state = {n.removeprefix(prefix): t for n, t in tensors.items()}
            yield f"{path}{prefix}".rstrip("."), state


def read_weights(path):
    """What torch.save wrote to a file, on the CPU, without running code from it."""
    path = Path(path).expanduser()
    if os.path.isdir(path):
        path = path / "checkpoint.pt"
    try:
        with warnings.catch_warnings():  # about TorchScript and pickle protocols
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror
    except Exception:  # a damaged file raises nearly anything
        reason = "cut short, damaged, or no state dict that torch.save wrote"
    raise SystemExit(f"{path}: cannot be read: {reason}")


# ---- Data (same in dcgan.py, wgan.py, wgan_gp.py, fid.py) ----------------------------------------

NAMES = ("sprites", "cifar10", "stl10")
SUFFIXES = (*torchvision.datasets.folder.IMG_EXTENSIONS, ".gif", ".avif")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # none runs a program
FORMATS = [kind for kind in FORMATS if kind in Image.registered_extensions().values()]
# key: changes with the images; items: their names in messages; labels: indices into classes
Source = namedtuple("Source", "key items labels classes read")  # read(i): the i-th PIL image


def open_data(data, size, cache):
    """The Source of a data name or a path; raises what is wrong with it."""
    path = Path(data).expanduser()
    if data in NAMES and path.exists():
        print(f"{data}: the data set of that name; ./{data} is yours")
    if data == "sprites":
        kinds = np.arange(2048) % len(SPRITES)
        return Source("sprites 3", range(2048), kinds, list(SPRITES), partial(sprite, size))
    if data in NAMES:
        return open_torchvision(data, cache)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder, and none of {', '.join(NAMES)}")
    if path.suffix.lower() in (".npy", ".npz"):
        return open_array(path)
    if Path(path, "data.mdb").exists():
        return open_lsun(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        return open_folder(path)
    raise ValueError("neither a folder nor a .zip, .npy or .npz")


def open_torchvision(data, cache):
    """The Source of cifar10 or stl10, downloaded into `cache` if it is not there."""
    kind, options = torchvision.datasets.CIFAR10, {}
    if data == "stl10":
        kind, options = torchvision.datasets.STL10, {"split": "train+unlabeled"}
    wanted = f"{kind.filename} with md5 {kind.tgz_md5} into --cache {cache}"
    if Path(cache, kind.filename).exists():
        wanted += ": the file there may have another md5"
    with one_line(f"{data}: no download; put {wanted}"):
        images = kind(cache, download=True, **options)
    if data == "cifar10":
        labels, classes = images.targets, images.classes
    else:
        labels, classes = images.labels % 11, [*images.classes, "unlabeled"]  # label -1 becomes 10
    return Source(data, range(len(images)), labels, classes, lambda i: images[i][0])


def open_array(path):
    """The Source of an .npy or .npz: uint8 (N, H, W, 3) or grey (N, H, W), and perhaps labels."""
    arrays = np.load(path, mmap_mode="r", allow_pickle=False)
    arrays = {"images": arrays} if isinstance(arrays, np.ndarray) else dict(arrays)
    images = arrays.get("images", max(arrays.values(), key=lambda a: (a.ndim, a.size)))
    labels = arrays.get("labels", np.zeros(len(images), int))
    grey = images.ndim == 3 and images.shape[2] > 3  # not a single image (H, W, 3)
    valid = images.dtype == np.uint8 and (grey or images.shape[3:] == (3,))
    if not valid or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}: not "
            "uint8 (N, H, W, 3) or (N, H, W) and int (N,). Try (255 * x).round().astype('uint8') "
            "of floats, x.transpose(0, 2, 3, 1) of channels first"
        )
    classes, labels = np.unique(labels, return_inverse=True)
    classes = classes.astype(str).tolist()
    items = range(len(images))
    return Source(stamp(path), items, labels, classes, lambda i: Image.fromarray(images[i]))


def open_lsun(path):
    """The Source of one of LSUN's databases, a folder that holds data.mdb."""
    import lmdb  # needed here alone: pip install lmdb

    database = lmdb.open(str(path), readonly=True, lock=False)
    keys = list(database.begin().cursor().iternext(values=False))

    def read(i):
        return Image.open(io.BytesIO(database.begin().get(keys[i])), formats=FORMATS)

    return Source(stamp(path / "data.mdb"), keys, np.zeros(len(keys), int), [path.name], read)


def open_folder(path):
    """The Source of the images in a folder or a .zip, at any depth; links are followed. Classes are
    the folders at the first level where the paths differ."""
    if path.is_dir():
        root, names = path.resolve(), []
        for folder, dirnames, filenames in os.walk(root, followlinks=True, onerror=print):
            cyclic = os.path.realpath(folder) in map(os.path.realpath, Path(folder).parents)
            if cyclic or "checkpoint.pt" in filenames:  # a link that leads back up, or a run folder
                dirnames.clear()  # so that os.walk goes no deeper
                continue
            names += [Path(folder, name).relative_to(root).as_posix() for name in filenames]
    else:
        root, names = zipfile.Path(path), zipfile.ZipFile(path).namelist()
    files = []
    for name in sorted(names):
        hidden = "/." in f"/{name.removeprefix('./')}" or "__MACOSX" in name
        if not hidden and not name.endswith("/"):
            files.append(name)
    names = [name for name in files if name.lower().endswith(SUFFIXES)]
    if not names:
        raise ValueError(f"none of the {len(files):,} files in it is an image")
    if len(names) < len(files):
        print(f"{path}: {len(names):,} images, {len(files) - len(names):,} other files")
    folders = [[*name.split("/")[:-1], "."] for name in names]  # ".": beside the folders
    level = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists, not of strings)
    if level == len(folders[0]):  # all images are in one folder
        level = 0
    classes, labels = np.unique([folder[level] for folder in folders], return_inverse=True)

    def read(i):
        with (root / names[i]).open("rb") as file:
            return Image.open(io.BytesIO(file.read(2**28)), formats=FORMATS)  # 256 MiB at most

    key = [stamp(path / name) for name in names] if path.is_dir() else stamp(path)
    return Source(key, names, labels, classes.tolist(), read)


def stamp(path):
    """Path, size and time of a file, to see whether it changed; OSError for a broken link."""
    return [str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns]


def to_rgb(image, size=None):
    """A PIL image of any mode -> RGB, uint8 (3, H, W): upright, on white, 16 bits scaled to 8;
    with `size`, its center square resized to that."""
    image.load()
    with suppress(Exception):  # damaged EXIF says nothing of the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey of 16 bits
        grey = np.asarray(image).clip(0, 65535) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    if size:
        side = min(image.size)
        x, y = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((x, y, x + side, y + side)).resize((size, size), Image.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


SPRITES = {  # left halves of 16 x 16 cells: 0 ground, 1 body, 2 white, 3 pupil
    "ghost": "0000000000001111000111110011111100111111001112210011123100111111"
    "0011111100111111001111110011111100111111001111110010110100000000",
    "beetle": "0001000000001000000001110000111100002211010023110011111100001111"
    "0111111100001111000011110111111100001111000001110000000000000000",
    "robot": "0000000100000001000111110001111100012211000123110001111100000011"
    "0111111101011111010111110101111100011111000110000001100000000000",
    "cat": "0010000000110000001110000011111100111111001122110011231100111111"
    "0001111100001111000111110001111100011111000110110001101100000000",
}


def sprite(size, i):
    """The i-th of many small mirrored creatures, a PIL image, always the same: of four kinds by
    turns, in its own colour. Shading and grain keep a discriminator from winning too early."""
    rng = np.random.default_rng(i)
    half = np.array(list(list(SPRITES.values())[i % 4]), int).reshape(16, 8)
    color = 0.5 + 0.45 * np.cos(2 * np.pi * (rng.uniform() + np.arange(3) / 3))
    palette = np.array([0.95 - 0.25 * (1 - color), color, [1, 1, 1], [0.1, 0.1, 0.1]])
    cells = (255 * palette[np.hstack([half, half[:, ::-1]])]).astype(np.uint8)
    cells = Image.fromarray(cells).resize((size, size), Image.BILINEAR)
    left = np.asarray(cells)[:, : size // 2] * np.linspace(1.15, 0.75, size)[:, None, None]
    left = (left + rng.normal(0, 6, left.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.hstack([left, left[:, ::-1]]))


# ---- Options, main -------------------------------------------------------------------------------


def build_parser():
    parser = argparse.ArgumentParser(
        usage="%(prog)s REAL [FAKE ...] [flags]; --help lists them",
        description="Print the Fréchet Inception distance (FID) of each FAKE to REAL. Each is a "
        "folder, an archive, an array, statistics, the name of a data set, or a generator.",
        allow_abbrev=False,
    )

    path = os.path.expanduser

    def add(flag, default, text, **options):
        text = f"{text} (default {default})" if default else text
        kind = path if type(default) is str else int
        group.add_argument(flag, default=default, type=kind, help=text, **options)

    def switch(flag, text, **options):
        group.add_argument(flag, action="store_true", help=text, **options)

    parser.add_argument("real", metavar="REAL", type=path, help="images to compare with")
    parser.add_argument("fake", metavar="FAKE", type=path, nargs="*", help="images to measure")
    group = parser.add_argument_group("images")
    add("--n", 50000, "number of images to sample from a generator")
    add("--seed", 0, "seed of a generator's image 0; image i has the latent of seed + i")
    add("--key", "", "name of the state dict that is the generator, where a file holds several")
    size = "height and width to crop and resize to; 0 keeps them (default: those of a generator)"
    add("--size", None, size)
    switch("--allow-few", "accept under 2048 images, to compare sets of equal N; not to be quoted")
    add("--cache", "data", "folder for downloads and REAL's statistics")
    group = parser.add_argument_group("measures")
    switch("--kid", "kernel Inception distance: for few images as well")
    score = "Inception score of each FAKE, which does not look at REAL: higher is better"
    switch("--is", score, dest="inception_score")
    switch("--prdc", "precision, recall, density and coverage")
    switch("--per-class", "FID of each class, of labelled images and conditional generators")
    group = parser.add_argument_group("files to write")
    add("--nearest", "", "picture (.png) of images of the first FAKE beside the nearest real ones")
    add("--save-stats", "", "statistics (.npz) of REAL, to serve as REAL here and in pytorch-fid")
    add("--json", "", "file for all results, in full precision")
    add("--plot", "", "curve (.png and .csv) of FID over updates, of snapshots or run folders")
    group = parser.add_argument_group("network")
    add("--dims", 2048, "width of the features; only 2048 is FID", choices=LAYERS)
    add("--weights", "", "file of Inception weights in pytorch-fid's names, not the download")
    add("--batch-size", 0, "images a pass, 256 at most; 0 is 128, on a CPU 4 (8 in bf16)")
    add("--device", "auto", "cpu, cuda, cuda:1 or mps")
    kinds = "number format; tf32 (on a GPU) and bf16 (where native) are faster, but less exact"
    add("--precision", "fp32", kinds, choices=("fp32", "tf32", "bf16"))
    return parser


def parse_args(argv=None):
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)  # a FAKE may follow a flag
    if min(args.n, args.batch_size, args.size or 0) < 0:
        parser.error("--n, --batch-size and --size: must be 0 or more")
    for name, suffix in {"save_stats": ".npz", "nearest": ".png", "plot": ".png"}.items():
        path = getattr(args, name)
        if path and not path.endswith(suffix):
            parser.error(f"--{name.replace('_', '-')} {path}: must end in {suffix}")
    if not args.fake and not args.save_stats:
        parser.error("name a FAKE, or --save-stats FILE.npz to measure REAL alone")
    if args.inception_score and args.dims != 2048:
        parser.error(f"--is: takes the whole network, not --dims {args.dims}")
    if args.plot:  # of a run folder, its snapshots
        fakes, args.fake = args.fake, []
        for fake in fakes:
            snapshots = sorted(Path(fake).rglob("epoch_*.pt"))
            args.fake += map(str, snapshots or [fake])
    args.keep = any([args.kid, args.prdc, args.per_class, args.nearest])  # features of all images
    args.suffix = "" if args.dims == 2048 else f"-{args.dims}"  # of names: FID-64 is not FID
    return args


@one_line("fid.py: stopped; if memory ran out, try a smaller --batch-size")
def main(argv=None):
    args = parse_args(argv)
    device = find_device(args.device)
    if not args.batch_size:
        args.batch_size = 128
        if device.type == "cpu":  # feature maps up to 22 MB: malloc reuses no block above 32 MB
            args.batch_size = 8 if args.precision == "bf16" else 4
    torch.set_flush_denormal(True)  # a denormal costs a hundred times a normal number
    warnings.filterwarnings("ignore", "The value of the smallest subnormal")  # NumPy's warning
    warnings.filterwarnings("ignore", module="PIL")
    if WORLD > 1:
        join_processes(device)
    if RANK > 0:  # the first process downloads, then the others read
        dist.barrier()
    real, fakes = open_sets(args, device)
    net = None
    if any(images.pixels for images in (real, *fakes)):
        net = load_inception(args, device)
    if WORLD > 1 and RANK == 0:
        dist.barrier()

    real = measure_real(real, net, args)
    if args.save_stats:
        save_stats(args.save_stats, real)
        print(f"{args.save_stats}: statistics of {real.path} (N {real.n}), width {args.dims}")
    results = []
    for fake in fakes:
        fake = measure(fake, net, args)
        if RANK > 0:
            continue
        row = compare(real, fake, net, args)
        line = "  ".join(f"{name} {value:.6f}" for name, value in row.items())
        line = re.sub(r"  \S+ std", " ±", line)  # "KID 0.2  KID std 0.1" -> "KID 0.2 ± 0.1"
        print(f"{line}  {fake.path} (N {fake.n}) against {real.path} (N {real.n})")
        if args.per_class:
            row |= per_class(real, fake, args)
        if args.nearest and not results:  # the first FAKE
            row |= nearest(real, fake, args)
        results.append({"path": fake.path, "n": fake.n} | fake.info | row)
    if args.json and RANK == 0:
        report = {"real": {"path": real.path, "n": real.n}, "args": vars(args)}
        report |= {"torch": torch.__version__, "results": results}
        with atomic(args.json, "w") as file:
            json.dump(report, file, indent=2, default=str)
    if args.plot and RANK == 0:
        write_curve(results, args)
    if WORLD > 1:
        dist.barrier()  # torch 2.6 may hang where one process leaves before the others
        dist.destroy_process_group()
    return results


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # of `| head`
        os._exit(1)
