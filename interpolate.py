# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=2.1", "pillow>=10.1"]
# ///
"""Explore a generator's latent space: interpolation, arithmetic, directions, samples.

A generator G makes an image of a latent z ~ N(0, I). z_k, of seed k, gives the same image on every
device and in any batch, but for a rare pixel one level off.

    interpolation  G(z) for z on the arc from z_a to z_b, at equal angles
    arithmetic     G(mean(z_3, z_5, z_8) - z_17 + z_42)          Radford et al. (arXiv 1511.06434)
    traversal      G(z + s n_i),  n_i the unit vectors n of largest |A n|, A being G's first layer:
                   the leading eigenvectors of AᵀA               Shen and Zhou (arXiv 2007.06600)

Usage
    python interpolate.py runs/dcgan                             a row from each seed to the next
    python interpolate.py runs/dcgan --seeds 3,17,42 --loop --out loop.gif
    python interpolate.py runs/dcgan --arithmetic "(3,5,8)-(17,18,19)+(42,43,44)"
    python interpolate.py runs/dcgan --traverse 3 --dims 5       a row along each direction
    python interpolate.py runs/dcgan --samples 50000 --out fake/      a PNG of each seed
    python interpolate.py CHECKPOINT --class cat                 of a conditional generator
    python interpolate.py CHECKPOINT --between cat dog           from class to class

CHECKPOINT is a run folder, checkpoint or snapshot of dcgan.py, wgan.py or wgan_gp.py, or any file
with a state dict of pytorch/examples' DCGAN generator (netG_epoch_24.pth), of any width and depth,
or of the class in --generator FILE.py:CLASS. No code is run but FILE.

Writes --out (default: a picture in the run folder): enlarged images, an animation, an array of
samples, or a folder of them that can be continued: seed 42's image is 000042.png.
"""

import argparse
import hashlib
import json
import os
import re
import runpy
import sys
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import nn

# ---- Latents -------------------------------------------------------------------------------------


def interpolation(a, b, steps, path="slerp"):
    """Latents (steps, z_dim) from a to b, (z_dim,) each, by "lerp" on a line or "slerp" on the arc
    (Shoemake 1985): angle and length change evenly. Latents lie near a sphere; a line cuts it."""
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    ends = torch.stack([a, b]).double()
    if path == "lerp":
        return torch.lerp(*ends, t).to(a.dtype)
    u, v = nn.functional.normalize(ends)  # of length 1
    across = v - (v @ u) * u  # the part of v orthogonal to u
    angle = torch.atan2(across.norm(), v @ u)
    across = nn.functional.normalize(across, dim=0)
    units = torch.cos(t * angle) * u + torch.sin(t * angle) * across
    lengths = torch.lerp(ends[0].norm(), ends[1].norm(), t)
    return (units * lengths).to(a.dtype)


def principal_directions(G, z_dim):
    """Unit latents (z_dim, z_dim), one a row; the first changes the first layer's output most."""
    A = first_layer(G)[:, :z_dim]
    directions = torch.linalg.eigh(A.T @ A).eigenvectors.T.flip(0)  # eigh begins with the smallest
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return (directions * largest.sign()).float()  # the sign is free: largest entry positive


def first_layer(G):
    """The matrix (outputs, inputs), float64, of the layer that a latent enters first."""
    for layer in G.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1  # of the inputs
            return layer.weight.cpu().double().movedim(axis, 0).flatten(1).T
    raise ValueError("it has no linear or convolutional layer for a latent to enter")


def latent_rows(args, G, z_dim, names):
    """Yield the latents (columns, z_dim) of each row, and their labels."""
    middle = [""] * (args.steps - 2)  # labels of the images between the ends
    if args.samples:
        for seed, name in zip(range(args.samples), cycle(names)):
            yield latents([seed], z_dim), [name]
    elif args.kind == "traverse":
        z = latents([args.traverse], z_dim)
        distances = torch.linspace(-4, 4, args.steps)[:, None]
        for i, direction in enumerate(principal_directions(G, z_dim)[: args.dims], 1):
            yield z + distances * direction, [f"direction {i}: -4", *middle, "+4"]
    elif args.kind == "between":
        for seed in args.seeds:
            z = latents([seed], z_dim).expand(args.steps, -1)
            yield z, [f"seed {seed} {names[0]}", *middle, names[1]]
    else:
        for (a, b), name in zip(pairwise(args.seeds), cycle(names)):
            z = interpolation(*latents([a, b], z_dim), args.steps, args.path)
            yield z, [f"seed {a} {name}", *middle, f"seed {b}"]


def arithmetic(terms, z_dim):
    """Latents (rows, columns, z_dim), and labels (None: no image): a column per term, the seeds of
    a mean above it, then the result amid 8 others, uniform in +-0.25 (Radford et al., fig. 7)."""
    rows = 2 + max(len(seeds) for _, _, seeds, _ in terms)  # seeds, their mean, a row below it
    z = torch.zeros(rows, len(terms) + 3, z_dim)
    labels = np.full(z.shape[:2], None)
    result = torch.zeros(z_dim)
    for column, (sign, factor, seeds, label) in enumerate(terms):
        parts = latents(seeds, z_dim)
        mean = factor * parts.mean(0)
        result += sign * mean
        z[-2, column], labels[-2, column] = mean, label
        if len(seeds) > 1:
            above = slice(-2 - len(seeds), -2)
            z[above, column], labels[above, column] = parts, [str(seed) for seed in seeds]
    noise = torch.rand(9, z_dim, generator=torch.Generator().manual_seed(0)) / 2 - 0.25
    noise[4] = 0  # the result itself
    z[-3:, -3:] = (result + noise).view(3, 3, z_dim)
    labels[-3:, -3:] = ""
    labels[-2, -2] = "= result"
    return z, labels


def make_inputs(args, G, z_dim, names, onehots):
    """Inputs of G (rows * columns, z_dim + classes), and labels (rows, columns)."""
    if args.kind == "arithmetic":
        z, labels = arithmetic(args.arithmetic, z_dim)
    else:
        rows, labels = zip(*latent_rows(args, G, z_dim, names))
        z = torch.stack(rows)
    y = onehots[torch.arange(len(z)) % len(onehots)][:, None]  # a class per row, by turns
    if args.kind == "between":  # (steps, classes) instead of (rows, 1, classes)
        y = torch.lerp(onehots[0], onehots[1], torch.linspace(0, 1, args.steps)[:, None])
    return torch.cat([z, y.expand(*z.shape[:2], -1)], 2).flatten(0, 1), labels


# ---- Files ---------------------------------------------------------------------------------------


def enlarge(image, scale=1):
    """A PIL image of uint8 (1 or 3, H, W), each pixel scale x scale large."""
    image = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    return ImageOps.scale(image, scale, Image.Resampling.NEAREST)


def write_picture(path, images, labels):
    """Write rows of images, uint8 (columns, 1 or 3, H, W), below labels, enlarged up to 128 px."""
    columns, _, H, W = images[0].shape
    scale = max(1, min(128 // max(H, W), 2400 // (columns * W)))  # at most 2,400 px wide
    gap = 4
    line = 17 if any(map(any, labels)) else 0  # px for a label above each image, if any has one
    width, height = W * scale + gap, line + H * scale + gap
    grid = Image.new("RGB", (gap + columns * width, gap + len(images) * height), "white")
    font, draw = ImageFont.load_default(13), ImageDraw.Draw(grid)
    for top, row, texts in zip(range(gap, grid.height, height), images, labels):
        for left, image, text in zip(range(gap, grid.width, width), row, texts):
            if text is not None:
                grid.paste(enlarge(image, scale), (left, top + line))
                while font.getlength(text) > W * scale:
                    text = text[:-1]
                draw.text((left, top - 1), text, "black", font)
    with atomic(path) as file:
        grid.save(file, "PNG")


def write_animation(path, images, fps):
    """Write images, uint8 (N, 1 or 3, H, W), as an endless .gif or .webp, about 256 px large."""
    scale = max(1, 256 // max(images.shape[2:]))
    frames = [enlarge(image, scale) for image in images]
    times = [round(100 * i / min(fps, 50)) * 10 for i in range(len(frames) + 1)]  # ms, tens for GIF
    durations = np.diff(times).tolist()
    options = {"save_all": True, "append_images": frames[1:], "loop": 0, "lossless": True}
    with atomic(path) as file:
        frames[0].save(file, path.suffix[1:], duration=durations, **options)


def write_folder(folder, G, x, batch_size, names):
    """Write G's images of inputs x (N, z_dim + classes) as PNGs, those that are not there yet."""
    weights = [weight.cpu().double().flatten() for weight in G.state_dict().values()]
    content = torch.cat(weights).numpy().tobytes() + "".join(names).encode()
    digest = hashlib.sha256(content).hexdigest()  # of generator and classes, for samples.json
    paths = [folder / f"{seed:06}.png" for seed in range(len(x))]
    with one_line(f"--out {folder}: not a folder of these {len(x):,} samples; name another"):
        there = set(folder.glob("[!.]*"))
        if there and digest not in (folder / "samples.json").read_text():
            raise ValueError("they are of another generator")
        others = set(folder.glob("[!.]*.png")).difference(paths)
        if others:
            raise ValueError(f"it holds {min(others).name}")
    with atomic(folder / "samples.json", "w") as file:
        json.dump({"sha256": digest}, file)

    def write(seed, image):
        with atomic(paths[seed]) as file:
            enlarge(image).save(file, "PNG")

    todo = [seed for seed, path in enumerate(paths) if path not in there]
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(todo), batch_size):
            seeds = todo[start : start + batch_size]
            list(pool.map(write, seeds, sample(G, x[seeds], batch_size)))  # list() raises errors
    print(f"{folder}: {len(x):,} images ({len(x) - len(todo):,} were there)")


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


# ---- Sampling and files (same in all scripts that have them) -------------------------------------


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


# ---- Options -------------------------------------------------------------------------------------


def expression(text):
    """The terms (sign, factor, seeds, label) of a sum such as "(3,5,8)-17+0.5*42"."""
    terms, rest = [], text.strip()
    if not rest.startswith(("+", "-")):
        rest = f"+{rest}"
    while rest:  # it begins with a sign, perhaps a factor, and a seed or seeds in parentheses
        match = re.match(r"([+-])\s*((?:(\d{1,3}(?:\.\d*)?)\*)?(\d+|\([\d,\s]+\)))\s*", rest)
        if not match:
            raise argparse.ArgumentTypeError(f"{rest!r} is not a sum such as (3,5)-17+0.5*42")
        sign, term, factor, seeds = match.groups()
        seeds = seed_list(seeds.strip("()"))
        terms.append((-1 if sign == "-" else 1, float(factor or 1), seeds, f"{sign} {term}"))
        rest = rest[match.end() :]
    return terms


def seed_list(text):
    """Seeds and ranges, last one included: "3,17,40-42" -> [3, 17, 40, 41, 42]."""
    seeds = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else []
        if not 0 < len(numbers) <= 1000:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 3,17,40-42")
        seeds += numbers
    return seeds


# fmt: off
def build_parser():
    parser = argparse.ArgumentParser(prog="interpolate.py", allow_abbrev=False,
        usage="%(prog)s CHECKPOINT [flags]; --help lists them",
        description="Explore a generator's latent space, by default on the way from each of six "
        "seeds to the next. The manual page is the docstring of the file.")
    add = parser.add_argument_group("generator").add_argument
    add("checkpoint", metavar="CHECKPOINT", type=Path, help="run folder, checkpoint or snapshot")
    add("--raw", action="store_true", help="raw generator of a checkpoint, not its average")
    add("--key", help="which state dict of the file, where several fit")
    add("--generator", metavar="FILE.py:CLASS", help="class in FILE, which is run: from (B, z_dim) "
        "or (B, z_dim, 1, 1) to images in [-1, 1], called with a trainer's arguments or none")
    add("--class", dest="classes", nargs="+", metavar="NAME", help="classes by turns (default all)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 or mps (default auto)")
    add("--batch-size", type=int, default=64, help="images made at a time (default 64)")
    group = parser.add_argument_group("instead of an interpolation")
    add = group.add_mutually_exclusive_group().add_argument
    add("--between", nargs=2, metavar="NAME", help="from class to class, a seed per row")
    add("--arithmetic", type=expression, metavar="SUM", help='seeds and means: "(3,5)-17+0.5*42"')
    add("--traverse", type=int, metavar="SEED", help="a seed along the directions that move G most")
    add("--samples", type=int, metavar="N", help="images of seeds 0 to N-1")
    add = parser.add_argument_group("picture").add_argument
    add("--seeds", type=seed_list, help="seeds to go through, such as 3,17,40-42 (default 0-5)")
    add("--steps", type=int, help="images in a row (default 9, in an animation 30)")
    add("--path", choices=("slerp", "lerp"), default="slerp", help="arc or line (default slerp)")
    add("--loop", action="store_true", help="last row leads back to the first seed")
    add("--fps", type=int, default=20, help="images per second, at most 50 (default 20)")
    add("--dims", type=int, default=5, help="number of directions of --traverse (default 5)")
    add("--out", type=Path, help=".png, .gif or .webp; with --samples .png, .npz or a folder "
        "(default: a .png in the run folder)")
    return parser
# fmt: on


def parse_args(argv=None):
    """The checked flags, the kind of picture, and the format of --out."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.kind = "interpolation"
    for kind in ("between", "arithmetic", "traverse", "samples"):
        if getattr(args, kind) is not None:
            args.kind = kind
    for name, value in vars(args).items():
        if type(value) is int and value < 1 and name != "traverse":
            parser.error(f"--{name.replace('_', '-')} {value}: must be above 0")
    used_by = {"seeds": ["interpolation", "between"], "dims": ["traverse"]}
    used_by |= {"loop": ["interpolation"], "path": ["interpolation"]}
    for name, kinds in used_by.items():
        if getattr(args, name) != parser.get_default(name) and args.kind not in kinds:
            parser.error(f"--{name}: is for {' and '.join(kinds)}, not for {args.kind}")
    args.seeds = args.seeds or list(range(6))
    if args.loop:
        args.seeds.append(args.seeds[0])
    if args.kind == "interpolation" and len(args.seeds) < 2:
        parser.error("--seeds: takes two or more")
    args.checkpoint = args.checkpoint.expanduser()
    run = args.checkpoint
    if not os.path.isdir(run):
        run = run.parent
    if run.name == "snapshots":
        run = run.parent
    if args.out is None:
        args.out = run / f"{args.kind}.png"
    args.out = args.out.expanduser()
    args.format = args.out.suffix.lower()
    formats = {"arithmetic": [".png"], "samples": [".png", ".npz", "a folder"]}
    allowed = formats.get(args.kind, [".png", ".gif", ".webp"])
    if args.samples and (not args.format or os.path.isdir(args.out)):
        args.format = "a folder"
    if args.format not in allowed:
        parser.error(f"--out {args.out}: takes {', '.join(allowed)}")
    if args.steps is None:
        args.steps = 9 if args.format == ".png" else 30
    return args


# ---- main ----------------------------------------------------------------------------------------


def import_generator(file_and_class, checkpoint):
    """`first` and `build`, for load_generator, of the class in "FILE.py:CLASS". Runs FILE."""
    file, _, name = os.path.expanduser(file_and_class).rpartition(":")
    tree = read_weights(checkpoint)
    options = tree["generator"] if "script" in tree else {}  # of a trainer's Generator
    del sys.argv[1:]  # the flags, which FILE might parse as its own
    sys.path.insert(0, str(Path(file).resolve().parent))  # for modules beside it
    cls = runpy.run_path(file)[name]

    def build(state):
        G = cls(**options).eval()
        inputs = first_layer(G).shape[1]
        try:
            G(torch.zeros(2, inputs))
        except Exception:  # it takes (B, z_dim, 1, 1), as in pytorch/examples
            G.register_forward_pre_hook(lambda module, args: args[0][:, :, None, None])
        return G, inputs

    return next(iter(cls(**options).state_dict())), build


def choose_classes(args, names):
    """The names of the classes to show by turns, and their onehots (turns, classes)."""
    chosen = args.between or args.classes or names
    if args.kind in ("arithmetic", "traverse"):
        chosen = chosen[:1]
    with one_line(f"{args.checkpoint}: its classes are {', '.join(names) or 'none'}"):
        onehots = torch.eye(len(names))[[names.index(name) for name in chosen]]
    if not names:
        return [""], torch.zeros(1, 0)  # one class, without a name or inputs
    print(f"classes: {', '.join(chosen)}")
    return chosen, onehots


def main(argv=None):
    args = parse_args(argv)
    device = find_device(args.device)
    network = ()  # first and build, of --generator
    if args.generator:
        with one_line(f"--generator {args.generator}: not loaded; takes FILE.py:CLASS"):
            network = import_generator(args.generator, args.checkpoint)
    G, info = load_generator(args.checkpoint, args.raw, args.key, *network)
    print(f"{args.checkpoint}: {info['weights']}, latents of {info['z_dim']}; {device}")
    if device.type != "mps" and not args.generator:
        G.to(memory_format=torch.channels_last)  # 2.5 times faster at 256x256
    G.to(device)
    names, onehots = choose_classes(args, info["classes"])
    with one_line(f"{args.out}: not written; if memory is short, try a smaller --batch-size"):
        x, labels = make_inputs(args, G, info["z_dim"], names, onehots)
        if args.format == "a folder":
            write_folder(args.out, G, x, args.batch_size, names)
            return
        columns = len(x) // len(labels)
        if args.samples:
            columns = int(np.ceil(args.samples**0.5))
            labels = np.resize(names, (columns, columns))
        if args.format in (".gif", ".webp"):
            x = torch.unique_consecutive(x, dim=0)  # a row may begin where the one before ends
            if len(x) > 1 and torch.equal(x[0], x[-1]):  # a loop ends as it begins
                x = x[:-1]
        images = sample(G, x, args.batch_size)
        if args.format == ".png":
            write_picture(args.out, images.split(columns), labels)
        elif args.format == ".npz":
            arrays = {"images": images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()}
            if info["classes"]:
                arrays["labels"] = np.resize(onehots.argmax(1), len(x))
            with atomic(args.out) as file:
                np.savez(file, **arrays)
        else:
            write_animation(args.out, images, args.fps)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # of `| head`
        os._exit(1)
