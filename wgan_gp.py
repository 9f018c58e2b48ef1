# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch>=2.6", "torchvision>=0.21", "numpy>=2", "pillow>=10.1", "tqdm", "matplotlib",
# ]
# ///
"""WGAN-GP: Improved Training of Wasserstein GANs (Ishaan Gulrajani, Faruk Ahmed, Martin
Arjovsky, Vincent Dumoulin, Aaron Courville, NeurIPS 2017, arXiv 1704.00028, Algorithm 1).

The best critic of WGAN has gradients of norm 1 nearly everywhere between data and samples. Rather
than clip its weights, this asks for such gradients, at random points between a real and a fake:

    repeat
        n_critic times:  a batch x of m real images, z ~ N(0, I), ε ~ U[0, 1], one per sample
            x~ = g(z),  x^ = ε x + (1 - ε) x~
            critic: descend  1/m sum f(x~) - f(x) + λ (‖∇f(x^)‖ - 1)²
        z ~ N(0, I)
        G: descend  -1/m sum f(g(z))

Both networks minimise, the critic is high on real images, and the logged Wasserstein estimate is
E f(x) - E f(g(z)). An epoch is one pass of the critic over the data, without a partial step.

Usage
    python wgan_gp.py                                 sprites made on the spot, no download
    python wgan_gp.py --data cifar10 --epochs 100     the published setting at 32x32
    python wgan_gp.py --data cifar10 --lr-decay       as the paper trains its best CIFAR-10 model
    python wgan_gp.py --data cifar10 --lr 2e-4        sooner: FID-768 1.0 for 1.3 at 3,120 updates
    python wgan_gp.py --data cifar10 --conditional    images of a class, a row of each
    python wgan_gp.py --data photos/ --size 64 --out runs/photos
    python wgan_gp.py --out runs/photos --resume      go on where it stopped, with the same flags

Writes to --out (default runs/wgan_gp)
    args.json, wgan_gp.py      how the run was made
    log.csv, loss.png          means over each epoch's steps, and curves (with matplotlib)
    samples/epoch_0001.png     64 images; cell i is the latent of seed i, in every epoch
    checkpoint.pt              everything a resumed run needs
    snapshots/epoch_0010.pt    the generator alone

Departures from the paper
    1. The networks are DCGAN's, as in the paper's Figure 1, not the residual ones of its Table 3.
    2. Samples come from a moving average of G's weights: --ema 0 gives the raw ones.

Measured, two cores of an AMD EPYC, AVX-512 bfloat16, torch 2.14.1: 744 images/s at 32x32.
"""

import argparse
import copy
import hashlib
import io
import json
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
import warnings
import zipfile
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from PIL import Image, ImageOps
from torch import nn

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

SCRIPT = "wgan_gp.py"
FIRST = os.environ.get("RANK", "0") == "0"  # of the processes of a torchrun
COLUMNS = ("critic_loss", "g_loss", "wasserstein", "penalty", "grad_norm")  # of one step

DEMO = {"g_width": 24, "d_width": 16, "batch_size": 16, "n_critic": 2, "epochs": 56, "lr": 4e-4}
DEMO |= {"ema": 0.99}  # what --data sprites takes instead of the paper's settings

# ---- Networks ------------------------------------------------------------------------------------


def first_map(size):
    """(b, n) with size = b * 2**n: the base resolution, 4 to 7, and the number of doublings."""
    n = size.bit_length() - 3  # b = 4 to 7 are the numbers of three bits
    if n < 2 or size > 256 or (size >> n) << n != size:
        raise ValueError(f"{size} is not 4, 5, 6 or 7 times a power of two, 16 to 256")
    return size >> n, n


def init_weights(module):
    """N(0, 0.02) for weights (DCGAN, section 4), N(1, 0.02) for batch-norm scales."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """z (B, z_dim) -> images (B, 3, size, size) in [-1, 1]. `width` channels at size/2, doubling
    with each halving, 1024 at most; `norm` is "batch" or "none". Shapes are those of size 32.

    With `classes` of them z is (B, z_dim + classes): beside each latent stands its class, one-hot
    (Mirza and Osindero 2014, arXiv 1411.1784).
    """

    def __init__(self, size=32, z_dim=100, width=128, norm="batch", classes=0):
        super().__init__()
        b, n = first_map(size)
        c = [min(width << i, 1024) for i in reversed(range(n))]  # channels at b, 2b, ..., size/2
        bias = norm == "none"  # a batch norm would take a bias out again
        Norm = {"none": nn.Identity, "batch": nn.BatchNorm2d}[norm]
        layers = [nn.ConvTranspose2d(z_dim + classes, c[0], b, 1, 0, bias=bias)]  # (B, 512, 4, 4)
        layers += [Norm(c[0]), nn.ReLU(inplace=True)]
        for c_in, c_out in pairwise(c):  # (B, 256, 8, 8), (B, 128, 16, 16)
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=bias)]
            layers += [Norm(c_out), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(c[-1], 3, 4, 2, 1), nn.Tanh()]  # (B, 3, 32, 32)
        self.main = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, z):
        return self.main(z[:, :, None, None])


class Critic(nn.Module):
    """Images (B, 3, size, size) in [-1, 1] -> scores (B,): higher is more real, without a sigmoid.

    The generator's mirror image, with LeakyReLU(0.2). `norm` is "none", "layer" or "instance": a
    batch norm would make a sample's score, and so its gradient, depend on its batch.
    With `classes` of them it judges whether an image fits its class y, one-hot (B, classes), too:
    by projection (Miyato and Koyama 2018, arXiv 1802.05637, equation 3).
    """

    def __init__(self, size=32, width=64, norm="none", classes=0):
        super().__init__()
        b, n = first_map(size)
        c = [min(width << i, 1024) for i in range(n)]  # channels at size/2, ..., 2b, b
        groups = {"layer": lambda channels: 1, "instance": lambda channels: channels}
        layers = [nn.Conv2d(3, c[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]  # (B, 64, 16, 16)
        for c_in, c_out in pairwise(c):  # (B, 128, 8, 8), (B, 256, 4, 4)
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1)]
            layers += [nn.GroupNorm(groups[norm](c_out), c_out)] if norm in groups else []
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(c[-1], 1, b, 1, 0)]  # (B, 1, 1, 1)
        self.main = nn.Sequential(*layers)
        self.embed = nn.Linear(classes, c[-1], bias=False) if classes else None
        # PyTorch's own initial weights: without a norm N(0, 0.02) fades from layer to layer

    def forward(self, x, y=None):
        h = self.main[:-1](x)  # (B, 256, 4, 4)
        scores = self.main[-1](h).flatten()
        if self.embed:  # + y' V (sum of h over its pixels)
            scores = scores + (self.embed(y) * h.sum((2, 3))).sum(1)
        return scores


# ---- Objective -----------------------------------------------------------------------------------


def critic_loss(real_scores, fake_scores):
    """E f(g(z)) - E f(x): minus the Wasserstein estimate."""
    return fake_scores.mean() - real_scores.mean()


def generator_loss(fake_scores):
    """-E f(g(z))."""
    return -fake_scores.mean()


def gradient_penalty(critic, real, fake):
    """E (‖∇f(x^)‖ - 1)² at x^ = ε real + (1 - ε) fake, and the norms (B,).

    `real` and `fake` are (B, ...). ε is drawn per sample, the norm is over all of a sample's
    pixels, and the penalty is two-sided (equation 3). The graph is kept for a second derivative.
    """
    eps = torch.rand(len(real), *[1] * (real.dim() - 1), dtype=real.dtype, device=real.device)
    x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)  # derivative 0 where it is 0
    return (norms - 1).square().mean(), norms


# ---- Training ------------------------------------------------------------------------------------


def train_step(G, critic, opt_G, opt_critic, batches, z_dim, gp_weight):
    """The body of Algorithm 1 on n_critic batches of real images (B, 3, size, size), with one-hot
    classes y (B, classes) that are (B, 0) where there are none; the values of COLUMNS, (5,)."""
    for real, y in batches:  # lines 2 to 4
        z = torch.randn(len(real), z_dim, device=real.device)  # line 4
        with torch.no_grad():  # G is not what is updated here
            fake = G(torch.cat([z, y], 1))  # line 5
        real_scores, fake_scores = critic(torch.cat([real, fake]), torch.cat([y, y])).chunk(2)
        penalty, norms = gradient_penalty(partial(critic, y=y), real, fake)  # line 6
        estimate = critic_loss(real_scores, fake_scores)
        c_loss = estimate + gp_weight * penalty  # line 7
        optimizer_step(opt_critic, c_loss)  # line 9

    z = torch.randn_like(z)  # line 11
    g_loss = generator_loss(critic(G(torch.cat([z, y], 1)), y))  # line 12
    optimizer_step(opt_G, g_loss)
    return torch.stack([c_loss, g_loss, -estimate, penalty, norms.mean()]).detach()


# ---- Training loop (same in dcgan.py, wgan.py, wgan_gp.py) ---------------------------------------


def optimizer_step(opt, loss):
    """One step of `opt` down `loss`, by the gradients of opt's own parameters alone."""
    parameters = [p for group in opt.param_groups for p in group["params"]]
    opt.zero_grad()
    loss.backward(inputs=parameters)
    if dist.is_initialized():  # the mean over the processes of a torchrun, in one all-reduce
        flat = torch.cat([p.grad.flatten() for p in parameters]) / dist.get_world_size()
        dist.all_reduce(flat)
        for p, mean in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad.copy_(mean.view_as(p))
    opt.step()


@torch.no_grad()
def update_ema(G_ema, G, weight):
    """Move the average by `weight` towards G, weights and batch-norm statistics alike."""
    for mean, value in zip(G_ema.state_dict().values(), G.state_dict().values()):
        mean.lerp_(value, weight) if mean.is_floating_point() else mean.copy_(value)


def to_input(images, hflip=False):
    """uint8 (B, 3, size, size) -> float32 in [-1, 1], each image mirrored at random if `hflip`."""
    x = images.float() / 127.5 - 1
    if hflip:
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, x.flip(-1))
    return x


def shuffled_indices(n, per_step, epoch, seed):
    """Image numbers of an epoch, int64 (steps, per_step): a permutation without its last partial
    step, a function of (seed, epoch). Fewer images than a step's are repeated in it."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return torch.from_numpy(np.resize(order, (max(1, n // per_step), per_step)))


def autocast(net, device):
    """Run net's forward in bfloat16 where autocast deems it safe; outputs come back in float32."""
    forward = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)(net.forward)
    net.forward = lambda *x, **y: forward(*x, **y).float()


def train(train_step, state, images, labels, args, device, rank, world):
    """Run train_step(batches) from state["step"] to the end of --epochs. What it changes stays in
    place, for a graph to hold; its random numbers are a function of (seed, step, rank)."""
    per_step = getattr(args, "n_critic", 1) * args.batch_size
    per_epoch = max(1, len(images) // per_step)
    start, last, cuda = state["step"], per_epoch * args.epochs, device.type == "cuda"
    shape = per_step // args.batch_size, args.batch_size // world, *images.shape[1:]
    reals = torch.zeros(shape, dtype=torch.uint8, device=device)
    codes = torch.eye(len(state["classes"]) or 1)[:, : len(state["classes"])].to(labels.device)
    classes = torch.zeros(*shape[:2], codes.shape[1], device=device)  # one-hot
    ema_weight, epoch, order, graph = torch.zeros((), device=device), None, None, None
    stream, copied = (torch.cuda.Stream(), torch.cuda.Event()) if cuda else (None, None)
    opts = [part for part in state.values() if isinstance(part, torch.optim.Optimizer)]
    say(f"{per_epoch:,} train steps an epoch, {last:,} in all")

    def step():
        inputs = [to_input(real, args.hflip) for real in reals]
        state["totals"] += train_step(batches=[*zip(inputs, classes)])
        update_ema(state["G_ema"], state["G"], ema_weight)

    saved, begun = state["seconds"], time.perf_counter() - state["seconds"]
    bar = tqdm and tqdm(total=last, initial=start, disable=rank > 0 or None, unit="step")
    if cuda:
        stream.wait_stream(torch.cuda.current_stream())
    with stop_signals(args.out) as signals, torch.cuda.stream(stream) if cuda else nullcontext():
        while (t := state["step"]) < last and not signals:
            if epoch != t // per_epoch:
                epoch = t // per_epoch
                order = shuffled_indices(len(images), per_step, epoch, args.seed).to(images.device)
                order = order.view(per_epoch, -1, args.batch_size)[:, :, rank::world]
            index = order[t % per_epoch]
            batch, _ = images[index], classes.copy_(codes[labels[index]])
            if cuda and not batch.is_cuda:
                copied.synchronize()  # with the copy before: the host is a step ahead at most
                batch = batch.pin_memory()
            reals.copy_(batch, non_blocking=True)
            if cuda:
                copied.record()
            torch.manual_seed(np.random.SeedSequence([args.seed, t, rank]).generate_state(1).item())
            ema_weight.fill_(1 - min(args.ema, (1 + t) / (10 + t)))  # a short memory at the start
            for opt in opts if args.lr_decay else ():
                opt.param_groups[0]["lr"].fill_(args.lr * (1 - t / last))
            if cuda and not args.no_graph and t == start + 3:  # after three plain steps
                graph = torch.cuda.CUDAGraph()
                try:
                    with torch.cuda.graph(graph, stream=stream):
                        step()
                except RuntimeError as error:
                    raise SystemExit(f"{first_line(error)}: go on with --resume --no-graph")
            graph.replay() if graph else step()
            ended = (t + 1) % per_epoch == 0  # then CUDA is waited for, before the clock is read
            broken = (ended or not cuda) and not state["totals"].isfinite().all()
            state |= {"step": t + 1, "seconds": (now := time.perf_counter() - begun)}
            if tqdm:
                bar.update()
            if ended and not broken:
                end_epoch(state, args, last)
            if signals or broken or now - saved > (10 if ended else 600) or t + 1 == last:
                save_checkpoint(state, args)
                saved = now


@contextmanager
def stop_signals(out):
    """A list to which Ctrl-C, SIGTERM and SIGHUP add their numbers; the second acts at once. The
    first ends the process when the block ends, with the command to go on from --out."""
    caught, before = [], {}

    def note(number, frame):
        caught.append(number)
        signal.signal(number, before[number])

    alone = not dist.is_initialized() and threading.current_thread() is threading.main_thread()
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & {*dir(signal)} if alone else ():
        if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:  # as nohup sets it
            before[getattr(signal, name)] = signal.signal(getattr(signal, name), note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        say(f'\nstopped; go on with python {Path(__file__).name} --out "{out}" --resume')
        raise SystemExit(128 + caught[0])


# ---- Run folder (same in dcgan.py, wgan.py, wgan_gp.py) ------------------------------------------

FORMAT = 2  # of checkpoints and snapshots


def load_checkpoint(args):
    """The checkpoint that --resume asks for, or None for a new run. Runs no code from the file."""
    path = Path(args.out, "checkpoint.pt")
    if not args.resume:
        if path.exists() or path.with_name("log.csv").exists():
            raise SystemExit(f"--out {args.out}: holds a run; name another folder, or add --resume")
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if (saved["script"], saved["format"], "totals" in saved) != (SCRIPT, FORMAT, True):
            kind = "checkpoint" if "opt_G" in saved else "snapshot"
            raise ValueError(f"a {kind} of {saved['script']}, format {saved['format']}")
        saved.setdefault("classes", [])  # which older ones do not have
        for name, value in vars(build_parser().parse_args([])).items():
            both = value, saved["args"].get(name, value)
            kinds = [[*map(type, v)] if type(v) is list else type(v) for v in both]
            if value is not None and kinds[0] != kinds[1]:
                raise ValueError(f"a flag {name} of another type")
        columns = ["epoch", "step", "images", "seconds", *COLUMNS]
        step, log = saved["step"], saved["log"]
        known = type(step) is int and step >= 0 and type(log) is list
        if not known or any(type(row) is not dict or [*row] != columns for row in log):
            raise ValueError("a step or a log of another kind")
    except Exception as error:  # on a damaged file torch.load raises nearly anything
        reason = f"no checkpoint of {SCRIPT}, format {FORMAT}, to go on from ({first_line(error)})"
        raise SystemExit(f"{path}: {reason}; nothing in it was run")
    return saved


def start_run(state, saved, images, args, device_name):
    """Complete the state, for step 0 or as saved; note in --out how the run is made."""
    digest = hashlib.sha256()  # to tell sets apart; of a large one, of every k-th image
    for part in images[:: images.numel() // 2**28 + 1].split(256):
        digest.update(part.cpu().contiguous().numpy())
    known = {"count": len(images), "sha256": digest.hexdigest()}
    state["G_ema"] = copy.deepcopy(state["G"]).eval().requires_grad_(False)
    state["totals"] = torch.zeros(len(COLUMNS), device=next(state["G"].parameters()).device)
    state |= {"step": 0, "epoch": 0, "seconds": 0.0, "log": [], "images": known}
    for name, part in state.items() if saved else ():
        try:
            if isinstance(part, torch.optim.Optimizer):  # --lr and --betas may be new
                part.load_state_dict(part.state_dict() | {"state": saved[name]["state"]})
                names = ("exp_avg", "exp_avg_sq") if "betas" in part.defaults else ("square_avg",)
                for p, kept in part.state.items():
                    shapes = dict.fromkeys(names, p.shape) | {"step": ()}
                    if {name: value.shape for name, value in kept.items()} != shapes:
                        raise ValueError("not the means of its gradients")
                    kept |= {key: torch.empty_like(p).copy_(kept[key]) for key in names}  # strides
            elif isinstance(part, nn.Module):
                part.load_state_dict(saved[name])
            elif name == "classes" and saved[name] != part:
                raise ValueError(f"{saved[name]}, not {part}")
            elif name == "totals":
                part.copy_(saved[name])
            else:
                state[name] = type(part)(saved[name])
        except Exception as error:  # of a value of any kind
            reason = f"{name} does not fit this run ({first_line(error)})"
            raise SystemExit(f"{args.out}/checkpoint.pt: {reason}")
    if saved and state["epoch"] >= args.epochs:
        say(f"{args.out}: epoch {state['epoch']} is there already; more --epochs go on")
        raise SystemExit
    if (count := first_line(state["images"].get("count"))) != str(len(images)):
        was = f"not the {count} of the run in {args.out}"
        raise SystemExit(f"--data {args.data}: has {len(images)} images, {was}")
    if state["images"] != known:
        say(f"--data {args.data}: other images than before; the run goes on with these")
        state["images"] = known
    what = f"{len(images):,} images of {args.data} at {args.size}x{args.size}, {device_name}"
    say(f"{SCRIPT}: {what}" + f"; classes: {', '.join(state['classes'])}" * args.conditional)
    if args.data == "sprites":
        same = " ".join(f"--{k.replace('_', '-')} {getattr(args, k)}" for k in DEMO)
        say(f"a short demonstration, with settings for sprites: {same}")
    facts = {"script": SCRIPT, "args": vars(args), "images": known, "device": device_name}
    facts |= {module.__name__: module.__version__ for module in (torch, torchvision, np)}
    facts, here = json.dumps(facts | {"python": sys.version}, indent=2), Path(__file__).read_bytes()
    if FIRST:
        for left in Path(args.out).rglob(".*.tmp"):  # by a process that was killed
            left.unlink()
        atomic_write(Path(args.out, "args.json"), lambda file: file.write(facts.encode()))
        atomic_write(Path(args.out, Path(__file__).name), lambda file: file.write(here))
    if not saved:
        save_checkpoint(state, args)


def save_checkpoint(state, args, name="checkpoint.pt", keys=None):
    """Write the state, or `keys` of it; SystemExit if a loss or a weight is not finite."""
    nets = [part.state_dict() for part in state.values() if isinstance(part, nn.Module)]
    tensors = [state["totals"], *(value for net in nets for value in net.values())]
    if not all(tensor.isfinite().all() for tensor in tensors):
        advice = f"{args.out}/checkpoint.pt is from before: try --resume with a lower --lr"
        raise SystemExit(f"step {state['step']:,}: a loss or a weight is not finite; {advice}")
    shape = {"size": args.size, "z_dim": args.z_dim, "width": args.g_width, "norm": args.norm}
    shape |= {"classes": len(state["classes"])} if state["classes"] else {}
    saved = {"format": FORMAT, "script": SCRIPT, "generator": shape, "args": vars(args)}
    for key in keys or state:
        saved[key] = getattr(state[key], "state_dict", lambda key=key: state[key])()
    if FIRST:
        atomic_write(Path(args.out, name), lambda file: torch.save(saved, file))


def end_epoch(state, args, last):
    """Write the epoch's row of the log, curves, image grid and, where it is due, snapshot."""
    epoch = state["epoch"] = state["step"] * args.epochs // last
    images = state["step"] * args.batch_size * getattr(args, "n_critic", 1)
    means = state["totals"] / (last // args.epochs)
    if dist.is_initialized():
        dist.all_reduce(means)
        means /= dist.get_world_size()
    state["totals"].zero_()
    row = {"epoch": epoch, "step": state["step"], "images": images}
    row |= {"seconds": round(state["seconds"], 1)} | dict(zip(COLUMNS, means.tolist()))
    state["log"].append(row)
    left = round(state["seconds"] * (last / state["step"] - 1))
    shown = "  ".join(f"{name} {row[name]:.3g}" for name in COLUMNS)
    shown += f"  {images / state['seconds']:,.0f} images/s"
    say(f"epoch {epoch:>3}/{args.epochs}  {shown}  {left // 60}:{left % 60:02} left")
    if not FIRST:
        return
    table = [row.keys(), *(row.values() for row in state["log"])]
    table = "".join(",".join(map(str, line)) + "\n" for line in table).encode()
    z, classes = latents(range(64), args.z_dim), len(state["classes"])
    if classes:  # a row for each, of the same latents
        rows = [code.expand(8, -1) for code in torch.eye(classes)[:64]]
        z = torch.cat([z[:8].repeat(len(rows), 1), torch.cat(rows)], 1)
    grid = torchvision.utils.make_grid(sample(state["G_ema"], z), nrow=8).permute(1, 2, 0).numpy()
    files = {"log.csv": lambda file: file.write(table)}
    files[f"samples/epoch_{epoch:04}.png"] = lambda file: Image.fromarray(grid).save(file, "PNG")
    if find_spec("matplotlib") and (epoch == args.epochs or epoch % -(-args.epochs // 20) == 0):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2 * len(COLUMNS), 2.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(COLUMNS)), COLUMNS):
            axes.plot([r["epoch"] for r in state["log"]], [r[name] for r in state["log"]], ".-")
            axes.set(title=name, xlabel="epoch")
        files["loss.png"] = lambda file: figure.savefig(file, format="png", dpi=110)
    for name, write in files.items():
        try:
            atomic_write(Path(args.out, name), write)
        except SystemExit as error:  # held open by another program, on Windows
            say(f"warning: {error}")
    if epoch == args.epochs or (args.snapshot_every and epoch % args.snapshot_every == 0):
        keys = "G_ema", "epoch", "step", "classes"
        save_checkpoint(state, args, f"snapshots/epoch_{epoch:04}.pt", keys)


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


@contextmanager
def locked(folder, seconds=0):
    """Hold a lock on a folder, which ends with the process; another's is waited for `seconds`."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(closing(sqlite3.connect(folder / ".lock", timeout=0.5)))
            while not lock.in_transaction:
                try:
                    lock.execute("BEGIN EXCLUSIVE")  # SQLite knows how every system locks
                except sqlite3.OperationalError as error:  # after half a second, to hear Ctrl-C
                    if (seconds := seconds - 0.5) < 0 or "locked" not in str(error):
                        raise
        except (OSError, sqlite3.Error) as error:
            raise SystemExit(f"{folder}: {error}: used by another process, or not to be written")
        yield


# ---- Data (same in dcgan.py, wgan.py, wgan_gp.py) ------------------------------------------------

NAMES = ("sprites", "cifar10", "stl10", "celeba", "lsun-NAME")
FORMATS = "PNG JPEG WEBP GIF BMP TIFF PPM AVIF JPEG2000 TGA ICO PCX SGI QOI DDS PSD XBM SUN".split()
FORMATS += "BLP DIB ICNS IM MSP XPM".split()  # by frequency; none of them runs a program
CLUTTER = (".", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
Source = namedtuple("Source", "key items labels names read")  # read(i): the i-th PIL image


def load_data(data, size, classes=None, cache="data", skip_corrupt=False):
    """Images uint8 (N, 3, size, size), labels int64 (N,) and class names of a data name or path.

    They are decoded once into a file in `cache`, which is mapped into memory and not to be written
    to. `classes` keeps those alone, `skip_corrupt` leaves out what cannot be read.
    """
    bad = {}  # number of an image: why it cannot be read

    def load(i):
        try:
            with source.read(i) as image:
                return to_rgb(image, size).tobytes()
        except Exception as error:  # on a damaged file Pillow raises nearly anything
            bad[i] = f"\n    {first_line(source.items[i])}: {first_line(error)}"
            return b""

    def decode(file):
        say(f"decoding {data}: {len(keep):,} images")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(keep), 1024):  # few are in memory at a time
                file.writelines(pool.map(load, keep[start : start + 1024]))
        kept = [i for i in keep if i not in bad]
        if bad and not (skip_corrupt and kept):
            advice = "--skip-corrupt leaves them out" if kept else "no image can be read"
            listed = [bad[i] for i in sorted(bad)]
            listed[20:] = [f"\n    and {len(bad) - 20:,} more"] * (len(bad) > 20)
            raise SystemExit(f"{data}: {len(bad):,} unreadable ({advice}):{''.join(listed)}")
        if bad:
            say(f"{data}: {len(bad):,} unreadable left out, {len(kept):,} images read")
        file.write(np.asarray(source.labels, np.int64)[kept].tobytes())

    writable = os.access(cache, os.W_OK) or not os.path.exists(cache)
    with locked(Path(cache), 86400) if writable else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for all threads: of Pillow, and of torch, "not writable"
        source = open_data(str(data), size, cache)
        wanted = {*map(str, classes or source.names)}
        if unknown := " ".join(sorted(wanted - {*source.names})):
            raise SystemExit(f"--classes {unknown}: not in {data} ({' '.join(source.names[:100])})")
        keep = np.flatnonzero(np.take([n in wanted for n in source.names], source.labels)).tolist()
        key = json.dumps(["decoded 2", source.key, size, sorted(wanted)])
        path = Path(cache, f"decoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.u8")
        each = 3 * size * size + 8  # bytes of an image and its label
        whole = range(each, each * len(keep) + 1, each)[0 if skip_corrupt else -1 :]
        if not path.exists() or path.stat().st_size not in whole:
            for left in Path(cache).glob(".decoded-*.tmp"):  # by a process that was killed
                left.unlink()
            atomic_write(path, decode)
        images = np.memmap(path, np.uint8, "r", shape=(path.stat().st_size // each, 3, size, size))
        labels = np.fromfile(path, np.int64, offset=images.size)
        return torch.from_numpy(images), torch.from_numpy(labels), list(source.names)


def conditions(labels, names, args):
    """Labels from 0 to the number of classes that occur, and these classes' names, to condition on;
    without --conditional all labels are 0 and there are no names."""
    if not args.conditional:
        return torch.zeros_like(labels), []
    present, labels = labels.unique(return_inverse=True)
    if len(present) == 1:
        advice = "a folder for each makes them, or `labels` in an .npz"
        raise SystemExit(f"--conditional: {args.data} has one class, {names[present[0]]}; {advice}")
    return labels, [names[i] for i in present]


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
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="sprites", metavar="SET", help="sprites (made here), cifar10, stl10, "
        "celeba, lsun-NAME, or a folder, .zip, .npy or .npz of images")
    add("--classes", nargs="+", metavar="NAME", help="train on these classes of the set alone")
    add("--conditional", action="store_true", help="G makes images of the class that it is told")
    add("--hflip", action="store_true", help="mirror images at random; not for text or digits")
    add("--skip-corrupt", action="store_true", help="leave unreadable files out, do not stop")
    add("--cache", default="data", metavar="DIR", help="of downloads and decoded images")
    add("--size", type=int, default=32, metavar="PX", help="4, 5, 6 or 7 times 2**n, 16 to 256")
    add("--z-dim", type=int, default=100, metavar="N", help="length of a latent")
    add("--g-width", type=int, default=128, metavar="C", help="channels of the generator at size/2")
    add("--d-width", type=int, default=64, metavar="C", help="the same for the critic")
    add("--norm", choices=("batch", "none"), default="batch", help="of the generator")
    add("--critic-norm", choices=("none", "layer", "instance"), default="none", help="of the "
        "critic; a batch norm would couple the samples")
    add("--gp-weight", type=float, default=10.0, metavar="X", help="λ, the penalty's weight; "
        "larger holds the gradient's norm closer to 1")
    add("--n-critic", type=int, default=5, metavar="N", help="critic updates per generator update")
    add("--epochs", type=int, default=100, metavar="N", help="passes of the critic over the data")
    add("--batch-size", type=int, default=64, metavar="N", help="real images per update")
    add("--lr", type=float, default=1e-4, metavar="X", help="learning rate of both networks")
    add("--betas", type=float, nargs=2, default=[0.0, 0.9], metavar="B", help="Adam's decay rates; "
        "momentum hurts where the critic's target moves")
    add("--lr-decay", action="store_true", help="let the learning rate fall linearly to zero")
    add("--ema", type=float, default=0.999, metavar="D", help="decay per update of the averaged "
        "generator, which samples come from; 0 takes the raw one")
    add("--seed", type=int, default=0, metavar="N", help="of weights, latents, order of the images")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="fp32 (TF32 on CUDA) "
        "or bfloat16 autocast; auto takes that where the hardware multiplies it")
    add("--no-graph", action="store_true", help="on CUDA, launch each kernel by itself: slower")
    add("--snapshot-every", type=int, default=10, metavar="N", help="epochs; the last is kept too")
    add("--out", default=f"runs/{SCRIPT[:-3]}", metavar="DIR", help="run folder, not yet in use")
    add("--resume", action="store_true", help="go on from --out, with its flags; --data may move")
    for action in parser._actions:
        if action.default not in (None, False, argparse.SUPPRESS):
            action.help += " (default %(default)s)"
    return parser


# fmt: on
def parse_args(argv=None, saved=None):
    """The checked flags; `saved` are those of the run that is resumed."""
    parser = build_parser()
    args = parser.parse_args(argv, argparse.Namespace(**saved or {}))
    if args.data == "sprites" and not saved:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(argv)
    free = "data cache skip_corrupt epochs lr betas lr_decay device precision no_graph out resume"
    for name, value in vars(args).items():
        flag, low = f"--{name.replace('_', '-')}", int(name not in ("seed", "snapshot_every"))
        was = (saved or {}).get(name, value)
        if was != value and name not in f"{free} snapshot_every".split():
            parser.error(f"{flag}: the run in {args.out} has {was}; leave {flag} out")
        if type(value) is int and not low <= value < 2**63:
            parser.error(f"{flag} {value}: must be {low} or more, and below 2**63")
        if name == "batch_size" and value % int(os.environ.get("WORLD_SIZE", 1)):
            parser.error(f"{flag} {value}: must be a multiple of the processes")
        if name in ("lr", "clip", "gp_weight") and not 0 < value < float("inf"):
            parser.error(f"{flag} {value}: must be above 0")
        if name in ("ema", "betas") and not all(0 <= v < 1 for v in np.ravel(value)):
            parser.error(f"{flag} {value}: must be in [0, 1)")
    try:
        first_map(args.size)
    except ValueError as error:
        parser.error(f"--size {error}")
    return args


# ---- main ----------------------------------------------------------------------------------------


def main(argv=None):
    args = parse_args(argv)
    if args.resume and not os.path.exists(f"{args.out}/checkpoint.pt"):
        raise SystemExit(f"--resume: there is no checkpoint.pt in {args.out}")
    with locked(Path(args.out)) if FIRST else nullcontext():
        saved = load_checkpoint(args)
        args = parse_args(argv, saved["args"] | {"out": args.out}) if saved else args
        if os.path.exists(args.data) and args.data not in NAMES:
            args.data = os.path.abspath(args.data)  # a resumed run may start from elsewhere
        device, device_name, precision = set_up_device(args.device, args.precision)
        rank, world = join_processes(device)
        data = load_data(args.data, args.size, args.classes, args.cache, args.skip_corrupt)
        images, (labels, classes) = data[0], conditions(*data[1:], args)
        cuda, mps = device.type == "cuda", device.type == "mps"
        if cuda and images.numel() < torch.cuda.mem_get_info()[0] // 2:
            images, labels = images.to(device), labels.to(device)

        torch.manual_seed(args.seed)
        G = Generator(args.size, args.z_dim, args.g_width, args.norm, len(classes))
        critic = Critic(args.size, args.d_width, args.critic_norm, len(classes))
        layout = torch.contiguous_format if mps else torch.channels_last  # wrong gradients on MPS
        G, critic = (net.to(device, memory_format=layout) for net in (G, critic))
        how = {"lr": torch.tensor(args.lr, device=device if cuda else "cpu"), "capturable": cuda}
        how |= {"betas": tuple(args.betas), "fused": not mps}
        opt_G, opt_critic = (torch.optim.Adam(net.parameters(), **how) for net in (G, critic))
        state = {"G": G, "critic": critic, "opt_G": opt_G, "opt_critic": opt_critic}
        step = partial(train_step, **state, z_dim=args.z_dim, gp_weight=args.gp_weight)
        words = precision + " (TF32)" * (cuda and precision == "fp32")
        state["classes"] = classes
        start_run(state, saved, images, args, f"{device_name}, {words}")
        for net in (G, critic) if precision == "bf16" else ():
            autocast(net, device)
        train(step, state, images, labels, args, device, rank, world)
        say(f"done in {state['seconds']:,.0f} s: look at {args.out}/samples")
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # it may lack a letter, as on Windows
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        sys.exit(f"{first_line(error)}: try a smaller --batch-size, --size, --g-width or --d-width")
