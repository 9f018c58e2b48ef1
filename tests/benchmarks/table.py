"""How cost grows: each trainer, plain loop against as shipped, over image and batch sizes.

    python tests/benchmarks/table.py
    python tests/benchmarks/table.py --sizes 32 64 --data cifar10-train/

Prints a table in Markdown: images/s, seconds for an epoch of 50,000 images, peak memory, and the
ratio to the plain loop of train_speed.py. Every cell is a process of its own, so that memory is its
own as well: on a GPU what torch allocated there, on a CPU the process beyond its start. The plain
loop's two loader processes are not counted. A cell lasts --seconds or one train step.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import train_speed
from train_speed import dcgan


def resident():
    """Peak memory of this process, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if platform.system() == "Linux" else 1024**2)


def measure(script, way, size, batch_size, data, device, limit):
    """Print images/s and peak MB of one cell."""
    device = torch.device(device)
    torch.set_flush_denormal(True)
    images, _, _ = dcgan.load_data(data, size)
    before = resident()
    if way == "shipped":
        step = train_speed.shipped(script, images, device, batch_size)
    elif script == "dcgan":
        step = train_speed.plain_dcgan(images, device, batch_size)
    else:
        step = train_speed.plain_wasserstein(script, images, device, batch_size)
    for _ in range(5 if device.type == "cuda" else 1):  # warm up, and capture the graph
        step()
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < limit:
        step()
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    speed = count * batch_size * (1 if script == "dcgan" else 5) / (time.perf_counter() - start)
    on_cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_cuda else resident() - before
    print(f"cell {speed} {peak}", flush=True)
    os._exit(0)  # without waiting for the loader processes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--script", nargs="+", default=["dcgan", "wgan", "wgan_gp"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--data", default="sprites")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="at least, of each cell")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        script, way, size, batch_size = args.cell
        numbers = int(size), int(batch_size)
        return measure(script, way, *numbers, args.data, args.device, args.seconds)
    _, name, _ = dcgan.set_up_device(dcgan.parse_args(["--data", "a set", "--device", args.device]))
    print(f"{name} as shipped, torch {torch.__version__}, {platform.python_version()}")
    print("\n| script | size | batch | plain images/s | shipped images/s | ratio "
          "| s per epoch of 50,000 | plain MB | shipped MB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for script in args.script:
        for size in args.sizes:
            for batch_size in args.batch_sizes:
                cells = []
                for way in ("plain", "shipped"):
                    command = [sys.executable, __file__, "--cell", script, way, size, batch_size]
                    command += ["--data", args.data, "--device", args.device]
                    command += ["--seconds", args.seconds]
                    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
                    assert "cell" in done.stdout, done.stderr
                    cells.append([float(x) for x in done.stdout.split("cell ")[1].split()])
                (plain, plain_mb), (fast, fast_mb) = cells
                print(f"| {script} | {size} | {batch_size} | {plain:,.0f} | {fast:,.0f} "
                      f"| {fast / plain:.1f}x | {50000 / fast:,.0f} | {plain_mb:,.0f} "
                      f"| {fast_mb:,.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
