# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch>=2.6", "torchvision>=0.21", "numpy>=2", "pillow>=10.1", "tqdm", "matplotlib",
# ]
# ///
"""WGAN: Wasserstein GAN (Martin Arjovsky, Soumith Chintala, Léon Bottou, ICML 2017,
arXiv 1701.07875, Algorithm 1).

The discriminator becomes a critic f: a score without a sigmoid. Where f is K-Lipschitz,
E f(x) - E f(g(z)) is at most K times the Wasserstein-1 distance of data and samples, and the best
critic reaches it (Kantorovich-Rubinstein duality). Clipping the weights keeps f Lipschitz.

    repeat
        n_critic times:  a batch x of m real images, z ~ N(0, I)
            critic: descend  1/m sum f(g(z)) - 1/m sum f(x)         widen the gap
            every weight of f to [-c, c]
        z ~ N(0, I)
        G: descend  -1/m sum f(g(z))                                raise the fakes' scores

Both networks minimise, the critic is high on real images, and the logged Wasserstein estimate is
E f(x) - E f(g(z)), the distance up to the unknown factor K.

Usage
    python wgan.py                                    sprites made on the spot, no download
    python wgan.py --data cifar10                     the published setting at 32x32
    python wgan.py --data photos/ --size 64 --out runs/photos
    python wgan.py --out runs/photos --resume         go on where it stopped, with the same flags
    python wgan.py --data cifar10 --clip 0.003        a smaller box: smaller K, smaller gradients

Writes to --out (default runs/wgan)
    args.json, wgan.py         how the run was made
    log.csv, loss.png          a row per epoch, and its curves (where matplotlib is installed)
    samples/epoch_0001.png     64 images; cell i is the latent of seed i, in every epoch
    checkpoint.pt              everything a resumed run needs
    snapshots/epoch_0010.pt    the generator alone

The log's columns are means over an epoch's iterations; in an iteration critic_loss, wasserstein and
clipped (the share of the critic's weights that sit at -c or c) are those of its last critic update.

Departures from the paper
    1. An epoch is one pass of the critic over the data, without a partial batch: the generator is
       updated once in n_critic batches. (The authors' code gives the critic 100 updates at a time
       in the first 25 generator updates and at every 500th; the paper does not, nor does this.)
    2. Images may be 16 to 256 pixels wide.
    3. Samples come from a moving average of G's weights: --ema 0 gives the raw ones.

Measured
    On two cores of an AMD EPYC with AVX-512 bfloat16, torch 2.15: 50,000 CIFAR-10 images in 88
    to 131 s an epoch (n = 15). Trained for 15 of its 100 epochs; the README shows them.
"""

import argparse
import copy
import csv
import hashlib
import io
import json
import math
import os
import pickle
import platform
import signal
import socket
import sys
import tempfile
import time
import warnings
import zipfile
from collections import deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
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

SCRIPT = "wgan.py"
COLUMNS = ("critic_loss", "g_loss", "wasserstein", "clipped")  # what one iteration reports

# ---- Networks ------------------------------------------------------------------------------------


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


class Critic(nn.Module):
    """Images (B, 3, size, size) in [-1, 1] -> scores (B,): higher is more real, without a sigmoid.

    The generator's mirror image, with LeakyReLU(0.2). `norm` is "batch" or "none". Shapes in the
    comments are those of size 32, width 64.
    """

    def __init__(self, size=32, width=64, norm="batch"):
        super().__init__()
        b, n = first_map(size)
        c = [min(width << i, 1024) for i in range(n)]  # channels at size/2, ..., 2b, b
        bias = norm == "none"
        Norm = nn.Identity if norm == "none" else nn.BatchNorm2d
        layers = [nn.Conv2d(3, c[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]  # (B, 64, 16, 16)
        for c_in, c_out in pairwise(c):  # (B, 128, 8, 8), (B, 256, 4, 4)
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=bias)]
            layers += [Norm(c_out), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(c[-1], 1, b, 1, 0)]  # (B, 1, 1, 1)
        self.main = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, x):
        return self.main(x).flatten()


# ---- Objective -----------------------------------------------------------------------------------


def critic_loss(real_scores, fake_scores):
    """E f(g(z)) - E f(x): minus the Wasserstein estimate."""
    return fake_scores.mean() - real_scores.mean()


def generator_loss(fake_scores):
    """-E f(g(z))."""
    return -fake_scores.mean()


@torch.no_grad()
def clip_weights(critic, c):
    """Move every parameter of the critic into [-c, c]; the share that sits at -c or c."""
    weights = list(critic.parameters())
    for w in weights:
        w.clamp_(-c, c)
    return torch.cat([w.flatten() for w in weights]).abs().ge(c).float().mean()


# ---- Training ------------------------------------------------------------------------------------


def iteration(G, critic, opt_G, opt_critic, reals, z_dim, c):
    """One pass through the body of Algorithm 1; `reals` yields n_critic batches of real images.

    Returns the values of COLUMNS, (4,).
    """
    for real in reals:  # lines 2 and 3: (B, 3, size, size)
        z = torch.randn(len(real), z_dim, device=real.device)  # line 4
        with torch.no_grad():  # G is not what is updated here
            fake = G(z)
        c_loss = critic_loss(critic(real), critic(fake))  # line 5, separate for the batch norm
        descend(opt_critic, c_loss)  # line 6
        clipped = clip_weights(critic, c)  # line 7

    z = torch.randn_like(z)  # line 9
    g_loss = generator_loss(critic(G(z)))  # line 10
    descend(opt_G, g_loss)  # line 11
    return torch.stack([c_loss, g_loss, -c_loss, clipped]).detach()


def train(G, critic, opt_G, opt_critic, run, args):
    """The loop: epochs of iterations. `run` keeps the images and the books."""

    def step():
        reals = (to_input(batch, args.hflip) for batch in run.draw())
        run.record(iteration(G, critic, opt_G, opt_critic, reals, args.z_dim, args.clip))

    step = replayed(step, (opt_G, opt_critic), args, run.device)
    while run.epoch < args.epochs:
        order = epoch_batches(run.n_images, args.batch_size, args.n_critic, run.epoch, args.seed)
        for _ in run.iterations(order):
            step()
        run.end_epoch()


# ---- Training tools (same in dcgan.py, wgan.py, wgan_gp.py) --------------------------------------


def descend(opt, loss):
    """One step of `opt` down `loss`, with the gradients of opt's own parameters alone."""
    parameters = [p for group in opt.param_groups for p in group["params"]]
    opt.zero_grad()
    loss.backward(inputs=parameters)
    if dist.is_initialized():
        average_gradients(parameters)
    opt.step()


def average_gradients(parameters):
    """Replace gradients by their means over the processes of a torchrun, in one all-reduce."""
    gradients = [p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


def epoch_batches(n, batch_size, per_iteration, epoch, seed):
    """Image numbers of one epoch, int64 (iterations, per_iteration, batch_size).

    The epochs are a stream of permutations of n images, each without its last partial batch and
    each a function of (seed, epoch) alone. An iteration takes the next `per_iteration` batches; one
    that would reach into the next epoch belongs to that one, so no batch is lost at the border.
    """
    per_epoch = n // batch_size
    start, stop = (e * per_epoch // per_iteration * per_iteration for e in (epoch, epoch + 1))
    stream = [torch.empty(0, dtype=torch.int64)]
    for e in range(start // per_epoch, -(-stop // per_epoch)):
        order = np.random.default_rng([seed, e]).permutation(n)[: per_epoch * batch_size]
        stream.append(torch.from_numpy(order))
    skipped = start % per_epoch * batch_size
    stream = torch.cat(stream)[skipped : skipped + (stop - start) * batch_size]
    return stream.view(-1, per_iteration, batch_size)


def place(images, args, device):
    """The images on the device where they fit; SystemExit if they are too few for one update."""
    n_critic = getattr(args, "n_critic", 1)
    if len(images) // args.batch_size * args.epochs < n_critic:
        wanted = f"{args.batch_size * n_critic:,} images, {args.data} has {len(images):,}"
        raise SystemExit(f"--batch-size {args.batch_size}: one iteration takes {wanted}")
    if args.batch_size % world_of()[1]:
        raise SystemExit(f"--batch-size {args.batch_size}: must be a multiple of the processes")
    if device.type == "cuda" and images.numel() < torch.cuda.mem_get_info(device)[0] // 2:
        return images.to(device)
    return images


def read_ahead(images, order, pinned):
    """images[index] for each index of `order`, read by a thread, three of them ahead."""

    def read(index):
        batches = images[index]
        return batches.pin_memory() if pinned else batches

    with ThreadPoolExecutor(1) as thread:
        ahead = deque(thread.submit(read, index) for index in order[:3])
        for index in [*order[3:], None, None, None][: len(order)]:
            batches = ahead.popleft().result()
            if index is not None:
                ahead.append(thread.submit(read, index))
            yield batches


def to_input(batch, hflip=False):
    """uint8 (B, 3, size, size) -> float32 in [-1, 1], each image mirrored at random if `hflip`."""
    x = batch.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
    if hflip:
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, x.flip(-1))
    return x


def replayed(step, opts, args, device):
    """On CUDA, `step` as a graph: recorded at its fourth call, random draws and all, then replayed.

    The three calls before it run as they are, on a stream of their own, as recording asks for.
    Learning rates that change become tensors, which a recorded step reads anew.
    """
    if device.type != "cuda" or args.no_graph:
        return step
    if args.lr_decay:
        for group in (group for opt in opts for group in opt.param_groups):
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
    graph, side, calls = torch.cuda.CUDAGraph(), torch.cuda.Stream(), 0

    def replay():
        nonlocal calls
        calls += 1
        if calls <= 3:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            return
        if calls == 4:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # one may read ahead
                step()
        graph.replay()

    return replay


def low_precision(net, device):
    """Run net's forward in bfloat16 where autocast deems it safe; outputs come back in float32."""
    if device.type == "cpu":
        as_products(net)
    forward = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)(net.forward)
    net.forward = lambda *inputs: forward(*inputs).float()


def as_products(net):
    """Compute as matrix products what oneDNN is slow at in bfloat16: the layers to and from a
    single pixel, and the gradient of a doubling layer's weights. Values stay the same."""

    def project(z, layer):  # (B, C, 1, 1) -> (B, C', b, b)
        weight = layer.weight.permute(0, 2, 3, 1)
        x = (z.flatten(1) @ weight.flatten(1)).unflatten(1, weight.shape[1:]).permute(0, 3, 1, 2)
        return x if layer.bias is None else x + layer.bias[:, None, None]

    def gather(x, layer):  # (B, C, b, b) -> (B, C', 1, 1)
        x, weight = (t.permute(0, 2, 3, 1).flatten(1) for t in (x, layer.weight))
        return F.linear(x, weight, layer.bias)[:, :, None, None]

    def double(x, layer):  # (B, C, h, h) -> (B, C', 2h, 2h)
        x = Doubling.apply(x, layer.weight)
        return x if layer.bias is None else x + layer.bias[:, None, None]

    for layer in net.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            layer.forward = partial(double if layer.stride == (2, 2) else project, layer=layer)
        elif isinstance(layer, nn.Conv2d) and layer.stride == (1, 1):
            layer.forward = partial(gather, layer=layer)


class Doubling(torch.autograd.Function):
    """conv_transpose2d(x, weight, stride=2, padding=1) with a kernel of 4, under autocast."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.conv_transpose2d(x, weight, None, 2, 1)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = F.conv2d(dy, weight, None, 2, 1) if ctx.needs_input_grad[0] else None
        windows = F.pad(dy.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).unfold(1, 4, 2).unfold(2, 4, 2)
        windows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)  # (B h h, 4 4 C')
        dw = x.permute(0, 2, 3, 1).flatten(0, 2).t() @ windows
        return dx, dw.unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)


def average_weights(G_ema, G, opt_G, decay, updates):
    """After each step of opt_G move G_ema towards G, weights and batch-norm statistics alike.

    The decay after t updates is min(decay, (1 + t) / (10 + t)), so that a short run is not an
    average over its own start. `updates` is the t to begin with.
    """
    updates = torch.tensor(float(updates), device=next(G.parameters()).device)

    @torch.no_grad()
    def step(*_):
        updates.add_(1)
        weight = 1 - ((1 + updates) / (10 + updates)).clamp(max=decay)
        for mean, value in zip(G_ema.state_dict().values(), G.state_dict().values()):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:  # num_batches_tracked
                mean.copy_(value)

    opt_G.register_step_post_hook(step)


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


@contextmanager
def first_process_first():
    """Let the first process through alone, then the others, who find its files."""
    rank, world = world_of()
    if rank:
        dist.barrier()
    yield
    if world > 1 and rank == 0:
        dist.barrier()


# ---- Run folder (same in dcgan.py, wgan.py, wgan_gp.py) ------------------------------------------

FORMAT = 1  # of checkpoints and snapshots


class Run:
    """The images and the books of a run: where it stands, its log, samples, checkpoints, Ctrl-C.

    `parts` maps names to the networks and optimizers that a checkpoint holds: G, G_ema (unless
    --ema 0), the second network, opt_G and its opponent. `checkpoint` is one to go on from.
    An iteration begins with draw() and ends with record(). Both leave everything on the device, in
    buffers that stay where they are, found by a counter that is there too: a graph can hold them.
    """

    STATE = ("epoch", "done", "step", "seconds", "log")

    def __init__(self, args, device, parts, images, checkpoint=None):
        self.args, self.device, self.parts, self.out = args, device, parts, Path(args.out)
        self.nets = {k: p for k, p in parts.items() if isinstance(p, nn.Module)}
        self.opts = {k: p for k, p in parts.items() if isinstance(p, torch.optim.Optimizer)}
        self.rank, self.world = world_of()
        self.images, self.n_images = images, len(images)
        per_iteration = getattr(args, "n_critic", 1)
        self.batch = args.batch_size * per_iteration  # images per iteration
        batches = self.n_images // args.batch_size  # per epoch
        self.steps = args.epochs * batches // per_iteration
        self.epoch = self.done = self.step = 0  # done: iterations of the epoch that runs
        self.seconds, self.log = 0.0, []

        rows, share = -(-batches // per_iteration), args.batch_size // self.world
        self.losses = torch.zeros(rows, len(COLUMNS), device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)  # `done`, on the device
        self.order = torch.zeros(rows, per_iteration, share, dtype=torch.int64, device=device)
        self.batches = None  # a place for the batches of images that are not on the device
        if images.device.type != device.type:
            shape = per_iteration, share, *images.shape[1:]
            self.batches = torch.empty(shape, dtype=torch.uint8, device=device)
        if checkpoint:
            self.load(checkpoint)
        if self.rank:  # the first process goes on with the stream of numbers it had
            torch.manual_seed(args.seed + 1_000_003 * self.rank + self.step)
        self.stop, self.first = 0, self.step
        self.clock = self.begun = self.saved = time.perf_counter()
        self.drawn = -math.inf

    def start(self, device_name, precision):
        """Make the run folder with args.json and the script, say what runs, take over Ctrl-C."""
        facts = {"script": SCRIPT, "args": vars(self.args), "images": self.n_images}
        facts |= {"device": device_name, "precision": precision}
        facts |= {module.__name__: module.__version__ for module in (torch, torchvision, np)}
        facts |= {"python": platform.python_version(), "processes": self.world}
        text, here = json.dumps(facts, indent=2), Path(__file__).resolve()
        if self.rank == 0:
            for partial in self.out.rglob(".*.tmp"):  # of a run that was killed in mid-file
                partial.unlink()
            write_file(self.out / "args.json", lambda f: f.write(text.encode()))
            if here != (self.out / SCRIPT).resolve():
                write_file(self.out / SCRIPT, lambda f: f.write(here.read_bytes()))
        size, nets = self.args.size, {k: n for k, n in self.nets.items() if k != "G_ema"}
        sizes = [f"{k} {sum(p.numel() for p in n.parameters()):,}" for k, n in nets.items()]
        print(f"{SCRIPT}: {self.n_images:,} images of {self.args.data} at {size}x{size}")
        times = f"{self.world} x " if self.world > 1 else ""
        print(f"{times}{device_name}, {precision}, parameters: {', '.join(sizes)}")
        if self.step:
            print(f"going on in epoch {self.epoch + 1} after step {self.step:,}")
        signals = (signal.SIGINT, signal.SIGTERM)
        self.handlers = {number: signal.signal(number, self.interrupt) for number in signals}
        self.bar = progress(self.steps * self.batch, "image", self.step * self.batch)
        self.clock = self.begun = time.perf_counter()

    def interrupt(self, number, frame):
        """Stop after the iteration that runs; a second Ctrl-C stops at once."""
        self.stop = number
        signal.signal(number, self.handlers[number])

    def iterations(self, order):
        """Go through the rest of the epoch whose image numbers are `order`, (iterations,
        per_iteration, batch_size); every world-th image of a batch is this process's."""
        order = order[:, :, self.rank :: self.world]
        self.order[: len(order)] = order
        self.cursor.fill_(self.done)
        left = order[self.done :]
        if self.batches is not None:
            left = read_ahead(self.images, left, self.device.type == "cuda")
        for batches in left:
            rate = 1 - self.step / self.steps if self.args.lr_decay else 1.0
            for group in (group for opt in self.opts.values() for group in opt.param_groups):
                if torch.is_tensor(group["lr"]):
                    group["lr"].fill_(self.args.lr * rate)
                else:
                    group["lr"] = self.args.lr * rate
            if self.batches is not None:
                self.batches.copy_(batches, non_blocking=True)
            yield
            self.count()

    def draw(self):
        """The iteration's real images, uint8 (per_iteration, B, 3, size, size)."""
        if self.batches is not None:
            return self.batches
        return self.images[self.order[self.cursor][0]]

    def record(self, values):
        """Book the iteration's (len(COLUMNS),) values."""
        self.losses[self.cursor] = values
        self.cursor += 1

    def count(self):
        """Count an iteration, without waiting for the device; then save or stop, if it is time."""
        self.done, self.step = self.done + 1, self.step + 1
        self.bar.update(self.batch)
        if self.device.type == "cpu":
            values = self.losses[self.done - 1]
            self.bar.set_postfix_str(show(values), refresh=False)
            if not values.isfinite().all():
                self.check()
        if stop := self.to_stop():
            self.save()
            print(f"\nstopped in epoch {self.epoch + 1} after step {self.step:,}; to go on:")
            print(f"    python {SCRIPT} --out {self.out} --resume")
            if dist.is_initialized():  # all stop here, and leave together
                dist.destroy_process_group()
            raise SystemExit(128 + stop)
        if time.perf_counter() - self.saved > 600:
            self.save()

    def to_stop(self):
        """The signal to stop at, or 0; several processes agree on it, every 16 iterations."""
        if self.world == 1 or self.step % 16:
            return self.stop if self.world == 1 else 0
        stop = torch.tensor(self.stop, device=self.device)
        dist.all_reduce(stop, dist.ReduceOp.MAX)
        return int(stop)

    def end_epoch(self):
        """Log, samples, snapshot, and last of all the checkpoint, if one is due."""
        self.check()
        means = self.losses[: self.done].mean(0)
        if self.world > 1:
            dist.all_reduce(means)
            means /= self.world
        self.epoch, self.done = self.epoch + 1, 0
        row = {"epoch": self.epoch, "step": self.step, "images": self.step * self.batch}
        row |= {"seconds": round(self.elapsed(), 1)}
        self.log.append(row | {k: round(v, 6) for k, v in zip(COLUMNS, means.tolist())})
        speed = (self.step - self.first) * self.batch / (time.perf_counter() - self.begun)
        left = (self.steps - self.step) * self.batch / max(speed, 1)
        self.bar.clear()
        print(f"epoch {self.epoch:>3}/{self.args.epochs}  {show(means)}", end="  ")
        print(f"{speed:,.0f} images/s  {left // 60:.0f}:{left % 60:02.0f} left", flush=True)
        if self.rank == 0:
            self.write_epoch()
        if self.epoch in (1, self.args.epochs) or time.perf_counter() - self.saved > 10:
            self.save()  # not always: a fast GPU's epoch takes as long as the writing

    def write_epoch(self):
        G, name = self.nets.get("G_ema", self.nets["G"]), f"epoch_{self.epoch:04}"
        grid = sample(G, latents(range(64), self.args.z_dim))
        grid = torchvision.utils.make_grid(grid, nrow=8).permute(1, 2, 0).numpy()
        picture = Image.fromarray(grid)
        write_file(self.out / "samples" / f"{name}.png", lambda f: picture.save(f, "PNG"))
        self.write_log()
        every = self.args.snapshot_every
        if self.epoch == self.args.epochs or (every and self.epoch % every == 0):
            key = "G_ema" if "G_ema" in self.nets else "G"
            snapshot = self.header() | {"epoch": self.epoch, "step": self.step, key: G.state_dict()}
            write_file(self.out / "snapshots" / f"{name}.pt", lambda f: torch.save(snapshot, f))

    def close(self):
        self.bar.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def elapsed(self):
        return self.seconds + time.perf_counter() - self.clock

    def check(self):
        """Stop at losses or weights that are not finite, before they reach a checkpoint."""
        bad = (~self.losses[: self.done].isfinite()).any(1).nonzero()
        values = [v for net in self.nets.values() for v in net.state_dict().values()]
        if len(bad) or not all(v.isfinite().all() for v in values):
            step = self.step - self.done + int(bad[0]) + 1 if len(bad) else self.step
            raise SystemExit(
                f"step {step:,}: a loss or a weight is no longer finite. {self.out}/checkpoint.pt, "
                "if there is one, is good: --resume with a lower --lr or --precision fp32"
            )

    def header(self):
        """What checkpoints and snapshots begin with; it is enough to build the generator."""
        args = self.args
        shape = {"size": args.size, "z_dim": args.z_dim, "width": args.g_width, "norm": args.norm}
        return {"format": FORMAT, "script": SCRIPT, "generator": shape, "args": vars(args)}

    def save(self):
        """Write checkpoint.pt, whole or not at all."""
        self.check()
        if self.rank:
            return
        self.seconds, self.clock = self.elapsed(), time.perf_counter()
        checkpoint = self.header() | {name: part.state_dict() for name, part in self.parts.items()}
        checkpoint |= {name: getattr(self, name) for name in (*self.STATE, "n_images")}
        checkpoint["losses"] = self.losses[: self.done].clone()
        checkpoint["rng"] = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            rng = getattr(torch, self.device.type).get_rng_state()
            checkpoint["rng"][self.device.type] = rng
        write_file(self.out / "checkpoint.pt", lambda f: torch.save(checkpoint, f))
        self.saved = time.perf_counter()

    def load(self, checkpoint):
        """Take up a checkpoint's state; learning rates are those of the flags."""
        try:
            for name, part in self.parts.items():
                part.load_state_dict(checkpoint[name])
            for name in self.STATE:
                setattr(self, name, checkpoint[name])
            if self.done:
                self.losses[: self.done] = checkpoint["losses"][: self.done]
            torch.set_rng_state(checkpoint["rng"]["cpu"])
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            path = self.out / "checkpoint.pt"
            raise SystemExit(f"{path}: does not fit this run ({first_line(error)})")
        if checkpoint["n_images"] != self.n_images:
            trained = f"{self.n_images:,} images, not the {checkpoint['n_images']:,} of the run"
            raise SystemExit(f"--data {self.args.data}: has {trained} in {self.out}")
        if self.device.type != "cpu" and self.device.type in checkpoint["rng"]:
            getattr(torch, self.device.type).set_rng_state(checkpoint["rng"][self.device.type])
        for opt in self.opts.values():
            for group in opt.param_groups:
                group.update(opt.defaults)
            if opt.defaults.get("capturable"):  # a CPU's checkpoint counts steps on the CPU
                for state in opt.state.values():
                    state["step"] = state["step"].to(self.device)

    def write_log(self):
        """log.csv, and loss.png with a panel per column where matplotlib is installed."""
        text = io.StringIO()
        table = csv.DictWriter(text, self.log[0], lineterminator="\n")
        table.writeheader()
        table.writerows(self.log)
        write_file(self.out / "log.csv", lambda f: f.write(text.getvalue().encode()))
        recent = time.perf_counter() - self.drawn < 10  # as for the checkpoint
        if not find_spec("matplotlib") or (recent and self.epoch < self.args.epochs):
            return
        from matplotlib.figure import Figure

        self.drawn = time.perf_counter()
        figure = Figure(figsize=(3.2 * len(COLUMNS), 2.6), layout="constrained")
        epochs = [row["epoch"] for row in self.log]
        for axes, name in zip(figure.subplots(1, len(COLUMNS)), COLUMNS):
            axes.plot(epochs, [row[name] for row in self.log], marker=".")
            axes.set(title=name, xlabel="epoch")
            axes.grid(alpha=0.3)
        write_file(self.out / "loss.png", lambda f: figure.savefig(f, format="png", dpi=110))


def show(values):
    return "  ".join(f"{name} {v:.3f}" for name, v in zip(COLUMNS, values.tolist()))


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


def find_run(args):
    """The checkpoint that --resume asks for, or None for a new run in an unused --out."""
    path = Path(args.out) / "checkpoint.pt"
    if not args.resume:
        if path.exists() or (path.parent / "args.json").exists():
            raise SystemExit(
                f"--out {args.out}: holds a run already; go on with --resume, or name another"
            )
        return None
    checkpoint = load_checkpoint(path)
    if checkpoint["script"] != SCRIPT or "rng" not in checkpoint:
        raise SystemExit(f"{path}: not a full checkpoint of {SCRIPT} but of {checkpoint['script']}")
    checkpoint["args"]["out"] = args.out
    return checkpoint


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


# ---- Options (shared ones the same in dcgan.py, wgan.py, wgan_gp.py) -----------------------------
# fmt: off


def build_parser():
    parser = argparse.ArgumentParser(
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_data_options(parser)
    add("--g-width", type=positive, default=128, metavar="C",
        help="channels of the generator at size/2, doubling with each halving, 1024 at most "
             "(default 128: 512-256-128 at 32x32)")
    add("--d-width", type=positive, default=64, metavar="C",
        help="the same for the critic (default 64: 64-128-256 at 32x32)")
    add("--norm", choices=("batch", "none"), default="batch",
        help="batch norm in both networks, or nowhere (default batch)")
    add("--clip", type=above_zero, default=0.01, metavar="C",
        help="the critic's weights stay in [-C, C] (default 0.01); larger is slower to reach its "
             "optimum, smaller makes gradients vanish in deep critics")
    add("--n-critic", type=positive, default=5, metavar="N",
        help="critic updates per generator update (default 5)")
    add("--epochs", type=positive, default=100, metavar="N",
        help="passes of the critic over the data (default 100)")
    add("--batch-size", type=positive, default=64, metavar="N",
        help="real images per update (default 64)")
    add("--lr", type=above_zero, default=5e-5, metavar="X",
        help="RMSprop's learning rate, for both networks (default 5e-5)")
    add_run_options(parser)
    return parser


def add_data_options(parser):
    add = parser.add_argument
    add("--data", default="sprites", metavar="SET",
        help="sprites (made here, no download), cifar10, stl10, celeba, lsun-NAME, or the path of "
             "a folder, .zip, .npy or .npz of images (default sprites)")
    add("--classes", nargs="+", metavar="NAME",
        help="train on these classes alone; a wrong name lists the right ones")
    add("--hflip", action="store_true",
        help="mirror every image with probability 1/2; not for text or digits")
    add("--skip-corrupt", action="store_true",
        help="leave unreadable files out and say how many, instead of stopping")
    add("--cache", default="data", metavar="DIR",
        help="folder of downloads and decoded images (default data)")
    add("--size", type=image_size, default=32, metavar="PX",
        help="width and height of the images: 4, 5, 6 or 7 times a power of two, 16 to 256 "
             "(default 32)")
    add("--z-dim", type=positive, default=100, metavar="N",
        help="length of a latent vector (default 100)")


def add_run_options(parser):
    add = parser.add_argument
    add("--lr-decay", action="store_true",
        help="let the learning rate fall linearly to zero over --epochs")
    add("--ema", type=fraction, default=0.999, metavar="D",
        help="decay, per generator update, of the averaged generator that samples come from, "
             "in [0, 1); 0 samples from the raw one (default 0.999)")
    add("--seed", type=not_negative, default=0, metavar="N",
        help="of the weights, the latents and the order of the images (default 0)")
    add("--device", default="auto", metavar="NAME",
        help="auto, cpu, cuda, cuda:1, mps (default auto: cuda, else mps, else cpu)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="bf16 runs the networks under bfloat16 autocast; auto does where the hardware "
             "multiplies bfloat16 (default auto)")
    add("--no-graph", action="store_true",
        help="on CUDA, launch every kernel by itself instead of replaying each iteration as one "
             "recorded graph: slower, the same numbers, and errors name their line")
    add("--snapshot-every", type=not_negative, default=10, metavar="N",
        help="epochs between snapshots of the generator; the last is always kept (default 10)")
    add("--out", default=f"runs/{Path(SCRIPT).stem}", metavar="DIR",
        help="run folder; one in use is refused (default %(default)s)")
    add("--resume", action="store_true",
        help="go on from checkpoint.pt in --out with its flags, some of which may be given anew, "
             "such as --epochs and --lr")


# fmt: on
FREE = (  # flags that a resumed run may give anew
    "data cache skip_corrupt epochs lr betas lr_decay device precision no_graph out resume "
    "snapshot_every"
).split()


def parse_args(argv=None, saved=None):
    """The checked flags; `saved` are those of the run that is resumed."""
    parser = build_parser()
    args = parser.parse_args(argv, argparse.Namespace(**saved or {}))
    for name, value in (saved or {}).items():
        if name not in FREE and getattr(args, name) != value:
            flag = "--" + name.replace("_", "-")
            parser.error(
                f"{flag}: the run in {args.out} has {value}; leave {flag} out to resume it"
            )
    return args


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def not_negative(text):
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return int(text)


def above_zero(text):
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def fraction(text):
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return float(text)


def image_size(text):
    try:
        return int(text) if first_map(int(text)) else 0
    except ValueError:
        sizes = sorted(b << n for n in range(2, 7) for b in (4, 5, 6, 7) if b << n <= 256)
        raise argparse.ArgumentTypeError(f"{text} is none of {' '.join(map(str, sizes))}")


# ---- main ----------------------------------------------------------------------------------------


def main(argv=None):
    args = parse_args(argv)
    checkpoint = find_run(args)
    if checkpoint:
        args = parse_args(argv, checkpoint["args"])
    device, device_name, precision = pick_device(join_processes(args.device), args.precision)
    torch.set_flush_denormal(True)  # on a CPU a denormal costs a hundred times a normal number
    data = args.data, args.size, args.classes, args.cache, args.skip_corrupt
    with first_process_first():
        images, _, _ = load_data(*data)
    images = place(images, args, device)

    torch.manual_seed(args.seed)
    G = Generator(args.size, args.z_dim, args.g_width, args.norm)
    critic = Critic(args.size, args.d_width, args.norm)
    opts = []
    for net in (G, critic):
        net.to(device, memory_format=torch.channels_last)
        capturable = device.type == "cuda"
        opts.append(torch.optim.RMSprop(net.parameters(), args.lr, capturable=capturable))
    parts = {"G": G, "critic": critic, "opt_G": opts[0], "opt_critic": opts[1]}
    if args.ema:
        parts["G_ema"] = copy.deepcopy(G).eval().requires_grad_(False)
    run = Run(args, device, parts, images, checkpoint)
    if args.ema:
        average_weights(parts["G_ema"], G, opts[0], args.ema, run.step)
    if precision == "bf16":
        low_precision(G, device)
        low_precision(critic, device)

    run.start(device_name, precision)
    try:
        train(G, critic, *opts, run, args)
    finally:
        run.close()
    print(f"done in {run.elapsed():,.0f} s: look at {run.out / 'samples'}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
