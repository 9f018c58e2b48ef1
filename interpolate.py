# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=2", "pillow>=10.1", "tqdm"]
# ///
"""A walk through the latent space of any generator: ways, arithmetic, planes, directions, samples.

A generator G makes an image of a latent z ~ N(0, I). What lies between two latents, and which
directions mean something, shows what G has learned:

    way          G(z) for z on the arc from z_a to z_b, evenly in the angle
    arithmetic   G(mean(z_3, z_5, z_8) - z_17 + z_42)           Radford et al. (arXiv 1511.06434)
    plane        G(z_a + u (z_b - z_a) + v (z_c - z_a)),  u and v in [0, 1]
    traversal    G(z + s n_i),  n_i the unit n that moves A n most, A being G's first layer:
                 the leading eigenvectors of A'A                 Shen and Zhou (arXiv 2007.06600)

Latents have names: z_k is torch.randn under seed k on the CPU, so seed k is the same image on every
device, in every batch and in cell k of a trainer's sample grids, but for a rare pixel one level off
where float32 sums were rounded in another order.

Usage
    python interpolate.py runs/dcgan/checkpoint.pt                    a row per pair of seeds
    python interpolate.py runs/dcgan/checkpoint.pt --seeds 3,17,42 --loop --out walk.gif
    python interpolate.py CHECKPOINT --arithmetic "(3,5,8)-(17,18,19)+(42,43,44)"
    python interpolate.py CHECKPOINT --grid 3,17,42                   the plane through three seeds
    python interpolate.py CHECKPOINT --traverse 3 --dims 5            a direction per row
    python interpolate.py CHECKPOINT --samples 64                     a plain grid
    python interpolate.py CHECKPOINT --samples 50000 --out fake/      single PNGs, resumable
    python interpolate.py CHECKPOINT --samples 50000 --out fake.npz   or one array
    python interpolate.py CHECKPOINT --nearest cifar10                has it learned by heart?
    python interpolate.py CHECKPOINT --nearest cifar10 --weights pt_inception.pth

CHECKPOINT is
    a checkpoint.pt or a snapshot of dcgan.py, wgan.py or wgan_gp.py: the averaged generator, or
    with --raw the raw one; the state dict of a DCGAN generator in the layout of pytorch/examples
    (netG_epoch_24.pth: main.0.weight and on), of any width, depth, and 1 or 3 colours; or the state
    dict of another class, that --generator FILE.py:CLASS names. Reading it runs no code;
    --generator runs FILE.

Writes
    --out, a picture, an animation, a folder or an .npz; nothing else. Small images are enlarged by
    a whole factor, without smoothing. A folder of samples also holds samples.json, which keeps two
    generators from being mixed; image 000042.png is the image of seed 42, and only missing ones are
    made.
"""

import argparse
import ast
import hashlib
import importlib.util
import io
import json
import math
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageDraw, ImageFont, ImageOps, features
from torch import nn

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

SCRIPT = "interpolate.py"

# ---- Latents -------------------------------------------------------------------------------------


def lerp(a, b, t):
    """The straight line from a to b at t (steps, 1)."""
    return a + t * (b - a)


def slerp(a, b, t):
    """The arc from a to b (z_dim,) at t (steps, 1): the angle and the length change evenly.

    In high dimension N(0, I) lies near a sphere. The middle of a straight line between two draws
    has 0.71 of their length, where the generator never trained; the arc stays among draws. After
    Shoemake (1985), written without division by the angle's sine, so that it holds at any angle:
    antipodal latents are joined by one of the half circles, and zero has no direction of its own.
    """
    tiny = torch.finfo(a.dtype).tiny
    u, v = (x / x.norm().clamp_min(tiny) for x in (a, b))
    across = v - (v @ u) * u
    angle = torch.atan2(across.norm(), v @ u)
    if across.norm() < 1e-12:  # any direction across u will do: the least of u's own
        across = (torch.arange(len(u)) == u.abs().argmin()).to(a)
        across = across - (across @ u) * u
    w = across / across.norm().clamp_min(tiny)
    return (torch.cos(t * angle) * u + torch.sin(t * angle) * w) * lerp(a.norm(), b.norm(), t)


def walk(a, b, steps, path="slerp"):
    """The way from latent a to b: (steps, z_dim), of which the ends are a and b to the bit."""
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    z = {"slerp": slerp, "lerp": lerp}[path](a.double(), b.double(), t).to(a.dtype)
    z[0], z[-1] = a, b
    return z


def plane(a, b, c, steps, path="slerp"):
    """The plane through three latents: (steps, steps, z_dim).

    a is top left, b top right, c bottom left, b + c - a bottom right. With "slerp" each point is
    brought to the length that a, b and c have there, as between draws of N(0, I).
    """
    v, u = torch.meshgrid(*[torch.linspace(0, 1, steps, dtype=torch.float64)] * 2, indexing="ij")
    weights = torch.stack([1 - u - v, u, v], -1)  # (steps, steps, 3)
    corners = torch.stack([a, b, c]).double()
    z = weights @ corners
    if path == "slerp":
        length = (weights @ corners.norm(dim=1, keepdim=True)).clamp_min(0)
        z = z / z.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny) * length
    z = z.to(a.dtype)
    z[0, 0], z[0, -1], z[-1, 0] = a, b, c
    return z


def principal_directions(G, n):
    """Unit latents (n, z_dim) that move G's first layer most, in falling order.

    The first layer maps z to A z: of all unit vectors the eigenvectors of A'A change A z most
    (SeFa, Shen and Zhou 2021). An eigenvector's sign is free; here its largest entry is positive.
    """
    _, A = first_layer(G)
    _, vectors = torch.linalg.eigh(A.T @ A)
    directions = vectors.T.flip(0)[:n]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return (directions * largest.sign()).float()


def first_layer(G):
    """z_dim and the matrix A (outputs, z_dim), float64, of the layer that a latent enters first."""
    for m in G.modules():
        if isinstance(m, nn.Linear):
            return m.in_features, m.weight.detach().double().cpu()
        if isinstance(m, nn.ConvTranspose2d):
            return m.in_channels, m.weight.detach().double().cpu().flatten(1).T
        if isinstance(m, nn.Conv2d):
            return m.in_channels, m.weight.detach().double().cpu().transpose(0, 1).flatten(1).T
    raise ValueError("there is no linear or convolutional layer that a latent could enter")


# Each of these gives latents (rows, columns, z_dim) and their labels.


def ways(args, G, z_dim):
    legs = list(pairwise(args.seeds + args.seeds[:1] * args.loop))
    z = torch.stack([walk(*latents(leg, z_dim), args.steps, args.path) for leg in legs])
    return z, [[f"seed {a}", *[""] * (args.steps - 2), f"seed {b}"] for a, b in legs]


def grid(args, G, z_dim):
    labels = [[""] * args.steps for _ in range(args.steps)]
    labels[0][0], labels[0][-1], labels[-1][0] = (f"seed {seed}" for seed in args.grid)
    return plane(*latents(args.grid, z_dim), args.steps, args.path), labels


def traverse(args, G, z_dim):
    if args.dims > z_dim:
        raise SystemExit(f"--dims {args.dims}: the latents have {z_dim}")
    axes = torch.eye(z_dim)[: args.dims]
    directions = axes if args.basis == "axes" else principal_directions(G, args.dims)
    s = torch.linspace(-args.span, args.span, args.steps)
    z = latents([args.traverse], z_dim) + s[:, None] * directions[:, None]
    row = [f"{x:+.1f}" for x in s.tolist()]
    return z, [[f"{i}:  {row[0]}", *row[1:]] for i in range(1, args.dims + 1)]


# ---- Arithmetic ----------------------------------------------------------------------------------


def parse_arithmetic(text):
    """The syntax tree of an expression of seeds; SyntaxError says what is wrong, and where.

    Seeds are whole numbers, + and - add and subtract, (a, b, ...) is a mean, 0.5 * a scales, and
    parentheses group: Python's own syntax, parsed by Python and never run.
    """
    for i, letter in enumerate(text):
        if not letter.isascii():  # a minus sign from a word processor; Pythons point differently
            raise SyntaxError("not understood", ("", 1, i + 1, text))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval").body
        evaluate(tree, lambda seed: torch.zeros(1))
    except (RecursionError, MemoryError):
        raise SyntaxError("too deeply nested", ("", 1, 1, text))
    return tree


def evaluate(node, latent):
    """The latent that a tree stands for, with latent(seed) for each seed."""
    fault = "not understood"
    match node:
        case ast.Constant(value=int(seed)) if type(seed) is int:
            if seed < 2**63:
                return latent(seed)
            fault = "a seed is less than 2**63"
        case ast.Tuple(elts=[_, *_] as parts):
            return torch.stack([evaluate(part, latent) for part in parts]).mean(0)
        case ast.UnaryOp(op=ast.USub(), operand=a):
            return -evaluate(a, latent)
        case ast.BinOp(left=a, op=ast.Add(), right=b):
            return evaluate(a, latent) + evaluate(b, latent)
        case ast.BinOp(left=a, op=ast.Sub(), right=b):
            return evaluate(a, latent) - evaluate(b, latent)
        case ast.BinOp(left=ast.Constant(value=int() | float() as factor), op=ast.Mult(), right=b):
            if abs(factor) <= 1000:
                return factor * evaluate(b, latent)
            fault = "a factor is 1000 at most"
    raise SyntaxError(fault, ("", 1, node.col_offset + 1, ""))


def terms(node, sign="+"):
    """The signs and trees of the top-level terms of a sum, from left to right."""
    other = {"+": "-", "-": "+"}[sign]
    match node:
        case ast.BinOp(left=a, op=ast.Add(), right=b):
            return terms(a, sign) + terms(b, sign)
        case ast.BinOp(left=a, op=ast.Sub(), right=b):
            return terms(a, sign) + terms(b, other)
        case ast.UnaryOp(operand=a):
            return terms(a, other)
    return [(sign, node)]


def arithmetic(text, latent, draw):
    """The rows and labels of the picture of an expression, and the latent that it comes to.

    A column per term, a mean below what it is the mean of; on the right the result amid eight
    neighbours, which have uniform noise of +-0.25 added, as in figure 7 of Radford et al.
    """
    tree = parse_arithmetic(text)
    columns = []
    for sign, node in terms(tree):
        parts = node.elts if isinstance(node, ast.Tuple) and len(node.elts) > 1 else []
        names = [ast.get_source_segment(text, part).replace(" ", "") for part in (*parts, node)]
        columns.append(([*names[:-1], f"{sign} {names[-1]}"], [*parts, node]))
    middle = max(1, *(len(names) - 1 for names, _ in columns))
    rows = [[None] * (len(columns) + 3) for _ in range(middle + 2)]
    labels = [[""] * (len(columns) + 3) for _ in rows]
    for column, (names, nodes) in enumerate(columns):
        images = draw(torch.stack([evaluate(node, latent) for node in nodes]))
        for row, image, name in zip(range(middle - len(names) + 1, middle + 1), images, names):
            rows[row][column], labels[row][column] = image, name
    result = evaluate(tree, latent)
    noise = torch.rand(9, len(result), generator=torch.Generator().manual_seed(0)) / 2 - 0.25
    noise[4] = 0
    for i, image in enumerate(draw(result + noise)):
        rows[middle - 1 + i // 3][len(columns) + i % 3] = image
    labels[middle][len(columns) + 1] = "= result"
    return rows, labels, result


# ---- Pictures ------------------------------------------------------------------------------------


def sheet(rows, labels=()):
    """A picture of rows of images, uint8 (3, H, W) or None, each below its label.

    Images are enlarged by a whole factor to about 128 pixels, less in a sheet of many.
    """
    H, W = next(image for row in rows for image in row if image is not None).shape[1:]
    columns, gap, line = max(map(len, rows)), 4, 17
    scale = max(1, min(128 // max(H, W), 2400 // (columns * W)))
    font = ImageFont.load_default(13)
    labels = [[str(text) for text in row] for row in labels] or [[]] * len(rows)
    heights = [gap + H * scale + line * any(texts) for texts in labels]
    page = Image.new("RGB", (gap + columns * (W * scale + gap), gap + sum(heights)), "white")
    pen, top = ImageDraw.Draw(page), gap
    for row, texts, height in zip(rows, labels, heights):
        top += height
        for i, image in enumerate(row):
            left = gap + i * (W * scale + gap)
            if image is not None:
                page.paste(enlarge(image, scale), (left, top - gap - H * scale))
            if any(texts):
                text = texts[i]
                while font.getlength(text) > W * scale:
                    text = text.rstrip(".")[:-1] + "..."
                pen.text((left, top - height - 1), text, "black", font)
    return page


def enlarge(image, scale):
    """A PIL image of uint8 (3, H, W), each pixel scale x scale large."""
    pixels = np.asarray(image).transpose(1, 2, 0)
    return Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1))


def write_animation(path, images, fps):
    """Write images uint8 (N, 3, H, W) as .gif, .webp or .mp4, about 256 pixels large, endless."""
    frames = [enlarge(image, max(1, 256 // max(images.shape[2:]))) for image in images]
    if path.suffix.lower() == ".mp4":
        return write_file(path, lambda file: encode_mp4(file, frames, fps))
    tick = 10 if path.suffix.lower() == ".gif" else 1  # ms; rounded so that the sum is right
    times = [round(i * 1000 / fps / tick) * tick for i in range(len(frames) + 1)]
    options = {"save_all": True, "append_images": frames[1:], "loop": 0, "lossless": True}
    options |= {"duration": [b - a for a, b in pairwise(times)], "format": path.suffix[1:].upper()}
    write_file(path, lambda file: frames[0].save(file, **options))


def encode_mp4(file, frames, fps):
    """Let ffmpeg write H.264 to the path of an open file."""
    size, even = "x".join(map(str, frames[0].size)), "pad=ceil(iw/2)*2:ceil(ih/2)*2"
    command = f"ffmpeg -v error -y -f rawvideo -pix_fmt rgb24 -s {size} -r {fps} -i -".split()
    command += ["-vf", even, "-pix_fmt", "yuv420p", "-crf", "16", "-f", "mp4", file.name]
    done = subprocess.run(command, input=b"".join(f.tobytes() for f in frames), capture_output=True)
    if done.returncode:
        raise RuntimeError(f"ffmpeg: {first_line(done.stderr.decode(errors='replace'))}")


# ---- Samples -------------------------------------------------------------------------------------


def write_folder(folder, seeds, draw, batch_size, made_by):
    """Write the image of each seed as a PNG; those that are there already are left alone."""
    vouch, name = folder / "samples.json", "{:06}.png".format
    try:
        there = set(os.listdir(folder)) if folder.exists() else set()
        known = json.loads(vouch.read_bytes()) if vouch.name in there else None
    except (OSError, ValueError) as error:
        raise SystemExit(f"--out {folder}: cannot be read ({first_line(error)})")
    others = there - {name(seed) for seed in seeds}
    if (known != made_by and there) or any(map(is_image, others)):
        what = f"other files than samples of this generator, or more than {len(seeds):,}"
        raise SystemExit(f"--out {folder}: holds {what}; name another folder")
    write_file(vouch, lambda file: file.write(json.dumps(made_by, indent=2).encode()))

    def save(seed, image):
        write_file(folder / name(seed), lambda file: enlarge(image, 1).save(file, "PNG"))

    todo = [seed for seed in seeds if name(seed) not in there]
    bar, pending = progress(len(seeds), "image", len(seeds) - len(todo)), []
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(todo), batch_size):
                part = todo[start : start + batch_size]
                images = draw(part)  # while the threads still write the images before these
                for written in pending:
                    written.result()
                pending = [pool.submit(save, seed, image) for seed, image in zip(part, images)]
                bar.update(len(part))
        for written in pending:
            written.result()
    except KeyboardInterrupt:
        print(f"\nstopped; what is in {folder} is whole, and the same command goes on")
        raise
    finally:
        bar.close()
    return f"{len(seeds):,} images" + f" ({len(seeds) - len(todo):,} were there)" * bool(there)


def write_npz(path, seeds, draw, batch_size):
    """Write the images of seeds as one array `images`, uint8 (N, H, W, 3), batch by batch."""
    bar = progress(len(seeds), "image")

    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("images.npy", "w", force_zip64=True) as array:
                for start in range(0, len(seeds), batch_size):
                    pixels = draw(seeds[start : start + batch_size]).permute(0, 2, 3, 1).numpy()
                    if start == 0:
                        shape = (len(seeds), *pixels.shape[1:])
                        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(array, header)
                    array.write(pixels.tobytes())
                    bar.update(len(pixels))

    write_file(path, write)
    bar.close()


# ---- Neighbours ----------------------------------------------------------------------------------


def neighbours(x, data, k):
    """Root mean square distances (N, k) and numbers (N, k) of the k rows of `data` nearest to x.

    x (N, ...) and data (M, ...) may be uint8 images or float features. Exact for images: squares
    and products of bytes sum without rounding in float64. Of equals the first comes first.
    """
    x = x.flatten(1).double()
    best = torch.empty(len(x), 0, dtype=torch.float64)
    index = torch.empty(len(x), 0, dtype=torch.int64)
    chunk = max(1, 2**22 // x.shape[1])  # 32 MiB of float64
    for start in range(0, len(data), chunk):
        y = data[start : start + chunk].flatten(1).double()
        squares = (x**2).sum(1, keepdim=True) + (y**2).sum(1) - 2 * x @ y.T
        best = torch.cat([best, squares], 1)
        index = torch.cat([index, torch.arange(start, start + len(y)).expand(len(x), -1)], 1)
        best, order = best.sort(dim=1, stable=True)
        best, index = best[:, :k], index.gather(1, order)[:, :k]
    return (best.clamp_min(0) / x.shape[1]).sqrt(), index


def nearest(images, args, device):
    """The rows and labels of each image beside its args.k neighbours in the data args.nearest:
    the nearest in pixels and, with args.weights, those in the features of the Inception network.

    Says how near the samples are, and as a measure of that how near some of the data's own images
    are to the others: a generator that has learned its set by heart is far below it.
    """
    H, W = images.shape[2:]
    if H != W:
        raise SystemExit(f"--nearest {args.nearest}: takes square images; these are {W}x{H}")
    spaces = {"pixels": lambda images: images}
    if args.weights:
        net = open_inception(args.weights, device)
        print(f"{args.weights}: features of width {net.dims}")
        spaces["features"] = lambda images: inception_features(net, images)
    data, _, _ = load_data(args.nearest, W, None, args.cache, args.skip_corrupt)
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:100]
    rows, labels = [[image] for image in images], [[f"seed {seed}"] for seed in args.seeds]
    for space, points in spaces.items():
        x, y = points(images), points(data)
        distances, index = neighbours(x, y, args.k)
        among = neighbours(y[some], y, 2)[0][:, -1]  # the first is the image itself
        print(f"{space}: root mean square distance to the nearest image of {args.nearest}, median")
        print(f"    samples {distances[:, 0].median():.3g}, its own images {among.median():.3g}")
        for row, texts, found, values in zip(rows, labels, index, distances.tolist()):
            row += data[found]
            texts += [f"{space} {values[0]:.3g}", *(f"{value:.3g}" for value in values[1:])]
    return rows, labels


def open_inception(path, device):
    """The Inception network of a file of weights, with the widest features that the file holds."""
    weights = read_weights(path)
    for dims in (2048, 768):
        try:
            return Inception(weights, dims, device=device)
        except ValueError as error:
            reason = error
    raise SystemExit(
        f"--weights {path}: not the Inception network in pytorch-fid's names ({reason})"
    )


def inception_features(net, images):
    """Features (N, net.dims) of uint8 images (N, 3, H, W), float32 on the CPU."""
    features = torch.empty(len(images), net.dims)  # one block: small ones leave the heap in pieces
    bar, size = progress(len(images), "image"), 4 if net.device.type == "cpu" else 128
    for part, rows in zip(images.split(size), features.split(size)):
        rows.copy_(net(part)[0])
        bar.update(len(rows))
    bar.close()
    return features


# ---- Generators ----------------------------------------------------------------------------------

FORMAT = 1  # of checkpoints and snapshots


def load_generator(path, raw=False, code=None):
    """The generator in a checkpoint, and in words whose weights it has.

    It maps latents (B, z_dim) to images (B, 1 or 3, H, W) in [-1, 1]. `code` is FILE.py:CLASS of
    one whose tensors' shapes do not tell the network.
    """
    state, shape, words = read_weights(path), {}, "a state dict"
    try:
        if {"format", "script"} <= state.keys():
            if state["format"] > FORMAT:
                newer = f"format {state['format']}, newer than this script can read"
                raise SystemExit(f"{path}: {newer}")
            key = "G" if raw or "G_ema" not in state else "G_ema"
            if key not in state:
                raise SystemExit(f"{path}: holds the averaged weights alone; leave --raw out")
            kind = "raw" if key == "G" else "averaged"
            words = f"{state['script']}, epoch {state['epoch']}, {kind} weights"
            state, shape = state[key], state["generator"]
        state = {str(name).removeprefix("module."): value for name, value in state.items()}
        G = import_class(code)(**shape) if code else from_shapes(state)
        G.load_state_dict(state)
        z_dim, _ = first_layer(G)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        advice = "" if code else "; --generator FILE.py:CLASS names another class"
        what = code or "a DCGAN generator in the layout of pytorch/examples"
        raise SystemExit(f"{path}: does not fit {what} ({first_line(error)}){advice}")
    G.eval().requires_grad_(False)
    reasons = []
    for net in (G, nn.Sequential(nn.Unflatten(1, (z_dim, 1, 1)), G)):
        try:
            shape = tuple(net(torch.zeros(2, z_dim)).shape)
        except Exception as error:  # of a class of any kind
            reasons.append(first_line(error))
            continue
        if len(shape) == 4 and shape[0] == 2 and shape[1] in (1, 3):
            return net, words
        reasons.append(f"of two latents it makes {shape}")
    raise SystemExit(f"{path}: makes no images (B, 1 or 3, H, W) ({'; '.join(reasons)})")


def read_weights(path):
    """The dict in a file of torch.save, on the CPU. Runs no code from the file."""
    try:
        with warnings.catch_warnings():  # of a foreign pickle's protocol
            warnings.simplefilter("ignore")
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"{path}: no such checkpoint")
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError):
        raise SystemExit(f"{path}: cut short, damaged, or not a checkpoint (nothing in it was run)")
    if not isinstance(weights, dict):
        raise SystemExit(f"{path}: neither a checkpoint nor a state dict")
    return weights


def from_shapes(state):
    """The network of a DCGAN generator's state dict: main.0 projects z, main.3, 6, ... double.

    Transposed convolutions (b, 1, 0) and then (4, 2, 1), with a bias where there is one, each but
    the last followed by a batch norm, where there is one, and ReLU; tanh last.
    """
    layers, i = [], 0
    while i == 0 or f"main.{i}.weight" in state:
        c_in, c_out, kernel, _ = state[f"main.{i}.weight"].shape
        bias, norm = f"main.{i}.bias" in state, f"main.{i + 1}.weight" in state
        stride, padding = (2, 1) if i else (1, 0)
        layers += [nn.ConvTranspose2d(c_in, c_out, kernel, stride, padding, bias=bias)]
        layers += [nn.BatchNorm2d(c_out) if norm else nn.Identity(), nn.ReLU(inplace=True)]
        i += 3
    return nn.Sequential(OrderedDict(main=nn.Sequential(*layers[:-2], nn.Tanh())))


def fingerprint(G):
    """SHA-256 of G's weights."""
    digest = hashlib.sha256()
    for name, value in G.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def import_class(code):
    """CLASS of the file in "FILE.py:CLASS", after running that file."""
    file, _, name = code.rpartition(":")
    print(f"--generator: running the code of {file}", flush=True)
    argv, sys.argv = sys.argv, [file]
    sys.path.insert(0, str(Path(file).resolve().parent))  # for what lies beside it
    try:
        spec = importlib.util.spec_from_file_location("foreign_generator", file)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)
    except (Exception, SystemExit) as error:
        raise SystemExit(f"--generator {code}: {type(error).__name__} ({first_line(error)})")
    finally:
        sys.argv = argv


# ---- Sampling and files (same in dcgan.py, wgan.py, wgan_gp.py) ----------------------------------


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


# ---- Inception (same in fid.py) ------------------------------------------------------------------

LAST = {64: "Conv2d_2b_3x3", 192: "Conv2d_4a_3x3", 768: "Mixed_6e", 2048: "Mixed_7c"}  # of a width
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


# ---- Data (same in dcgan.py, wgan.py, wgan_gp.py) ------------------------------------------------
# One function to call: images, labels, names = load_data(data, size).

DOWNLOADS = ("cifar10", "stl10", "celeba", "lsun-NAME")
Source = namedtuple("Source", "key items labels names read")  # read(i): the i-th PIL image


def load_data(data, size, classes=None, cache="data", skip_corrupt=False):
    """Images uint8 (N, 3, size, size), labels int64 (N,) and class names of a name or a path.

    `data`: "sprites", "cifar10", "stl10", "celeba", "lsun-NAME", a folder (first-level sub-folders
    are classes), a .zip read in place, an .npy or .npz of uint8 (N, H, W, 3). Images are put
    upright, composed on white, cropped to the centre square and resized with antialiasing. They
    are decoded once, into a file in `cache` that is mapped into memory and not to be written to.
    `classes` keeps those alone; `skip_corrupt` leaves out what cannot be read. SystemExit says
    what is wrong with the data.
    """
    data = str(data)
    source = open_source(data, size, Path(cache))
    labels = np.asarray(source.labels, np.int64)
    unknown = sorted(set(classes or []) - set(source.names))
    if unknown:
        known = " ".join(source.names[:100])
        raise SystemExit(f"--classes {' '.join(unknown)}: not in {data}, which has: {known}")
    wanted = [source.names.index(name) for name in classes or source.names]
    keep = np.flatnonzero(np.isin(labels, wanted)).tolist()
    if not keep:
        raise SystemExit(f"{data}: there are no images in it")
    key = json.dumps(["decoded 1", source.key, size, sorted(wanted), skip_corrupt])
    path = Path(cache) / f"decoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    vouch = path.with_suffix(".json")  # written last: the numbers of the images that path holds
    if not (os.path.exists(path) and os.path.exists(vouch)):
        kept = []
        write_file(path, lambda f: kept.extend(decode(source, keep, size, skip_corrupt, f, data)))
        write_file(vouch, lambda f: f.write(json.dumps(kept).encode()))
    images = np.load(path, mmap_mode="r")
    with warnings.catch_warnings():  # "not writable": nothing here writes to it
        warnings.simplefilter("ignore")
        images = torch.from_numpy(images)
    return images, torch.from_numpy(labels[json.loads(vouch.read_text())]), list(source.names)


def decode(source, keep, size, skip_corrupt, file, data):
    """Write the images `keep` of `source` to `file` as .npy; the numbers of those written."""

    def load(i):
        try:
            with source.read(i) as image:
                return square(image, size).tobytes()
        except Exception as error:  # on a damaged file Pillow raises nearly anything
            return f"{source.items[i]}: {first_line(error)}"

    def header(n):
        shape = {"descr": "|u1", "fortran_order": False, "shape": (n, 3, size, size)}
        np.lib.format.write_array_header_1_0(file, shape)

    print(f"decoding {data}: {len(keep):,} images", flush=True)
    header(len(keep))
    kept, bad = [], []
    bar = progress(len(keep), "image")
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # here, for the filters are common to all threads
        for start in range(0, len(keep), 1024):  # few are in memory at a time
            part = keep[start : start + 1024]
            for i, pixels in zip(part, pool.map(load, part)):
                if isinstance(pixels, str):
                    bad.append(pixels)
                else:
                    kept.append(i)
                    file.write(pixels)
            bar.update(len(part))
    bar.close()
    if bad and not (skip_corrupt and kept):
        listed = "\n    ".join(bad[:20] + [f"and {len(bad) - 20:,} more"] * (len(bad) > 20))
        advice = "--skip-corrupt leaves them out" if kept else "no image in it can be read"
        raise SystemExit(f"{data}: {len(bad):,} unreadable ({advice}):\n    {listed}")
    if bad:
        print(f"{data}: {len(bad):,} unreadable files left out, {len(kept):,} images read")
    file.seek(0)
    header(len(kept))  # padded to the same length as the first
    return kept


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

USES = {  # the flags that go with each kind of picture
    "walk": {"seeds", "steps", "path", "loop", "fps"},
    "arithmetic": set(),
    "grid": {"steps", "path"},
    "traverse": {"steps", "dims", "basis", "span"},
    "samples": set(),
    "nearest": {"seeds", "k", "cache", "skip_corrupt", "weights"},
}
# fmt: off


def build_parser():
    parser = argparse.ArgumentParser(
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", type=Path,
        help="checkpoint.pt, a snapshot, or a generator's state dict")
    add("--raw", action="store_true",
        help="the raw generator of a checkpoint.pt instead of the averaged one")
    add("--generator", metavar="FILE.py:CLASS",
        help="run FILE and load the state dict into its CLASS, which is called with the "
             "checkpoint's arguments or none, maps latents (B, z_dim) or (B, z_dim, 1, 1) to "
             "images in [-1, 1], and begins with a linear or convolutional layer")
    add("--out", type=Path, metavar="PATH",
        help="where to: .png; for ways also .gif, .webp or (where ffmpeg is installed) .mp4; for "
             "--samples also .npz or a folder (default walk.png, grid.png and so on)")
    add("--device", default="auto", metavar="NAME",
        help="auto, cpu, cuda, cuda:1, mps (default auto: cuda, else mps, else cpu)")
    add("--batch-size", type=positive, default=64, metavar="N",
        help="images made at a time: more is faster on a GPU, and the images are the same "
             "(default 64)")

    kinds = parser.add_argument_group("instead of ways").add_mutually_exclusive_group()
    add = kinds.add_argument
    add("--arithmetic", type=expression, metavar="EXPR",
        help="a sum of seeds such as \"(3,5,8)-17+0.5*(42-43)\": (a, b, ...) is the mean. Shows "
             "terms, result and its neighbourhood (--arithmetic=-3+17 for a leading minus)")
    add("--grid", type=three_seeds, metavar="A,B,C",
        help="the plane through three seeds: A top left, B top right, C bottom left")
    add("--traverse", type=seed, metavar="SEED",
        help="the image of this seed, moved along a latent direction per row")
    add("--samples", type=positive, metavar="N",
        help="the images of seeds 0 to N-1: one picture, one .npz, or a folder of PNGs")
    add("--nearest", metavar="DATA",
        help="beside each sample the images of DATA closest to it, pixel by pixel: a data name "
             "such as cifar10, or the path of a folder, .zip, .npy or .npz")

    add = parser.add_argument_group("how").add_argument
    add("--seeds", type=seed_list, metavar="SEEDS",
        help="seeds and ranges, such as 3,17,42 or 0-5; each two in turn are a way "
             "(default 0-5, with --nearest 0-7)")
    add("--steps", type=positive, metavar="N",
        help="images from end to end, both ends included, 2 or more (default 9, in an animation "
             "30)")
    add("--path", choices=("slerp", "lerp"), default="slerp",
        help="slerp goes along the arc: Gaussian latents lie near a sphere, and the middle of the "
             "straight line, lerp, lies inside it, where G never trained (default slerp)")
    add("--loop", action="store_true",
        help="go back from the last seed to the first")
    add("--fps", type=positive, default=20, metavar="N",
        help="images per second of an animation, 50 at most, where browsers slow a .gif down "
             "(default 20)")
    add("--dims", type=positive, default=5, metavar="N",
        help="directions of --traverse, one per row (default 5)")
    add("--basis", choices=("sefa", "axes"), default="sefa",
        help="directions: sefa, the principal ones of the first layer's response, or axes, the "
             "first entries of z (default sefa)")
    add("--span", type=above_zero, default=4.0, metavar="X",
        help="how far --traverse goes to either side, in standard deviations of the latent "
             "(default 4)")
    add("--k", type=positive, default=7, metavar="N",
        help="neighbours of --nearest beside each sample (default 7)")
    add("--weights", type=Path, metavar="FILE",
        help="--nearest in the features of the Inception network as well: its weights in "
             "pytorch-fid's names, the file that fid.py fetches. A core of a CPU takes a tenth "
             "of a second an image")
    add("--cache", default="data", metavar="DIR",
        help="folder of downloads and decoded images (default data)")
    add("--skip-corrupt", action="store_true",
        help="leave unreadable files out and say how many, instead of stopping")
    return parser


# fmt: on


def parse_args(argv=None):
    """The checked flags; `kind` is a key of USES, and what was not given is filled in."""
    parser = build_parser()
    args = parser.parse_args(argv)
    kinds = [kind for kind in USES if getattr(args, kind, None) is not None]
    args.kind = kinds[0] if kinds else "walk"
    for name in sorted(set().union(*USES.values()) - USES[args.kind]):
        if getattr(args, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} has no effect on " + (f"--{kinds[0]}" if kinds else "ways"))
    args.out = args.out or Path(f"{args.kind}.png")
    suffix = args.out.suffix.lower()
    known = {"walk": ".png .gif .webp .mp4", "samples": ".png .npz"}.get(args.kind, ".png").split()
    if suffix not in known and not (args.kind == "samples" and (not suffix or args.out.is_dir())):
        folder = ", or a folder" * (args.kind == "samples")
        parser.error(f"--out {args.out}: give it one of the suffixes {' '.join(known)}{folder}")
    if suffix == ".mp4" and not shutil.which("ffmpeg"):
        parser.error(f"--out {args.out}: takes ffmpeg on the PATH; .gif and .webp take nothing")
    if suffix == ".webp" and not features.check("webp"):
        parser.error(f"--out {args.out}: this Pillow writes no WebP; take .gif")
    args.seeds = args.seeds or list(range(8 if args.nearest else 6))
    args.steps = args.steps or (9 if suffix == ".png" else 30)
    if args.steps < 2:
        parser.error("--steps 1: a way has two ends; 2 or more")
    if args.kind == "walk" and len(args.seeds) < 2:
        parser.error(f"--seeds {args.seeds[0]}: a way has two ends; name two seeds or more")
    if args.fps > 50:
        parser.error(f"--fps {args.fps}: 50 at most")
    if args.generator and not re.fullmatch(r".+\.py:\w+", args.generator):
        parser.error(f"--generator {args.generator}: is not like path/to/file.py:ClassName")
    return args


def seed(text):
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: a whole number, 0 or more")
    return int(text)


def seed_list(text):
    """Seeds and ranges, last one included: "3,17,40-42" -> [3, 17, 40, 41, 42]."""
    seeds = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not dash:
            last = first
        if not (first.isdecimal() and last.isdecimal() and 0 <= int(last) - int(first) < 1000):
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is not like 3,17,42 or 0-5")
        seeds += range(seed(first), seed(last) + 1)
    return seeds


def three_seeds(text):
    seeds = seed_list(text)
    if len(seeds) != 3:
        raise argparse.ArgumentTypeError(f"a plane takes three seeds, {text!r} has {len(seeds)}")
    return seeds


def expression(text):
    text = " ".join(text.split())
    try:
        parse_arithmetic(text)
    except SyntaxError as error:
        column = error.offset if error.offset and error.offset <= len(text) else len(text) + 1
        fault = f"{error.msg} (seeds are, + and -, (a, b) for a mean, 0.5*a, and parentheses)"
        raise argparse.ArgumentTypeError(f"{fault}\n    {text}\n    {'^':>{column}}")
    return text


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def above_zero(text):
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


# ---- main ----------------------------------------------------------------------------------------


def main(argv=None):
    args = parse_args(argv)
    device, device_name, _ = pick_device(args.device, "fp32")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # its 10 bits would make other images than a CPU
    G, words = load_generator(args.checkpoint, args.raw, args.generator)
    z_dim, _ = first_layer(G)
    G.to(device, memory_format=torch.channels_last)  # as the trainers and fid.py do

    def draw(z):
        return sample(G, z, args.batch_size).expand(-1, 3, -1, -1)

    def draw_seeds(seeds):
        return draw(latents(seeds, z_dim))

    H, W = draw_seeds([0]).shape[2:]
    print(f"{args.checkpoint}: {words}, {W}x{H}, latents of {z_dim}; {device_name}")
    labels, suffix = (), args.out.suffix.lower()
    if args.kind == "samples":
        seeds = range(args.samples)
        if suffix not in (".png", ".npz") or args.out.is_dir():
            made_by = {"generator": words, "weights": fingerprint(G)}
            said = write_folder(args.out, seeds, draw_seeds, args.batch_size, made_by)
            return print(f"{args.out}: {said}")
        if suffix == ".npz":
            write_npz(args.out, seeds, draw_seeds, args.batch_size)
            return print(f"{args.out}: {args.samples:,} images")
        rows = draw_seeds(seeds).split(math.ceil(math.sqrt(args.samples)))
    elif args.kind == "nearest":
        rows, labels = nearest(draw_seeds(args.seeds), args, device)
    elif args.kind == "arithmetic":
        rows, labels, z = arithmetic(args.arithmetic, lambda s: latents([s], z_dim)[0], draw)
        print(f"the result is {z.norm():.1f} long, a draw of N(0, I) about {math.sqrt(z_dim):.1f}")
    else:
        z, labels = {"walk": ways, "grid": grid, "traverse": traverse}[args.kind](args, G, z_dim)
        if suffix != ".png":  # the end of a way is the beginning of the next
            z = torch.cat([*z[:, :-1], z[-1, -1:]])[: -1 if args.loop else None]
            write_animation(args.out, draw(z), args.fps)
            return print(f"{args.out}: {len(z)} images, {len(z) / args.fps:.1f} s")
        rows = draw(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    page = sheet(rows, labels)
    write_file(args.out, lambda file: page.save(file, "PNG"))
    print(f"{args.out}: {page.width} x {page.height} pixels")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
