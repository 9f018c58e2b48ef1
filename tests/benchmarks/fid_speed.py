"""fid.py against pytorch-fid, end to end, and its distance against scipy's matrix square root.

    python tests/benchmarks/fid_speed.py --data cifar10-train/

Writes --n PNGs a side (2,000 by default) and random weights of the whole Inception network, then
times both programs as a user starts them: `python -m pytorch_fid A B` and `python fid.py A B`, in
float32 and, with --bf16, in bfloat16, imports and the distance included, --turns times each in
turn. Both get the same images, the same weights and the same threads. pytorch-fid finds the weights
where its download would have put them. Peak memory is that of the process (Linux, macOS).
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
import torchvision
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fid

ROOT = Path(fid.__file__).resolve().parent


def random_weights():
    """A state dict of the whole network whose features neither vanish nor explode."""
    torch.manual_seed(0)
    net = torchvision.models.inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False
    )
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net.state_dict()


def run(*command, **env):
    """(seconds, peak MB, what it printed) of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} failed"
    unit = 1024 if platform.system() == "Linux" else 1024**2
    return time.perf_counter() - start, usage.ru_maxrss / unit, printed.strip()


def seconds(function, turns=3):
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def distances():
    """The distance alone: at full rank and of few images, against sqrtm of the product."""
    rng = np.random.default_rng(0)
    spectrum = np.sqrt(np.arange(1, 2049) ** -1.2)
    x, y = (rng.normal(size=(5000, 2048)) * spectrum @ rng.normal(size=(2048, 2048)) / 45
            for _ in range(2))  # fmt: skip

    def ours(n):
        a, b = (fid.summarize(fid.Set(), moments) for moments in sums[n])
        return fid.frechet_distance(a, b)

    def theirs():
        a, b = np.cov(x.T), np.cov(y.T)
        root = scipy.linalg.sqrtm(a @ b).real
        apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
        return apart + np.trace(a) + np.trace(b) - 2 * np.trace(root)

    sums = {n: [fid.moments(torch.from_numpy(z[:n])) for z in (x, y)] for n in (1000, 5000)}
    slow, fast = seconds(theirs, 1), seconds(lambda: ours(5000))
    small = seconds(lambda: ours(1000))
    print(f"distance at 2048: sqrtm {slow:.2f} s, fid.py {fast:.2f} s ({slow / fast:.1f}x), at N = "
          f"1000 {small:.2f} s ({slow / small:.0f}x); they differ by "
          f"{abs(ours(5000) / theirs() - 1):.0e} relative", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="sprites")
    parser.add_argument("--n", type=int, default=2000, help="images a side")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"python {platform.python_version()}")  # fmt: skip
    distances()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source = fid.open_data(args.data, 32, "data")
        for side, start in (("a", 0), ("b", 1)):
            (folder / side).mkdir()
            step = len(source.items) // args.n if args.n * 2 <= len(source.items) else 1
            for i in range(args.n):
                with source.read((i * step + start) % len(source.items)) as image:
                    pixels = fid.to_rgb(image).transpose(1, 2, 0)
                Image.fromarray(pixels).save(folder / side / f"{i}.png")
        weights = folder / "hub" / "checkpoints" / fid.URL.rpartition("/")[2]
        weights.parent.mkdir(parents=True)
        torch.save(random_weights(), weights)
        sides = folder / "a", folder / "b"
        ours = [ROOT / "fid.py", *sides, "--allow-few"]
        commands = {"pytorch-fid": ["-m", "pytorch_fid", *sides], "fid.py, float32": ours}
        if args.bf16:
            commands["fid.py, bfloat16"] = [*ours, "--precision", "bf16"]
        found = {name: [] for name in commands}
        for turn in range(args.turns):
            for name, command in commands.items():
                cache = ["--cache", folder / f"{name}{turn}"] if "fid.py" in name else []
                found[name].append(run(*command, *cache, TORCH_HOME=str(folder)))
        base = statistics.median(row[0] for row in found["pytorch-fid"])
        for name, rows in found.items():
            times = [row[0] for row in rows]
            middle = statistics.median(times)
            print(f"{name:18} {middle:7.1f} s ({min(times):.1f} to {max(times):.1f})  "
                  f"{base / middle:.2f}x  peak {max(row[1] for row in rows):,.0f} MB  "
                  f"{rows[0][2].splitlines()[-1].split('/')[0]}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
