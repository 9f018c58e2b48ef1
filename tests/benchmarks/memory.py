"""Train on a set ten times the size of the memory that is left, and show the peak.

    python tests/benchmarks/memory.py

Writes an .npy of random images (2 GB by default, --megabytes) into a temporary folder, then runs
one epoch of dcgan.py with small networks in a process that may allocate no more than a tenth of
that beyond what importing torch takes (RLIMIT_DATA: heap and private maps; the mapped file itself
is in the page cache). The limit holds while the set is decoded, too. A control reads the file into
memory under the same limit, and has to fail. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LIMITED = """
import resource, sys, numpy as np
import dcgan, torch
torch.nn.Conv2d(3, 8, 3)(torch.randn(1, 3, 16, 16)).sum().backward()  # libraries load and settle

def kilobytes(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

limit = kilobytes("VmData") + int(sys.argv[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (limit * 1024, limit * 1024))
before = kilobytes("RssAnon")
if sys.argv[2] == "control":
    np.array(np.load("images.npy", mmap_mode="r"))
    sys.exit("the control fitted into memory: raise --megabytes")
dcgan.main(sys.argv[3:])
print(f"{kilobytes('RssFile') / 1024:,.0f} MB of files mapped and resident at the end (page cache)")
print(f"{(kilobytes('RssAnon') - before) / 1024:,.0f} MB allocated beyond the libraries' own")
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the set")
    args = parser.parse_args()
    n = args.megabytes * 2**20 // (64 * 64 * 3)
    with tempfile.TemporaryDirectory() as folder:
        images = np.lib.format.open_memmap(
            Path(folder, "images.npy"), mode="w+", dtype=np.uint8, shape=(n, 64, 64, 3)
        )
        rng = np.random.default_rng(0)
        for start in range(0, n, 4096):
            part = images[start : start + 4096]
            part[:] = rng.integers(0, 256, part.shape, np.uint8)
        images.flush()
        allowed = args.megabytes // 10
        print(
            f"{n:,} images of 64x64, {args.megabytes:,} MB; {allowed} MB allowed",
            flush=True,
        )
        flags = "--data images.npy --size 64 --epochs 1 --g-width 2 --d-width 2 --batch-size 64"
        for kind in ("control", "train"):
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    LIMITED,
                    str(allowed),
                    kind,
                    *flags.split(),
                    "--device",
                    "cpu",
                ],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=kind == "control",
                text=True,
            )
            if kind == "control":
                print("control, the file read into memory:", done.stderr.strip().splitlines()[-1])
            else:
                print("trained from the memory-mapped file" if done.returncode == 0 else "FAILED")


if __name__ == "__main__":
    main()
