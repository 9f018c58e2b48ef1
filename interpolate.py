# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=2", "pillow>=10.1"]
# ///
"""Explore a generator's latent space: interpolation, arithmetic, planes, directions, samples.

A generator G makes an image of a latent z ~ N(0, I). z_k, of seed k, gives the same image on every
device, in any batch and in cell k of a trainer's grids, but for a rare pixel one level off.

    interpolation  G(z) for z on the arc from z_a to z_b, at equal angles
    arithmetic     G(mean(z_3, z_5, z_8) - z_17 + z_42)          Radford et al. (arXiv 1511.06434)
    plane          G(z_a + u (z_b - z_a) + v (z_c - z_a)),  at lengths between the seeds' own
    traversal      G(z + s n_i),  n_i the unit n that moves A n most, A being G's first layer:
                   the leading eigenvectors of A'A               Shen and Zhou (arXiv 2007.06600)

Usage
    python interpolate.py runs/dcgan/checkpoint.pt                    a row per pair of seeds
    python interpolate.py runs/dcgan/checkpoint.pt --seeds 3,17,42 --loop --out loop.gif
    python interpolate.py CHECKPOINT --arithmetic "(3,5,8)-(17,18,19)+(42,43,44)"
    python interpolate.py CHECKPOINT --grid 3,17,42                   the plane through three seeds
    python interpolate.py CHECKPOINT --traverse 3 --dims 5            a direction per row
    python interpolate.py CHECKPOINT --samples 64                     an image grid
    python interpolate.py CHECKPOINT --samples 50000 --out fake/      PNGs; fake.npz: one array
    python interpolate.py CHECKPOINT --class cat                      of a conditional generator
    python interpolate.py CHECKPOINT --between cat dog                from class to class

CHECKPOINT is a checkpoint.pt or a snapshot of dcgan.py, wgan.py or wgan_gp.py, or a file that holds
the state dict of pytorch/examples' DCGAN generator (netG_epoch_24.pth), of any width, depth and 1
or 3 colours, or of the class in --generator FILE.py:CLASS. No code is run but FILE.

Writes --out: a picture of enlarged images, an animation, an .npz or a folder, where 000042.png is
seed 42's, only missing images are made, and samples.json tells another generator's apart.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import runpy
import sys
import time
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, pairwise, zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn.functional import normalize

# ---- Latents -------------------------------------------------------------------------------------


def interpolation(a, b, steps, path="slerp"):
    """Latents (steps, z_dim) from a to b.

    "lerp" is the straight line. "slerp" is the arc (Shoemake 1985): angle and length change evenly.
    N(0, I) lies near a sphere, and the middle of a line has 0.71 of the length of a sample.
    """
    t, x, y = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None], a.double(), b.double()
    z = torch.lerp(x, y, t)
    if path == "slerp":
        u, v = normalize(torch.stack([x, y]), eps=1e-300)
        across = v - (v @ u) * u
        angle = torch.atan2(across.norm(), v @ u)
        z = torch.cos(t * angle) * u + torch.sin(t * angle) * normalize(across, dim=0, eps=1e-300)
        z *= torch.lerp(x.norm(), y.norm(), t)
    return z.to(a.dtype)


def plane(a, b, c, steps, path="slerp"):
    """Latents (steps, steps, z_dim): a top left, b top right, c bottom left, then b + c - a."""
    t = torch.linspace(0, 1, steps, dtype=torch.float64)
    v, u = torch.meshgrid(t, t, indexing="ij")
    w, corners = torch.stack([1 - u - v, u, v], -1), torch.stack([a, b, c]).double()
    z = w @ corners
    if path == "slerp":  # the lengths lie in a plane too
        z = normalize(z, dim=-1, eps=1e-300) * (w @ corners.norm(dim=1, keepdim=True)).clamp_min(0)
    return z.to(a.dtype)


def principal_directions(G, z_dim=None):
    """Unit latents (z_dim, z_dim), from the one that moves the output of G's first layer most."""
    A = first_layer(G)[1][:, :z_dim]
    directions = torch.linalg.eigh(A.T @ A).eigenvectors.T.flip(0)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return (directions * largest.sign()).float()  # an eigenvector's sign is free


def class_codes(args, names):
    """The classes asked for and their one-hot codes (k, classes): none, and (1, 0), without any."""
    asked = args.between or args.classes or names
    if unknown := " ".join(name for name in asked if name not in names):
        known = f"has {', '.join(names)}" if names else "was trained without --conditional"
        raise SystemExit(f"class {unknown}: {args.checkpoint} {known}")
    return asked, torch.eye(len(names) or 1)[[names.index(n) for n in asked] or [0], : len(names)]


def latent_rows(args, G, z_dim, names, codes):
    """Rows of (columns, z_dim + classes) for G, and of labels; not for arithmetic and samples."""
    blank, turns = [""] * (args.steps - 2), codes[:1, None]
    if args.between:
        turns = torch.lerp(*codes[:, None], torch.linspace(0, 1, args.steps)[:, None])[None]
        z = latents(args.seeds, z_dim)[:, None].expand(-1, args.steps, -1)
        labels = [[f"{names[0]}, seed {seed}", *blank, names[1]] for seed in args.seeds]
    elif args.kind == "interpolation":
        pairs, turns = list(pairwise(args.seeds + args.seeds[:1] * args.loop)), codes[:, None]
        z = [interpolation(*latents(pair, z_dim), args.steps, args.path) for pair in pairs]
        turn = cycle([f"{name}, " for name in names] or [""])
        labels = [[f"{next(turn)}seed {a}", *blank, f"seed {b}"] for a, b in pairs]
    elif args.kind == "grid":
        z = plane(*latents(args.grid, z_dim), args.steps, args.path)
        labels = [["", *blank, ""] for _ in range(args.steps)]
        labels[0][0], labels[0][-1], labels[-1][0] = (f"seed {seed}" for seed in args.grid)
    else:
        if args.dims > z_dim:
            raise SystemExit(f"--dims {args.dims}: the latents have {z_dim}")
        directions = torch.eye(z_dim) if args.basis == "axes" else principal_directions(G, z_dim)
        s = torch.linspace(-args.span, args.span, args.steps)
        z = latents(args.traverse, z_dim) + s[:, None] * directions[: args.dims, None]
        first, *others = (f"{x:+.1f}" for x in s.tolist())
        labels = [[f"{i}:  {first}", *others] for i in range(1, args.dims + 1)]
    return [torch.cat([row, c.expand(len(row), -1)], 1) for row, c in zip(z, cycle(turns))], labels


# ---- Arithmetic ----------------------------------------------------------------------------------


def terms(node, sign=1):
    """The signs and syntax trees of the top-level terms of a sum, from left to right."""
    match node:
        case ast.BinOp(left=a, op=ast.Add() | ast.Sub() as op, right=b):
            return terms(a, sign) + terms(b, sign if isinstance(op, ast.Add) else -sign)
        case ast.UnaryOp(op=ast.USub(), operand=a):
            return terms(a, -sign)
    return [(sign, node)]


def evaluate(node, latent):
    """The latent that a syntax tree stands for, with latent(seed) for each seed."""
    match node:
        case ast.Constant(value=int() as seed) if type(seed) is int and seed < 2**63:
            return latent(seed)
        case ast.Tuple(elts=[_, *_] as parts):
            return torch.stack([evaluate(part, latent) for part in parts]).mean(0)
        case ast.BinOp(op=ast.Add() | ast.Sub()) | ast.UnaryOp(op=ast.USub()):
            return sum(sign * evaluate(term, latent) for sign, term in terms(node))
        case ast.BinOp(ast.Constant(int() | float() as x), ast.Mult(), b) if abs(x) <= 1000:
            return x * evaluate(b, latent)
    raise SyntaxError("not understood", ("", 1, node.col_offset + 1, ""))


def expression(text):
    """A checked expression in Python's syntax, never run; errors have a caret under the fault."""
    text = " ".join(text.split())
    try:
        evaluate(ast.parse(text, mode="eval").body, lambda seed: torch.zeros(1))
    except (RecursionError, MemoryError):
        raise argparse.ArgumentTypeError("too deeply nested")
    except SyntaxError as error:
        column = error.offset if error.offset and error.offset <= len(text) else len(text) + 1
        known = "seeds, + and -, (a, b) for a mean, 0.5*a with factors up to 1000, and parentheses"
        raise argparse.ArgumentTypeError(f"{error.msg} ({known})\n    {text}\n    {'^':>{column}}")
    return text


def arithmetic(text, latent, generate):
    """Rows and labels of an expression's picture, and its latent. A column per term, a mean below
    what it is of; then the result and, +-0.25 away, eight neighbours (Radford et al., figure 7)."""
    tree, columns, blank = ast.parse(text, mode="eval").body, [], (None, "")
    for sign, node in terms(tree):
        parts = node.elts if isinstance(node, ast.Tuple) and len(node.elts) > 1 else []
        nodes = [node, *reversed(parts)]  # from the bottom up, like each column
        names = [ast.get_source_segment(text, part).replace(" ", "") for part in nodes]
        names[0] = f"{'+' if sign > 0 else '-'} {names[0]}"
        images = generate(torch.stack([evaluate(part, latent) for part in nodes]))
        columns.append([blank, *zip(images, names)])
    result = evaluate(tree, latent)
    noise = torch.rand(9, len(result), generator=torch.Generator().manual_seed(0)) / 2 - 0.25
    noise[4] = 0
    images = generate(result + noise)
    for i, label in enumerate(("", "= result", "")):
        columns.append([*zip(images[[6 + i, 3 + i, i]], ("", label, ""))])
    rows, labels = zip(*(zip(*row) for row in [*zip_longest(*columns, fillvalue=blank)][::-1]))
    return rows, labels, result


# ---- Pictures and samples ------------------------------------------------------------------------


def labelled_grid(rows, labels):
    """A picture of rows of images, uint8 (3, H, W) or None, below labels, at up to 128 pixels."""
    H, W = next(image for row in rows for image in row if image is not None).shape[1:]
    columns, gap, line, top = max(map(len, rows)), 4, 17, 4
    scale = max(1, min(128 // max(H, W), 2400 // (columns * W)))
    font = ImageFont.load_default(13)
    heights = [H * scale + gap + line * any(texts) for texts in labels]
    page = Image.new("RGB", (gap + columns * (W * scale + gap), gap + sum(heights)), "white")
    for row, texts, height in zip(rows, labels, heights):
        top += height
        for i, (image, text) in enumerate(zip(row, texts)):
            left = gap + i * (W * scale + gap)
            if image is not None:
                page.paste(enlarge(image, scale), (left, top - gap - H * scale))
            while font.getlength(text) > W * scale:
                text = f"{text[:-4]}..." if len(text) > 3 else ""
            ImageDraw.Draw(page).text((left, top - height - 1), text, "black", font)
    return page


def enlarge(image, scale):
    """A PIL image of uint8 (3, H, W), each pixel scale x scale large."""
    return Image.fromarray(np.asarray(image).transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1))


def write_animation(path, images, fps):
    """Write images uint8 (N, 3, H, W) as an endless .gif or .webp, about 256 pixels large."""
    frames = [enlarge(image, max(1, 256 // max(images.shape[2:]))) for image in images]
    ends = [round(i * 100 / fps) * 10 for i in range(len(frames) + 1)]  # ms; a .gif counts in 10 ms
    options = {"save_all": True, "append_images": frames[1:], "loop": 0, "lossless": True}
    options |= {"duration": [b - a for a, b in pairwise(ends)], "format": path.suffix[1:].upper()}
    atomic_write(path, lambda file: frames[0].save(file, **options))


def write_folder(folder, n, batches, made_by):
    """Write the images of seeds 0 to n - 1 as PNGs, those alone that are not there already."""
    manifest, names = folder / "samples.json", [f"{seed:06}.png" for seed in range(n)]
    try:
        there = {n for n in os.listdir(folder) if n[0] != "."} if folder.exists() else set()
        same = not there or json.loads(manifest.read_bytes())["sha256"] == made_by["sha256"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SystemExit(f"--out {folder}: is no folder of samples ({first_line(error)})")
    others = {Path(name).suffix.lower() for name in there - {*names}}
    if not same or others & Image.registered_extensions().keys():
        raise SystemExit(f"--out {folder}: has other images than these {n:,}; name another folder")
    atomic_write(manifest, lambda file: file.write(json.dumps(made_by, indent=2).encode()))

    def save(seed, image):
        atomic_write(folder / names[seed], lambda file: enlarge(image, 1).save(file, "PNG"))

    for left in folder.glob(".*.tmp"):  # by a process that was killed
        left.unlink()
    todo, written = [seed for seed in range(n) if names[seed] not in there], ()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for seeds, images in batches(todo):  # made while threads write those before them
            list(written)  # waits for them, and raises what they raised
            written = pool.map(save, seeds, images)
        list(written)
    say(f"{folder}: {n:,} images" + f" ({n - len(todo):,} were there)" * bool(there))


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


# ---- Sampling and files (same in all scripts that have them) -------------------------------------


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


def find_device(name):
    """The torch.device of a name; auto is cuda where there is one, then mps, then cpu."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {name}: cannot be used here ({first_line(error)})")


def say(text):
    """print, which a closed pipe does not bring to an end."""
    try:
        print(text, flush=True)
    except OSError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


# ---- Options -------------------------------------------------------------------------------------
# fmt: off


def build_parser():
    parser = argparse.ArgumentParser(prog="interpolate.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", type=Path, help="file of a generator, or a run folder")
    add("--raw", action="store_true", help="the raw generator of a checkpoint.pt, not its EMA")
    add("--key", metavar="NAME", help="which state dict of the file, where several fit")
    add("--generator", metavar="FILE.py:CLASS",
        help="run FILE and load the state dict into its CLASS, which is called with the trainer's "
             "arguments or none and maps (B, z_dim) or (B, z_dim, 1, 1) to images in [-1, 1]")
    pick = parser.add_mutually_exclusive_group().add_argument
    pick("--class", dest="classes", nargs="+", metavar="NAME",
        help="of a conditional generator: by turns, or the first where one will do (default all)")
    add("--out", type=Path, metavar="PATH",
        help=".png; interpolation also .gif, .webp; --samples also .npz, folder (default KIND.png)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps")
    add("--batch-size", type=int, default=64, metavar="N", help="images made at a time")
    kind = parser.add_mutually_exclusive_group().add_argument
    kind("--arithmetic", type=expression, metavar="EXPR", help='a sum like "(3,5)-17+0.5*(42-43)"')
    kind("--grid", type=seed_list, metavar="A,B,C", help="the plane through three seeds")
    kind("--traverse", type=seed_list, metavar="SEED", help="move along a direction per row")
    kind("--samples", type=int, metavar="N", help="the images of seeds 0 to N-1")
    add("--seeds", type=seed_list, default=[*range(6)], help="such as 3,17,42 or 0-5 (default 0-5)")
    pick("--between", nargs=2, metavar="NAME", help="from one class to another, a seed per row")
    add("--steps", type=int, help="images from end to end (default 9, in an animation 30)")
    add("--path", choices=("slerp", "lerp"), default="slerp", help="the arc, or the straight line")
    add("--loop", action="store_true", help="go back from the last seed to the first")
    add("--fps", type=int, default=20, help="images per second of an animation")
    add("--dims", type=int, default=5, help="directions of --traverse, one per row")
    add("--basis", choices=("sefa", "axes"), default="sefa", help="what moves G most, or z's axes")
    add("--span", type=float, default=4.0, help="--traverse goes from -SPAN to SPAN")
    for action in parser._actions:
        if type(action.default) in (str, int, float) and action.default != argparse.SUPPRESS:
            action.help += " (default %(default)s)"
    return parser


# fmt: on
def parse_args(argv=None):
    """The checked flags; `kind` is what to make, and `folder` whether --out is one."""
    parser = build_parser()
    args = parser.parse_args(argv)
    uses = {"arithmetic": "", "grid": "steps path", "traverse": "steps dims basis span"}
    uses |= {"samples": "", "interpolation": "seeds between steps path loop fps"}
    args.kind = next((k for k in uses if getattr(args, k, None) is not None), "interpolation")
    for flag in " ".join(uses.values()).split():
        if flag not in uses[args.kind].split() and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--{flag}: has no effect on {args.kind}")
    args.out = args.out or Path(f"{args.kind}.png")
    suffix = args.out.suffix.lower()
    known = {"interpolation": ".png .gif .webp", "samples": ".png .npz"}.get(args.kind, ".png")
    args.folder = args.kind == "samples" and (not suffix or os.path.isdir(args.out))
    if suffix not in known.split() and not args.folder:
        parser.error(f"--out {args.out}: takes {known}" + ", or a folder" * bool(args.samples))
    args.steps = (9 if suffix == ".png" else 30) if args.steps is None else args.steps
    ranges = {"seeds": (1 if args.between else 2, 1000), "grid": (3, 3), "traverse": (1, 1)}
    ranges |= {"steps": (2, 1000), "fps": (1, 50), "dims": (1, 1000), "span": (0.001, 1000)}
    ranges |= {"samples": (1, 10**7), "batch_size": (1, 10**5)}
    for name, (low, high) in ranges.items():
        value = getattr(args, name)
        n, seeds = (len(value), " seeds") if isinstance(value, list) else (value, "")
        if n is not None and not low <= n <= high:
            bounds = f"{low:,} to {high:,}" if low < high else low
            parser.error(f"--{name.replace('_', '-')}: takes {bounds}{seeds}, not {n}")
    if args.generator and not re.fullmatch(r".+\.py:\w+", args.generator):
        parser.error(f"--generator {args.generator}: is not like path/to/file.py:ClassName")
    return args


def seed_list(text):
    """Seeds and ranges, last one included: "3,17,40-42" -> [3, 17, 40, 41, 42]."""
    parts = [re.fullmatch(r" *(\d{1,18})(?:-(\d{1,18}))? *", x, re.A) for x in text.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if not all(parts) or not all(0 < len(seeds) <= 1000 for seeds in ranges):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 3,17,42 or 0-5")
    return [seed for seeds in ranges for seed in seeds]


# ---- main ----------------------------------------------------------------------------------------


def import_generator(code):
    """The build(state, options) of the class in "FILE.py:CLASS" for load_generator. Runs FILE."""
    file, name = code.rsplit(":", 1)
    say(f"--generator: running the code of {file}")
    argv, sys.argv = sys.argv, [file]  # the flags are not for that file
    sys.path.insert(0, str(Path(file).resolve().parent))  # for modules beside it
    try:
        cls = runpy.run_path(file)[name]
    except (Exception, SystemExit) as error:
        raise SystemExit(f"--generator {code}: {type(error).__name__} ({first_line(error)})")
    finally:
        sys.argv = argv

    def build(state, options):
        G = cls(**options)
        G.load_state_dict(state)
        return G

    return build


def main(argv=None):
    args = parse_args(argv)
    device = find_device(args.device)
    build = import_generator(args.generator) if args.generator else from_shapes
    G, info = load_generator(args.checkpoint, args.raw, args.key, build)
    z_dim, out, suffix = info["z_dim"], args.out, args.out.suffix.lower()
    fast = device.type != "mps" and not args.generator  # whose layers may be of any kind
    G.to(device, memory_format=torch.channels_last if fast else torch.preserve_format)
    say(f"{args.checkpoint}: {info['weights']}, latents of {z_dim}; {device}")
    names, codes = class_codes(args, info["classes"])

    def generate(*parts):  # latents, and codes of classes beside them
        return sample(G, torch.cat(parts, 1), args.batch_size).expand(-1, 3, -1, -1)

    def batches(seeds):
        for start in range(0, len(seeds), args.batch_size):
            part = seeds[start : start + args.batch_size]
            turns = [seed % len(codes) for seed in part]
            yield part, generate(latents(part, z_dim), codes[turns])
            if sys.stderr.isatty():
                print(f"\r{start + len(part):,} of {len(seeds):,} ", end="", file=sys.stderr)

    if args.folder:
        content = [w.cpu().double().numpy().tobytes() for w in G.state_dict().values()]
        digest = hashlib.sha256(b"".join(content + [name.encode() for name in names])).hexdigest()
        made_by = {"generator": info["weights"], "classes": names, "sha256": digest}
        return write_folder(out, args.samples, batches, made_by)
    if suffix == ".npz":
        parts = (part.permute(0, 2, 3, 1) for _, part in batches(range(args.samples)))
        arrays = {"images": torch.cat([*parts]).numpy()}
        arrays |= {"labels": np.arange(args.samples) % len(names)} if names else {}
        atomic_write(out, lambda file: np.savez(file, **arrays))
        return say(f"{out}: {args.samples:,} images")
    if args.kind == "arithmetic":
        one, make = lambda i: latents([i], z_dim)[0], lambda z: generate(z, codes[[0] * len(z)])
        rows, labels, z = arithmetic(args.arithmetic, one, make)
        say(f"the result has length {z.norm():.1f}, a sample of N(0, I) about {z_dim**0.5:.1f}")
    elif args.kind == "samples":
        columns = int(np.ceil(args.samples**0.5))
        rows = torch.cat([part for _, part in batches(range(args.samples))]).split(columns)
        texts = cycle(names or [""])
        labels = [[next(texts) for _ in row] for row in rows]
    else:
        z, labels = latent_rows(args, G, z_dim, names, codes)
        if suffix != ".png":  # without the last of a row, where the next one begins with it
            pairs = zip_longest(z, [*z[1:], *z[: args.loop]])
            z = torch.cat([a if b is None or any(a[-1] != b[0]) else a[:-1] for a, b in pairs])
            write_animation(out, generate(z), args.fps)
            return say(f"{out}: {len(z)} images, {len(z) / args.fps:.1f} s")
        rows = generate(torch.cat(z)).split([len(row) for row in z])
    page = labelled_grid(rows, labels)
    atomic_write(out, lambda file: page.save(file, "PNG"))
    shown = names[:1] if args.kind in ("arithmetic", "grid", "traverse") else []
    say(", class ".join([f"{out}: {page.width} x {page.height} pixels", *shown]))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # it may lack a letter, as on Windows
    try:
        main()
    except KeyboardInterrupt:
        say("\nstopped; what is written is complete, and --samples continues in its folder")
        sys.exit(130)
