# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch>=2.6", "torchvision>=0.21", "numpy>=2.1", "pillow>=10.1", "tqdm", "matplotlib",
# ]
# ///
"""WGAN: Wasserstein GAN (Martin Arjovsky, Soumith Chintala, Léon Bottou, ICML 2017,
arXiv 1701.07875, Algorithm 1).

The discriminator becomes a critic f: a score without a sigmoid. Where f is K-Lipschitz,
E f(x) - E f(G(z)) is at most K times the Wasserstein-1 distance of data and samples, a bound that
the best f reaches (Kantorovich-Rubinstein duality). Clipping the weights keeps f Lipschitz.

    repeat
        n_critic times:  a batch x of m real images, z ~ N(0, I)
            critic: descend  1/m sum [f(G(z)) - f(x)]
            clip f's weights to [-c, c]
        z ~ N(0, I)
        G: descend  -1/m sum f(G(z))

Both networks minimise, the critic is high on real images, and the logged Wasserstein estimate is
E f(x) - E f(G(z)). An epoch is one pass of the critic over the data, in whole steps.

Usage (each run needs an --out of its own)
    python wgan.py                                    sprites made on the spot, no download
    python wgan.py --data cifar10                     the paper's settings at 32x32
    python wgan.py --data cifar10 --lr 2e-4           learns faster over the first 20 epochs
    python wgan.py --data cifar10 --conditional       conditional on the class, a grid row for each
    python wgan.py --data photos/ --size 64 --out runs/photos
    python wgan.py --out runs/photos --resume         go on where it stopped; the flags are kept

Writes to --out (default runs/ and the name of this file)
    args.json, a copy of this file: how the run was made
    log.csv, loss.png          means over each epoch's steps, and curves (with matplotlib)
    samples/epoch_0001.png     64 images; cell i is of the latent of seed i, in every epoch
    checkpoint.pt              everything a resumed run needs
    snapshots/epoch_0010.pt    the generator alone

Departures from the paper
    1. Samples come from an exponential moving average of G's weights: --ema 0 gives the raw ones.
    2. The authors' code makes 100 critic updates before each of the first 25 generator updates and
       before every 500th; the paper's algorithm does not, nor does this.

The paper's part ends at "Training loop"; from there on the three trainers share nearly all code.
"""

import argparse
import copy
import hashlib
import io
import json
import os
import signal
import sys
import threading
import time
import warnings
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from PIL import Image, ImageOps
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

RANK = int(os.environ.get("RANK", 0))  # of this process in a torchrun
WORLD = int(os.environ.get("WORLD_SIZE", 1))  # its number of processes
THREADS = torch.get_num_threads()  # when this file was imported
MODEL = "wgan.py"  # in checkpoints, whatever this file is called
FORMAT = 2  # of checkpoints and snapshots
THIS_FILE = Path(globals().get("__file__", ""))  # no file in a notebook or `python -`
SCRIPT = THIS_FILE.name if THIS_FILE.is_file() else MODEL
COLUMNS = ("critic_loss", "g_loss", "wasserstein", "clipped")  # train_step's values
# What --data sprites takes instead of the paper's settings
DEMO = {"g_width": 16, "d_width": 16, "batch_size": 16, "epochs": 30, "ema": 0.99}
DEMO.update(lr=6e-4, n_critic=1)

# ---- Networks ------------------------------------------------------------------------------------


def base_resolution(size):
    """(b, n) with size = b * 2**n: the first feature map is b x b, 4 to 7, and doubles n times."""
    n = size.bit_length() - 3  # 4 to 7 are the numbers of three bits
    if n < 2 or size > 256 or size % 2**n:
        raise ValueError(f"{size} is not 4, 5, 6 or 7 times a power of two, 16 to 256")
    return size // 2**n, n


def init_weights(module):
    """Weights about 0, batch-norm scales about 1, of standard deviation 0.02 (DCGAN, section 4)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """z (B, z_dim) -> images (B, 3, size, size) in [-1, 1]. `width`: channels at size/2, doubled at
    each halving, up to 1024. `norm`: "batch" or "none". Shapes in comments are the defaults'.

    If `classes`, their number, is not 0, y (B, classes) is each image's class, one-hot, and is
    concatenated to z (Mirza and Osindero 2014, arXiv 1411.1784).
    """

    def __init__(self, size=32, z_dim=100, width=128, norm="batch", classes=0):
        super().__init__()
        b, n = base_resolution(size)
        c = [min(width * 2**i, 1024) for i in reversed(range(n))]  # channels at b, 2b, ..., size/2
        Norm = nn.BatchNorm2d if norm == "batch" else nn.Identity
        bias = norm == "none"  # a batch norm would subtract it again
        layers = [nn.ConvTranspose2d(z_dim + classes, c[0], b, 1, 0, bias=bias)]  # (B, 512, 4, 4)
        layers += [Norm(c[0]), nn.ReLU(inplace=True)]
        for c_in, c_out in pairwise(c):  # (B, 256, 8, 8), (B, 128, 16, 16)
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=bias)]
            layers += [Norm(c_out), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(c[-1], 3, 4, 2, 1), nn.Tanh()]  # (B, 3, 32, 32)
        self.main = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, z, y=None):
        if y is not None:
            z = torch.cat([z, y], 1)
        return self.main(z[:, :, None, None]).to(z.dtype)  # not autocast's bfloat16


class SpectralNorm(nn.Module):
    """A layer's weight, as a matrix with one row per output, divided by its largest singular value
    (Miyato et al. 2018, arXiv 1802.05957, Algorithm 1); one power step in each training pass."""

    def __init__(self, weight):
        super().__init__()
        U, _, Vh = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
        self.register_buffer("u", U[:, 0].clone())
        self.register_buffer("v", Vh[0].clone())

    def forward(self, weight):
        W = weight.flatten(1)
        with torch.autocast(W.device.type, enabled=False):  # which would multiply in bfloat16
            if self.training:
                with torch.no_grad():
                    self.v.copy_(nn.functional.normalize(W.T @ self.u, dim=0))
                    self.u.copy_(nn.functional.normalize(W @ self.v, dim=0))
            return weight / (self.u.clone() @ (W @ self.v.clone()))  # u, v change before backward


class StableRank(SpectralNorm):
    """SpectralNorm, then all but the leading singular pair shrunk: the stable rank ‖W‖_F² / σ1² is
    at most max(2, `share` of the full rank) (Sanyal et al. 2020, arXiv 1906.04659)."""

    def __init__(self, weight, share):
        super().__init__(weight)
        full_rank = min(self.u.numel(), self.v.numel())
        self.limit = max(2.0, share * full_rank)  # at 1 only u vᵀ is left, which has no gradient

    def forward(self, weight):
        W = super().forward(weight)
        leading = torch.outer(self.u, self.v).view_as(W)
        rest = W - leading
        scale = (self.limit - 1) ** 0.5 / rest.norm().clamp_min(1e-6)  # stable rank 1 + ‖rest‖²
        return leading + scale.clamp(max=1) * rest


class Critic(nn.Module):
    """Images (B, 3, size, size) in [-1, 1] -> scores (B,): higher is more real, without a sigmoid.

    The generator's mirror image, with LeakyReLU(0.2). `norm` is "batch" or "none"; or "spectral",
    or a number in (0, 1]: the largest stable rank of a weight, as a share of its full rank.

    If `classes`, their number, is not 0, the output also judges whether an image fits its class y,
    one-hot (B, classes): the projection of Miyato and Koyama (2018, arXiv 1802.05637, equation 3).
    """

    def __init__(self, size=32, width=64, norm="batch", classes=0):
        super().__init__()
        b, n = base_resolution(size)
        c = [min(width * 2**i, 1024) for i in range(n)]  # channels at size/2, ..., 2b, b
        Norm = nn.BatchNorm2d if norm == "batch" else nn.Identity
        bias = norm != "batch"  # a batch norm would subtract it again
        layers = [nn.Conv2d(3, c[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]  # (B, 64, 16, 16)
        for c_in, c_out in pairwise(c):  # (B, 128, 8, 8), (B, 256, 4, 4)
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1, bias=bias), Norm(c_out)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(c[-1], 1, b, 1, 0)]  # (B, 1, 1, 1)
        self.main = nn.Sequential(*layers)
        self.embed = nn.Linear(classes, c[-1], bias=False) if classes else None
        self.apply(init_weights)
        if norm not in ("batch", "none"):
            Bound = SpectralNorm if norm == "spectral" else partial(StableRank, share=norm)
            for layer in list(self.modules()):  # a list, since the loop adds modules
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    register_parametrization(layer, "weight", Bound(layer.weight))

    def forward(self, x, y=None):
        h = self.main[:-1](x)  # (B, 256, 4, 4)
        scores = self.main[-1](h).flatten()
        if y is not None:  # add yᵀ V φ(x): V is embed, φ(x) the sum of h over its pixels
            scores = scores + (self.embed(y) * h.sum((2, 3))).sum(1)
        return scores.to(x.dtype)  # not autocast's bfloat16


# ---- Objective -----------------------------------------------------------------------------------


def critic_loss(real_scores, fake_scores):
    """E f(G(z)) - E f(x): minus the Wasserstein estimate."""
    return fake_scores.mean() - real_scores.mean()


def generator_loss(fake_scores):
    """-E f(G(z))."""
    return -fake_scores.mean()


@torch.no_grad()
def clip_weights(critic, c):
    """Clip every parameter of the critic to [-c, c]; return the share at -c or c, a tensor."""
    for w in critic.parameters():
        w.clamp_(-c, c)
    return torch.cat([w.flatten() for w in critic.parameters()]).abs().ge(c).float().mean()


# ---- Training ------------------------------------------------------------------------------------


def train_step(G, critic, opt_G, opt_critic, batches, z_dim, clip):
    """The body of Algorithm 1's outer loop on n_critic batches: real images (B, 3, size, size) and
    their classes y, one-hot (B, classes) or None. Returns the last batch's values of COLUMNS."""
    for real, y in batches:  # lines 2 and 3
        z = torch.randn(len(real), z_dim, device=real.device)  # line 4
        with torch.no_grad():  # G is not updated here
            fake = G(z, y)
        c_loss = critic_loss(critic(real, y), critic(fake, y))  # line 5; apart for its batch norm
        optimizer_step(opt_critic, c_loss)  # line 6
        clipped = clip_weights(critic, clip)  # line 7

    z = torch.randn_like(z)  # line 9
    g_loss = generator_loss(critic(G(z, y), y))  # line 10
    optimizer_step(opt_G, g_loss)  # line 11
    return torch.stack([c_loss, g_loss, -c_loss, clipped]).detach()


# ---- Training loop (same in dcgan.py, wgan.py, wgan_gp.py) ---------------------------------------


def optimizer_step(opt, loss):
    """Step opt's parameters down the gradient of `loss`; the other network gets no gradients."""
    parameters = [p for p in opt.param_groups[0]["params"] if p.requires_grad]
    opt.zero_grad()
    loss.backward(inputs=parameters)
    if WORLD > 1:  # the mean over the processes
        for p in parameters:
            dist.all_reduce(p.grad)
            p.grad /= WORLD
    opt.step()


def new_state(parts, count, classes):
    """The state of a new run; a checkpoint holds all of it: networks and optimizers by name, the
    average of G, the sums of the epoch in progress, the number of images, and the log's rows."""
    G_ema = copy.deepcopy(parts["G"]).eval().requires_grad_(False)
    totals = torch.zeros(len(COLUMNS), device=next(G_ema.parameters()).device)
    state = SimpleNamespace(images=count, classes=classes, **parts, G_ema=G_ema, totals=totals)
    state.step = 0  # generator updates
    state.epoch = 0  # finished epochs
    state.seconds = 0.0
    state.log = []
    return state


@torch.no_grad()
def update_ema(G_ema, G, weight):
    """Move G_ema by the share `weight` towards G, batch-norm statistics included."""
    for mean, value in zip(G_ema.state_dict().values(), G.state_dict().values()):
        if mean.is_floating_point():  # not batch norm's count of batches
            mean.lerp_(value, weight)


def to_input(images, hflip=False):
    """uint8 (B, 3, size, size) -> float32 in [-1, 1], each image mirrored at random if `hflip`."""
    x = images.float() / 127.5 - 1
    if hflip:
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, x.flip(-1))
    return x


def run_step(state, train_step, real, onehots, ema_weight, args, bf16):
    """train_step on `real`, uint8 (n_critic, B, 3, size, size), and onehots (n_critic, B, classes)
    or Nones. Adds train_step's values to the totals, and updates the EMA."""
    batches = [(to_input(x, args.hflip), y) for x, y in zip(real, onehots)]
    # autocast's cache would keep bfloat16 copies of weights from before their update
    with torch.autocast(real.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        state.totals += train_step(batches=batches)
    update_ema(state.G_ema, state.G, ema_weight)


def shuffled_indices(n, shape, epoch, seed):
    """Image numbers of an epoch, int64 (steps, *shape), shape (n_critic, B): a permutation given by
    (seed, epoch). np.resize cuts it to whole steps; one shorter than a step is repeated."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return torch.from_numpy(np.resize(order, (max(1, n // np.prod(shape)), *shape)))


def capture(step):
    """Record `step` as a CUDA graph. Returns its replay, which launches all kernels at once and
    runs no Python: numbers computed on the CPU stay as they were recorded."""
    graph = torch.cuda.CUDAGraph()
    with one_line("a train step cannot be captured: in a new process add --resume --no-graph"):
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            step()  # recorded here, not run
    return graph.replay


@contextmanager
def catch_signals():
    """A list that gets the number of a Ctrl-C, SIGTERM or (not on Windows) SIGHUP, so that `train`
    can save first; a second of its kind acts as usual. Handlers and thread count are put back."""
    signals, before = [], {}

    def handler(number, frame):
        signals.append(number)
        signal.signal(number, before[number])

    if WORLD == 1 and threading.current_thread() is threading.main_thread():
        for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                before[number] = signal.signal(number, handler)
    try:
        yield signals
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        torch.set_num_threads(THREADS)  # for what a notebook runs next


def train(state, images, labels, train_step, args, bf16, signals):
    """Run train_step from state.step to the end of --epochs, or until `signals` has an entry. Each
    step reads the same tensors (for CUDA graphs); its seed is (seed, step, process)."""
    device = state.totals.device
    n_critic, B = args.n_critic, args.batch_size
    real = images.new_zeros(n_critic, B // WORLD, *images.shape[1:], device=device)
    onehots = [None] * n_critic
    if state.classes:
        onehots = torch.zeros(n_critic, B // WORLD, len(state.classes), device=device)
    ema_weight = torch.zeros((), device=device)
    step = partial(run_step, state, train_step, real, onehots, ema_weight, args, bf16)
    if device.type == "cuda":  # whose default stream cannot be captured
        torch.cuda.synchronize()
        torch.cuda.set_stream(torch.cuda.Stream())
    first, saved = state.step, state.seconds
    begun = time.perf_counter() - state.seconds  # as if it had run without a pause
    for epoch in range(state.epoch, args.epochs):
        order = shuffled_indices(len(images), (n_critic, B), epoch, args.seed).to(images.device)
        steps = range(state.step, (epoch + 1) * len(order))  # what is left of the epoch
        if tqdm and RANK == 0 and sys.stderr:
            steps = tqdm(steps, leave=False, disable=None)  # None: shown on a terminal only
        for t in steps:
            index = order[t % len(order), :, RANK::WORLD]  # (n_critic, B / WORLD)
            real.copy_(images[index])
            if state.classes:
                onehots.copy_(nn.functional.one_hot(labels[index], len(state.classes)))
            torch.manual_seed(np.random.SeedSequence([args.seed, t, RANK]).generate_state(1)[0])
            ema_weight.fill_(1 - min(args.ema, (1 + t) / (10 + t)))  # a short memory at the start
            if args.lr_decay:  # of both optimizers: they share the tensor
                rate = args.lr * (1 - t / (len(order) * args.epochs))
                state.opt_G.param_groups[0]["lr"].fill_(rate)
            if device.type == "cuda" and t == first + 3 and not args.no_graph:  # after a warm-up
                step = capture(step)
            step()
            state.step += 1
            state.seconds = time.perf_counter() - begun
            if device.type == "cpu":  # on a GPU this would wait for the step
                check_finite([state.totals], state, args)
            if signals or state.seconds > saved + 600:  # every ten minutes
                save(state, args, "checkpoint.pt")
                saved = state.seconds
                if signals:
                    print(f'stopped; go on with python {SCRIPT} --out "{args.out}" --resume')
                    raise SystemExit(128 + signals[0])
        check_finite([state.totals], state, args)
        state.seconds = time.perf_counter() - begun
        end_epoch(state, args)
        if state.epoch == args.epochs or state.seconds > saved + 10:  # 10 s apart or more
            save(state, args, "checkpoint.pt")
            saved = state.seconds


# ---- Run folder (same in dcgan.py, wgan.py, wgan_gp.py) ------------------------------------------


@contextmanager
def lock(out):
    """Lock a run folder, in the first process; the system unlocks it however the process ends."""
    with one_line(f"--out {out}: cannot be written to"):
        Path(out).mkdir(parents=True, exist_ok=True)
        file = open(Path(out, ".lock"), "a")
    with file:
        with one_line(f"--out {out}: another process trains in it"):
            if RANK == 0 and sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            elif RANK == 0:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def restore(state, checkpoint):
    """Bring the state to where a checkpoint left it; --lr and --betas stay those of the flags."""
    for name, value in vars(state).items():
        kept = checkpoint[name]
        if isinstance(value, torch.optim.Optimizer):  # load_state_dict would restore --lr as well
            for i, moments in kept["state"].items():
                p = value.param_groups[0]["params"][i]
                for key, moment in moments.items():  # in p's shape and memory layout
                    target = p.new_zeros(()) if key == "step" else torch.empty_like(p)
                    value.state[p][key] = target.copy_(moment)
        elif isinstance(value, nn.Module):
            value.load_state_dict(kept)
        elif torch.is_tensor(value):
            value.copy_(kept)
        elif name in ("images", "classes") and value != kept:
            raise ValueError(f"{name}: {kept} before, {value} now")
        else:
            setattr(state, name, type(value)(kept))  # an error where it is foreign


def save(state, args, name, keys=None):
    """Write the state, or `keys` of it, to a file of the run folder."""
    generator = {"size": args.size, "z_dim": args.z_dim, "width": args.g_width, "norm": args.norm}
    if state.classes:
        generator["classes"] = len(state.classes)
    checkpoint = {"format": FORMAT, "script": MODEL, "generator": generator, "args": vars(args)}
    for key in keys or vars(state):
        value = getattr(state, key)
        if isinstance(value, nn.Module):
            check_finite(value.state_dict().values(), state, args)
        checkpoint[key] = value.state_dict() if hasattr(value, "state_dict") else value
    ones = torch.ones(1, args.z_dim + len(state.classes))
    checkpoint["image"] = sample(state.G_ema, ones)  # which a rebuilt generator has to make, too
    buffer = io.BytesIO()  # torch.save would hide a full disk's own error
    torch.save(checkpoint, buffer)
    if RANK == 0:
        with one_line(f"{args.out}/{name}: not written; what was there is intact"):
            with atomic(f"{args.out}/{name}") as file:
                file.write(buffer.getbuffer())


def check_finite(tensors, state, args):
    """Exit if a loss or a weight is not finite, before it is saved."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        advice = f"{args.out}/checkpoint.pt is from before: try --resume with a lower --lr"
        raise SystemExit(f"step {state.step:,}: a loss or a weight is not finite; {advice}")


def end_epoch(state, args):
    """Print the epoch's row of the log; write log, sample grid, curves and snapshot."""
    state.epoch += 1
    means = state.totals / (state.step // state.epoch)  # by the steps of an epoch
    if WORLD > 1:
        dist.all_reduce(means)
        means /= WORLD
    state.totals.zero_()
    seen = state.step * args.n_critic * args.batch_size
    row = {"epoch": state.epoch, "step": state.step, "images": seen}
    row["seconds"] = round(state.seconds, 1)
    row.update(zip(COLUMNS, means.tolist()))
    state.log.append(row)
    values = "  ".join(f"{name} {row[name]:.3g}" for name in COLUMNS)
    left = round(state.seconds * (args.epochs / state.epoch - 1))
    speed = f"{seen / state.seconds:,.0f} images/s  {left // 60}:{left % 60:02} left"
    print(f"epoch {state.epoch:>3}/{args.epochs}  {values}  {speed}", flush=True)
    last = state.epoch == args.epochs
    if RANK == 0:
        with one_line(f"{args.out}: the log or the sample grid is not written", warn=True):
            with atomic(f"{args.out}/samples/epoch_{state.epoch:04}.png") as file:
                torchvision.utils.save_image(sample_grid(state, args), file, format="png")
            with atomic(f"{args.out}/log.csv", "w") as file:
                print(*row, sep=",", file=file)
                for line in state.log:
                    print(*line.values(), sep=",", file=file)
        due = last or state.epoch in (1, 2, 5) or state.epoch % 10 == 0  # drawing takes its time
        if due and find_spec("matplotlib"):
            with one_line(f"{args.out}: the curves are not drawn", warn=True):
                draw_curves(state.log, f"{args.out}/loss.png")
    if last or (args.snapshot_every and state.epoch % args.snapshot_every == 0):
        keys = ("G_ema", "epoch", "step", "classes")
        save(state, args, f"snapshots/epoch_{state.epoch:04}.pt", keys)


def sample_grid(state, args):
    """One picture (3, H, W) in [0, 1] of seeds 0 to 63, pixels doubled up to size 32; of a
    conditional generator a row per class, of seeds 0 to 7 and of 64 classes at most."""
    z = latents(range(64), args.z_dim)
    if state.classes:
        onehots = torch.eye(len(state.classes))[:64].repeat_interleave(8, 0)
        z = torch.cat([z[:8].repeat(len(onehots) // 8, 1), onehots], 1)
    grid = torchvision.utils.make_grid(sample(state.G_ema, z)) / 255
    if args.size <= 32:
        grid = grid.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return grid


def draw_curves(log, path):
    """A picture of each column of the log over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(COLUMNS), 2.6), layout="constrained")
    epochs = [row["epoch"] for row in log]
    for axes, name in zip(figure.subplots(1, len(COLUMNS)), COLUMNS):
        axes.plot(epochs, [row[name] for row in log], ".-")
        axes.set(title=name, xlabel="epoch")
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=110)


def write_args(args, device_name):
    """Note in the run folder how the run is made: args.json, and a copy of this script."""
    versions = f"python {sys.version}, torch {torch.__version__}, numpy {np.__version__}"
    info = {"script": SCRIPT, "args": vars(args), "device": device_name, "versions": versions}
    with one_line(f"--out {args.out}: cannot be written to"):
        for folder in ("", "samples", "snapshots"):
            for leftover in Path(args.out, folder).glob(".*.tmp"):  # of a process that was killed
                leftover.unlink()
        with atomic(f"{args.out}/args.json", "w") as file:
            json.dump(info, file, indent=2)
        if THIS_FILE.is_file():
            with atomic(f"{args.out}/{SCRIPT}") as file:
                file.write(THIS_FILE.read_bytes())


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


# ---- Data (same in dcgan.py, wgan.py, wgan_gp.py) ------------------------------------------------

NAMES = ("sprites", "cifar10", "stl10")
SUFFIXES = (*torchvision.datasets.folder.IMG_EXTENSIONS, ".gif", ".avif")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # none runs a program
FORMATS = [kind for kind in FORMATS if kind in Image.registered_extensions().values()]
# key: changes with the images; items: their names in messages; labels: indices into classes
Source = namedtuple("Source", "key items labels classes read")  # read(i): the i-th PIL image


def load_data(data, size, classes=None, cache="data"):
    """Images uint8 (N, 3, size, size), labels int64 (N,) and class names of a data name or path.

    They are decoded once into a file in `cache`, which is mapped into memory: writing to them
    would crash. `classes` keeps those alone; what cannot be read is left out.
    """
    with one_line(f"--data {data}: cannot be read"):
        source = open_data(data, size, cache)
    classes = sorted(classes or source.classes)
    if not set(classes) <= set(source.classes):
        raise SystemExit(f"--classes: {data} has {' '.join(source.classes[:100])}")
    chosen = np.flatnonzero(np.isin(np.take(source.classes, source.labels), classes))
    key = json.dumps(["decoded 3", source.key, size, classes])  # 3: version of the file's layout
    path = Path(cache, f"decoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.u8")
    if not os.path.exists(path):
        print(f"decoding {data}: {len(chosen):,} images")
        with one_line(f"--cache {cache}: images cannot be kept there; name another folder"):
            with atomic(path) as file:
                decode(source, chosen, size, file)
    count = path.stat().st_size // (3 * size * size + 8)  # bytes of an image and its label
    images = np.memmap(path, np.uint8, "r", shape=(count, 3, size, size))
    labels = np.fromfile(path, np.int64, offset=images.size)
    present, labels = np.unique(labels, return_inverse=True)  # numbered without gaps
    classes = [source.classes[label] for label in present]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: the memory is read-only
        images = torch.from_numpy(images)
    return images, torch.from_numpy(labels), classes


def decode(source, chosen, size, file):
    """Write the images numbered `chosen`, then their labels, to a file, but for unreadable ones."""
    failed, small = {}, []

    def read(i):
        try:
            with source.read(i) as image:
                if min(image.size) < size:
                    small.append(i)
                return to_rgb(image, size).tobytes()
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            if getattr(error, "errno", None):  # an error of the disk may be temporary
                raise SystemExit(f"--data: {source.items[i]} cannot be read ({error})")
            failed[i] = f"{source.items[i]} ({str(error).split(' <')[0]})"  # no <_io.BytesIO ...>
            return b""

    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, in all threads
        for part in np.array_split(chosen, len(chosen) // 1024 + 1):  # few are in memory at a time
            file.writelines(pool.map(read, part))
    if failed:
        print(f"{len(failed):,} of them cannot be read: {', '.join(sorted(failed.values())[:3])}")
    if small:
        print(f"{len(small):,} of them are smaller than {size}x{size} and are enlarged")
    if len(failed) == len(chosen):
        raise SystemExit("no image could be read; if they are in a .zip, unpack it")
    kept = [i for i in chosen if i not in failed]
    file.write(np.take(source.labels, kept).astype(np.int64).tobytes())


def check_classes(labels, classes):
    """Print how many images each class has, and what looks like no class."""
    if len(classes) < 2:
        raise SystemExit("--conditional: there is one class; make a sub-folder for each, or labels")
    counts = dict(zip(classes, labels.bincount().tolist()))
    print("classes:", counts)
    for name in classes:
        if counts[name] < 10 or name in (".", "train", "val", "test", "unlabeled"):
            print(f"is {name} a class? If not, pick the rest with --classes, or a sub-folder")


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


# ---- Options -------------------------------------------------------------------------------------


def build_parser():
    parser = argparse.ArgumentParser(
        prog=SCRIPT,
        usage="%(prog)s [flags]; --help lists them",
        description="Train a WGAN (Arjovsky et al. 2017). "
        "Without --data: a short demonstration on sprites, with settings of its own. "
        "The manual page is the docstring of the file.",
        allow_abbrev=False,
    )

    def add(flag, default, text, **options):
        text = f"{text} (default {default})"
        group.add_argument(flag, default=default, type=type(default), help=text, **options)

    def switch(flag, text):
        group.add_argument(flag, action="store_true", help=text)

    group = parser.add_argument_group("data")
    add("--data", "sprites", "sprites, cifar10, stl10, or a folder, .zip, .npy or .npz of images")
    group.add_argument("--classes", nargs="+", help="classes to train on, instead of all")
    switch("--conditional", "condition on the class; grids have a row each")
    switch("--hflip", "mirror images at random; not for text or digits")
    add("--cache", "data", "folder for downloads and decoded images")
    add("--size", 32, "height and width: 4, 5, 6 or 7 times a power of two, 16 to 256")
    group = parser.add_argument_group("networks")
    add("--z-dim", 100, "length of a latent")
    add("--g-width", 128, "channels of the generator at size/2")
    add("--d-width", 64, "channels of the critic at size/2")
    add("--norm", "batch", "norm of both networks", choices=("batch", "none"))
    group = parser.add_argument_group("the paper")
    kinds = ("clip", "spectral", "stable-rank")
    add("--constraint", "clip", "bound of the critic; only clip allows a batch norm", choices=kinds)
    add("--clip", 0.01, "bound c of the weights, in [-c, c]; smaller makes gradients vanish")
    add("--stable-rank", 0.5, "largest stable rank, as a share of a weight's full rank, at most 1")
    add("--n-critic", 5, "critic updates per generator update")
    group = parser.add_argument_group("optimization")
    add("--epochs", 100, "passes of the critic over the data")
    add("--batch-size", 64, "real images per update")
    add("--lr", 5e-5, "learning rate of both networks")
    switch("--lr-decay", "let the learning rate fall linearly to zero")
    add("--ema", 0.999, "decay per update of the averaged generator, which samples come from")
    group = parser.add_argument_group("run")
    add("--seed", 0, "seed of weights, latents and the images' order")
    add("--device", "auto", "cpu, cuda, cuda:1 or mps")
    add("--precision", "auto", "fp32 (on CUDA TF32) or bfloat16", choices=("auto", "fp32", "bf16"))
    switch("--no-graph", "run train_step's Python in every step on CUDA: slower")
    add("--snapshot-every", 10, "epochs between snapshots; the last epoch has one in any case")
    add("--out", f"runs/{Path(SCRIPT).stem}", "run folder")
    switch("--resume", "go on with the run in --out, with its flags")
    return parser


FREE = "data cache epochs lr betas lr_decay device precision no_graph snapshot_every out resume"


def parse_args(argv=None, earlier=None):
    """The checked flags; `earlier` are those of the resumed run, of which only FREE may change."""
    if argv is None and sys.argv[0].endswith("kernel_launcher.py"):  # a notebook's own flags
        argv = []
    parser = build_parser()
    args = parser.parse_args(argv, argparse.Namespace(**(earlier or {})))  # in place of defaults
    if args.data == "sprites" and not earlier:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(argv)
    for name, value in vars(args).items():
        flag = f"--{name.replace('_', '-')}"
        if earlier and name not in FREE.split() and value != earlier.get(name, value):
            parser.error(f"{flag}: the run in {args.out} has {earlier[name]}; leave {flag} out")
        least = 0 if name in ("seed", "snapshot_every", "ema", "gp_weight") else 1e-9
        if type(value) in (int, float) and not least <= value < 2**63:
            parser.error(f"{flag} {value}: must be {'0 or more' if least == 0 else 'above 0'}")
    decays = [args.ema, *getattr(args, "betas", [])]
    if not all(0 <= decay < 1 for decay in decays):
        parser.error("--ema and --betas: must be in [0, 1)")
    if args.batch_size % WORLD and (earlier or not args.resume):  # --resume: main's second call
        parser.error(f"--batch-size {args.batch_size}: must be a multiple of {WORLD} processes")
    if args.stable_rank > 1:
        parser.error(f"--stable-rank {args.stable_rank}: must be at most 1")
    for kind in ("clip", "stable-rank"):
        name = kind.replace("-", "_")
        given = getattr(args, name) != parser.get_default(name)
        if given and args.constraint != kind and (earlier or not args.resume):
            parser.error(f"--{kind}: has no effect on --constraint {args.constraint}")
    try:
        base_resolution(args.size)
    except ValueError as error:
        parser.error(f"--size {error}")
    if args.data not in NAMES:  # absolute, since a resumed run may start from elsewhere
        args.data = os.path.abspath(os.path.expanduser(args.data))
    for name in ("cache", "out"):
        setattr(args, name, os.path.normpath(os.path.expanduser(getattr(args, name))))
    return args


# ---- main ----------------------------------------------------------------------------------------


def build(args, classes, device):
    """Networks and optimizers by name, and train_step with every argument given but `batches`."""
    G = Generator(args.size, args.z_dim, args.g_width, args.norm, classes)
    bounds = {"clip": args.norm, "spectral": "spectral", "stable-rank": args.stable_rank}
    critic = Critic(args.size, args.d_width, bounds[args.constraint], classes)
    mps, cuda = device.type == "mps", device.type == "cuda"
    for net in (G, critic):
        net.to(device, memory_format=torch.contiguous_format if mps else torch.channels_last)
    lr = torch.tensor(args.lr, device=device if cuda else "cpu")  # which --lr-decay fills
    opt_G = torch.optim.RMSprop(G.parameters(), lr=lr, capturable=cuda)
    opt_critic = torch.optim.RMSprop(critic.parameters(), lr=lr, capturable=cuda)
    parts = {"G": G, "critic": critic, "opt_G": opt_G, "opt_critic": opt_critic}
    clip = args.clip if args.constraint == "clip" else float("inf")
    return parts, partial(train_step, **parts, z_dim=args.z_dim, clip=clip)


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


def set_up_device(args):
    """The torch.device, its name, and whether train steps are autocast to bfloat16."""
    device = find_device(args.device)
    name, bf16 = str(device), False
    if device.type == "cuda":
        torch.cuda.set_device(device)
        name = torch.cuda.get_device_name(device)
        bf16 = torch.cuda.get_device_capability(device)[0] >= 8
    elif device.type == "cpu":
        torch.set_num_threads(1 if args.data == "sprites" else THREADS)  # sprites gain no speed
        torch.set_flush_denormal(True)  # a denormal costs a hundred times a normal number
        warnings.filterwarnings("ignore", "The value of the smallest subnormal")  # NumPy's warning
        name = f"cpu (threads: {torch.get_num_threads()})"
        if hasattr(torch.cpu, "_is_avx512_bf16_supported"):
            bf16 = torch.cpu._is_avx512_bf16_supported()
    if args.precision != "auto":
        bf16 = args.precision == "bf16"
    return device, f"{name}, {'bfloat16' if bf16 else 'float32'}", bf16


def join_processes(device):
    """Join the other processes of a torchrun; only the first one prints."""
    options = {"backend": "gloo"}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        options = {"device_id": device}
    dist.init_process_group(timeout=timedelta(hours=12), **options)  # decoding may take its time
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")


def describe(count, args, device_name):
    """Print what is trained, and flags that train longer where there are few steps."""
    print(f"{SCRIPT}: {count:,} images of {args.data} at {args.size}x{args.size}, {device_name}")
    steps = args.epochs * max(1, count // (args.n_critic * args.batch_size))
    print(f"{steps // args.epochs:,} train steps an epoch, {steps:,} in all")
    if args.data == "sprites":
        print("a short demonstration, with", {name: getattr(args, name) for name in DEMO})
    elif steps < 2000 and not args.resume:
        epochs = 1 + 5000 // max(1, count // (args.n_critic * 32))
        flags = f'--batch-size 32 --lr 4e-4 --ema 0.99 --epochs {epochs} --out "{args.out}-longer"'
        print(f"that is few; to the same command add {flags}")


def main(argv=None):
    args, checkpoint = parse_args(argv), None
    path = Path(f"{args.out}/checkpoint.pt")
    if not args.resume and (os.path.exists(path) or os.path.exists(f"{args.out}/log.csv")):
        raise SystemExit(f"--out {args.out}: holds a run; name another folder, or add --resume")
    with lock(args.out):
        if args.resume:
            with one_line(f"{path}: no checkpoint of {MODEL} to go on from"):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
                if (checkpoint["script"], checkpoint["format"]) != (MODEL, FORMAT):
                    raise ValueError(f"of {checkpoint['script']}, format {checkpoint['format']}")
                args = parse_args(argv, {**checkpoint["args"], "out": args.out})
                if args.lr_decay and args.epochs != checkpoint["args"]["epochs"]:
                    print("--lr-decay: --epochs has changed, so the learning rate will jump")
        device, device_name, bf16 = set_up_device(args)
        if WORLD > 1:
            join_processes(device)
        if RANK > 0:  # the first process decodes the images
            dist.barrier()
        images, labels, classes = load_data(args.data, args.size, args.classes, args.cache)
        if WORLD > 1 and RANK == 0:
            dist.barrier()
        if args.conditional:
            check_classes(labels, classes)
        else:
            classes = []
        if device.type == "cuda" and images.numel() < torch.cuda.mem_get_info()[0] // 2:
            images, labels = images.to(device), labels.to(device)  # half of its free memory
        torch.manual_seed(args.seed)
        parts, train_step = build(args, len(classes), device)
        state = new_state(parts, len(images), classes)
        if checkpoint:
            with one_line(f"{path}: does not fit this run"):
                restore(state, checkpoint)
        describe(len(images), args, device_name)
        if state.epoch >= args.epochs:
            print(f"finished at epoch {state.epoch}; to go on, add --epochs {state.epoch + 40}")
        else:
            if RANK == 0:
                write_args(args, device_name)
            if not checkpoint:
                save(state, args, "checkpoint.pt")
            with catch_signals() as signals:
                train(state, images, labels, train_step, args, bf16, signals)
            print(f'done in {state.seconds:,.0f} s; next: python interpolate.py "{args.out}"')
        if WORLD > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # of `| head`
        os._exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error).lower():
            raise  # torch says "allocate", of a CPU's memory and of a GPU's
        sys.exit("out of memory: try a smaller --batch-size, --size, --g-width or --d-width")
