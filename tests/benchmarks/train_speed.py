"""Training speed of the trainers as shipped against plain eager loops of the same networks.

    python tests/benchmarks/train_speed.py
    python tests/benchmarks/train_speed.py --script wgan_gp --data cifar10-train/ --parts

The plain loop is what public repositories do: contiguous float32 tensors, a DataLoader with two
workers, ToTensor and Normalize, losses read with .item() in every iteration, gradients of the
discriminator's weights computed in the generator's step as well; for the Wasserstein GANs two calls
of the critic and fakes still attached to the generator. The two take turns, a few iterations each,
and the ratio is the median of those turn by turn, so that a noisy machine disturbs both. --parts
also takes the shipped loop's measures away one by one.
"""

import argparse
import copy
import importlib
import itertools
import math
import platform
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dcgan


class Pictures(torch.utils.data.Dataset):
    """PIL images through ToTensor and Normalize, one at a time, as torchvision's sets give them."""

    def __init__(self, images):
        self.images = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        half = (0.5, 0.5, 0.5)
        self.to_tensor = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(half, half)]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.to_tensor(Image.fromarray(self.images[i])), 0


def loader(images, batch_size):
    data = Pictures(images)
    return torch.utils.data.DataLoader(data, batch_size, True, num_workers=2, drop_last=True)


def forever(loader):
    while True:
        yield from loader


def networks(script, device, size=32):
    torch.manual_seed(0)
    module = importlib.import_module(script)
    second = module.Discriminator if script == "dcgan" else module.Critic
    return [net.to(device) for net in (module.Generator(size), second(size))]


def optimizers(script, G, D, fused=None, capturable=False):
    how = {"fused": fused, "capturable": capturable}
    for net in (G, D):
        if script == "dcgan":
            yield torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), **how)
        elif script == "wgan":
            yield torch.optim.RMSprop(net.parameters(), 5e-5, capturable=capturable)
        else:
            yield torch.optim.Adam(net.parameters(), 1e-4, (0.0, 0.9), **how)


def plain_dcgan(images, device, batch_size):
    G, D = networks("dcgan", device, images.shape[-1])
    opt_G, opt_D = optimizers("dcgan", G, D)
    batches = forever(loader(images, batch_size))
    criterion = nn.BCELoss()
    ones, zeros = torch.ones(batch_size, device=device), torch.zeros(batch_size, device=device)

    def step():
        real = next(batches)[0].to(device)
        D.zero_grad()
        output = torch.sigmoid(D(real))
        loss_real = criterion(output, ones)
        loss_real.backward()
        D_x = output.mean().item()
        fake = G(torch.randn(batch_size, 100, device=device))
        output = torch.sigmoid(D(fake.detach()))
        loss_fake = criterion(output, zeros)
        loss_fake.backward()
        D_G_z = output.mean().item()
        opt_D.step()
        G.zero_grad()
        output = torch.sigmoid(D(fake))
        g_loss = criterion(output, ones)
        g_loss.backward()
        opt_G.step()
        return (loss_real + loss_fake).item(), g_loss.item(), D_x, D_G_z

    return step


def plain_wasserstein(script, images, device, batch_size):
    G, critic = networks(script, device, images.shape[-1])
    opt_G, opt_critic = optimizers(script, G, critic)
    batches = forever(loader(images, batch_size))

    def step():
        for _ in range(5):
            real = next(batches)[0].to(device)
            fake = G(torch.randn(batch_size, 100, device=device))
            loss = critic(fake).mean() - critic(real).mean()
            if script == "wgan_gp":
                eps = torch.rand(batch_size, 1, 1, 1, device=device)
                x_hat = (eps * real.data + (1 - eps) * fake.data).requires_grad_(True)
                scores = critic(x_hat)
                ones = torch.ones_like(scores)
                slope = torch.autograd.grad(scores, x_hat, ones, create_graph=True)[0]
                loss = loss + 10 * ((slope.view(batch_size, -1).norm(2, dim=1) - 1) ** 2).mean()
            opt_critic.zero_grad()
            loss.backward()
            opt_critic.step()
            if script == "wgan":
                for p in critic.parameters():
                    p.data.clamp_(-0.01, 0.01)
        opt_G.zero_grad()
        g_loss = -critic(G(torch.randn(batch_size, 100, device=device))).mean()
        g_loss.backward()
        opt_G.step()
        return loss.item(), g_loss.item()

    return step


def shipped(script, images, device, batch_size, precision="auto", channels_last=True, without=None):
    """The script's own iteration, set up as its main() does; `without` takes a measure away."""
    module = importlib.import_module(script)
    G, D = networks(script, device, images.shape[-1])
    if channels_last:
        for net in (G, D):
            net.to(memory_format=torch.channels_last)
    opts = list(optimizers(script, G, D, fused=True, capturable=device.type == "cuda"))
    module.average_weights(copy.deepcopy(G).requires_grad_(False), G, opts[0], 0.999, 0)
    if module.pick_device(str(device), precision)[2] == "bf16":
        module.low_precision(G, device)
        module.low_precision(D, device)
    n_critic = 1 if script == "dcgan" else 5
    extra = {"dcgan": (), "wgan": (0.01,), "wgan_gp": (10.0,)}[script]
    if device.type == "cuda" and without != "memory":
        images = images.to(device)
    if without == "products":
        for net in (G, D):
            for layer in net.modules():
                layer.__dict__.pop("forward", None) if layer is not net else None

    flags = f"--batch-size {batch_size} --epochs 1000000 --size {images.shape[-1]}".split()
    args = module.parse_args([*flags, *["--no-graph"] * (without == "graph")])
    run = module.Run(args, device, {"G": G, "D": D, "opt_G": opts[0], "opt_D": opts[1]}, images)
    if without == "memory":  # as if they did not fit on the device: a thread reads ahead
        run.batches = torch.empty(n_critic, batch_size, *images.shape[1:], dtype=torch.uint8)
        run.batches = run.batches.to(device)
    run.saved = math.inf  # no checkpoints
    run.bar = SimpleNamespace(update=lambda n: None, set_postfix_str=lambda text, refresh: None)

    def iterate():
        reals = [module.to_input(batch) for batch in run.draw()]
        descend = module.descend
        if without == "inputs":  # gradients of all parameters, as .backward() alone computes them
            module.descend = backward_all(opts)
        try:
            real = reals[0] if script == "dcgan" else reals
            run.record(module.iteration(G, D, *opts, real, 100, *extra))
        finally:
            module.descend = descend

    def iterations():
        for epoch in itertools.count():
            run.done = 0
            yield from run.iterations(
                module.epoch_batches(len(images), batch_size, n_critic, epoch, 0)
            )

    iterate, going = module.replayed(iterate, opts, args, device), iterations()

    def step():
        next(going)
        iterate()

    if without == "one call":
        forward = D.forward

        def in_halves(x):
            return torch.cat([forward(part) for part in x.split(batch_size)])

        D.forward = in_halves
    return step


def backward_all(opts):
    def descend(opt, loss):
        for each in opts:
            each.zero_grad()
        loss.backward()
        opt.step()

    return descend


def take_turns(steps, images_per_step, turns, length, device):
    """{name: seconds of each turn per image}; the first turn warms up."""
    seconds = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            time.sleep(0.5)  # until the plain loop's workers have filled their queues
            start = time.perf_counter()
            for _ in range(length):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                per_image = (time.perf_counter() - start) / (length * images_per_step)
                seconds[name].append(per_image)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--script", nargs="+", default=["dcgan", "wgan", "wgan_gp"])
    parser.add_argument("--data", default="sprites")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--length", type=int, default=0, help="iterations in a turn")
    parser.add_argument("--parts", action="store_true", help="take the measures away one by one")
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # for both: it is a setting of each thread
    device = torch.device(args.device)
    images, _, _ = dcgan.load_data(args.data, 32)
    _, name, precision = dcgan.pick_device(args.device, "auto")
    versions = f"torch {torch.__version__}, python {platform.python_version()}"
    print(f"{name}, {precision} by default, {versions}; {len(images):,} images of {args.data};")
    print(f"medians of {args.turns} turns (slowest to fastest turn)\n")
    for script in args.script:
        batch_size, n_critic = (128, 1) if script == "dcgan" else (64, 5)
        plain = plain_dcgan if script == "dcgan" else lambda *a, s=script: plain_wasserstein(s, *a)
        setting = (images, device, batch_size)
        steps = {"plain": plain(*setting), "shipped": shipped(script, *setting)}
        if args.parts:
            steps["shipped, float32"] = shipped(script, *setting, precision="fp32")
            steps["shipped, contiguous"] = shipped(script, *setting, channels_last=False)
            steps["shipped, convolutions"] = shipped(script, *setting, without="products")
            steps["shipped, all gradients"] = shipped(script, *setting, without="inputs")
            steps["shipped, read from disk"] = shipped(script, *setting, without="memory")
            if device.type == "cuda":
                steps["shipped, no graph"] = shipped(script, *setting, without="graph")
            if script == "wgan_gp":
                steps["shipped, two critic calls"] = shipped(script, *setting, without="one call")
        length = args.length or (12 if script == "dcgan" else 4)
        seconds = take_turns(steps, batch_size * n_critic, args.turns, length, device)
        print(
            f"{script}, batch {batch_size}, {n_critic} update(s) of the second network an iteration"
        )
        for label, times in seconds.items():
            speed = [1 / t for t in times]
            ratio = [a / b for a, b in zip(seconds["plain"], times)]
            print(
                f"  {label:28} {statistics.median(speed):8,.0f} images/s "
                f"({min(speed):,.0f} to {max(speed):,.0f})   {statistics.median(ratio):5.2f}x plain"
            )
        print(flush=True)


if __name__ == "__main__":
    main()
