"""Training speed of the trainers as shipped against plain eager loops of the same networks.

    python tests/benchmarks/train_speed.py
    python tests/benchmarks/train_speed.py --script wgan_gp --data cifar10-train/ --parts

The plain loop is what public repositories do: contiguous float32 tensors, a DataLoader with two
workers, ToTensor and Normalize, losses read with .item() in every step, gradients of the
discriminator's weights computed in the generator's step as well; for the Wasserstein GANs two calls
of the critic and fakes still attached to the generator. The two take turns, a few steps each, and
the ratio is the median of those turn by turn, so that a noisy machine disturbs both. --parts also
takes the shipped loop's measures away one by one.

Beside each speed stands the share of the machine's own rate of multiplying matrices, of 2048 x 2048
in float32 or, where the networks run in it, bfloat16: how near the limit the loop is. The
operations of a train step are counted by torch.utils.flop_counter's formulas.
"""

import argparse
import importlib
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
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
    """The script's own train step, set up as its main() and train() do; `without` takes a measure
    away."""
    module = importlib.import_module(script)
    flags = ["--data", "a set", "--size", images.shape[-1], "--batch-size", batch_size]
    flags += ["--device", device, "--precision", precision]
    args = module.parse_args([str(flag) for flag in flags])
    bf16 = module.set_up_device(args)[2]
    if device.type == "cuda":  # whose default stream cannot be captured
        torch.cuda.synchronize()
        torch.cuda.set_stream(torch.cuda.Stream())
    torch.manual_seed(0)
    parts, train_step = module.build(args, 0, device)
    second_name = "D" if script == "dcgan" else "critic"
    second = parts[second_name]
    if not channels_last:
        for net in (parts["G"], second):
            net.to(memory_format=torch.contiguous_format)
    state = module.new_state(parts, len(images), [])
    if device.type == "cuda" and without != "memory":
        images = images.to(device)
    shape = args.n_critic, batch_size
    real = torch.zeros(*shape, *images.shape[1:], dtype=torch.uint8, device=device)
    weight = torch.full((), 1e-3, device=device)
    absent = [None] * args.n_critic
    plain_step = partial(module.run_step, state, train_step, real, absent, weight, args, bf16)
    order, todo = [], {"step": plain_step}

    def one():
        if not order:
            epoch = module.shuffled_indices(len(images), shape, state.step, 0)
            order.extend(epoch.to(images.device))
        real.copy_(images[order.pop()])
        torch.manual_seed(state.step)
        weight.fill_(1e-3)
        optimizer_step = module.optimizer_step
        if without == "inputs":  # gradients of all parameters, as .backward() alone computes them
            module.optimizer_step = backward_all([parts["opt_G"], parts[f"opt_{second_name}"]])
        if device.type == "cuda" and without != "graph" and state.step == 3:
            todo["step"] = module.capture(plain_step)
        todo["step"]()
        module.optimizer_step = optimizer_step
        state.step += 1

    one.train_step = plain_step
    return one


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and convolutions."""

    count = 0

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        made = kernel(*args, **(kwargs or {}))
        if kernel._overloadpacket in flop_registry:
            self.count += flop_registry[kernel._overloadpacket](
                *args, **(kwargs or {}), out_val=made
            )
        return made


def matrix_rate(device, dtype, n=2048):
    """Operations per second of products of n x n matrices, the best of ten, by the faster of the
    libraries that torch uses: for matrix products, and for convolutions of 1 x 1."""
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    image = a.view(32, 64, 1, n).permute(0, 3, 1, 2)  # channels_last, (32, n, 64, 1)
    times = []
    for product in [lambda: a @ b, lambda: nn.functional.conv2d(image, b.view(n, n, 1, 1))] * 10:
        start = time.perf_counter()
        product()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def backward_all(opts):
    def optimizer_step(opt, loss):
        for each in opts:
            each.zero_grad()
        loss.backward()
        opt.step()

    return optimizer_step


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
    parser.add_argument("--precision", default="auto", help="of the shipped loop: fp32, bf16")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--length", type=int, default=0, help="train steps in a turn")
    parser.add_argument("--parts", action="store_true", help="take the measures away one by one")
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # for both: it is a setting of each thread
    device = torch.device(args.device)
    images, _, _ = dcgan.load_data(args.data, 32)
    flags = ["--data", args.data, "--device", args.device, "--precision", args.precision]
    _, name, bf16 = dcgan.set_up_device(dcgan.parse_args(flags))
    precision = "bf16" if bf16 else "fp32"
    versions = f"torch {torch.__version__}, python {platform.python_version()}"
    print(f"{name} by default, {versions}; {len(images):,} images of {args.data};")
    dtypes = [torch.float32, torch.bfloat16][: 1 + (precision == "bf16")]
    rates = {dtype: matrix_rate(device, dtype) for dtype in dtypes}
    print(", ".join(f"{str(d)[6:]} products {r / 1e9:,.0f} GFLOP/s" for d, r in rates.items()))
    print(f"medians of {args.turns} turns (slowest to fastest turn)\n")
    for script in args.script:
        batch_size, n_critic = (128, 1) if script == "dcgan" else (64, 5)
        plain = plain_dcgan if script == "dcgan" else lambda *a, s=script: plain_wasserstein(s, *a)
        setting = (images, device, batch_size)
        steps = {"plain": plain(*setting), "shipped": shipped(script, *setting, args.precision)}
        if args.parts:
            steps["shipped, float32"] = shipped(script, *setting, precision="fp32")
            steps["shipped, contiguous"] = shipped(script, *setting, channels_last=False)
            steps["shipped, all gradients"] = shipped(script, *setting, without="inputs")
            steps["shipped, read from disk"] = shipped(script, *setting, without="memory")
            if device.type == "cuda":
                steps["shipped, no graph"] = shipped(script, *setting, without="graph")
        length = args.length or (12 if script == "dcgan" else 4)
        seconds = take_turns(steps, batch_size * n_critic, args.turns, length, device)
        with Flops() as flops:
            steps["shipped"].train_step()
        per_image = flops.count / (batch_size * n_critic)
        print(
            f"{script}, batch {batch_size}, {n_critic} batch(es) a step, {per_image / 1e6:,.0f} ",
            end="",
        )
        print("MFLOP an image")
        for label, times in seconds.items():
            speed = [1 / t for t in times]
            ratio = [a / b for a, b in zip(seconds["plain"], times)]
            low = precision == "bf16" and label not in ("plain", "shipped, float32")
            share = (
                statistics.median(speed) * per_image / rates[[torch.float32, torch.bfloat16][low]]
            )
            print(
                f"  {label:28} {statistics.median(speed):8,.0f} images/s "
                f"({min(speed):,.0f} to {max(speed):,.0f})   {statistics.median(ratio):5.2f}x plain"
                f"   {share:4.0%} of {'bfloat16' if low else 'float32'} products"
            )
        print(flush=True)


if __name__ == "__main__":
    main()
