"""Train for 2,000 epochs and watch what a process holds: memory, open files, the log, the time.

    python tests/benchmarks/long_run.py

Each trainer runs on 16 small images, a step an epoch, so that nearly all it does is the work at
the end of an epoch: a row of log.csv, which is written anew, a sample grid and now and then curves.
Prints a row per tenth of the run, then whether memory, files and time stay flat, and what the
growing log.csv costs at the last epoch. Time is the process's own, so that others do not count.
Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "--data set.npy --size 16 --g-width 4 --d-width 4 --z-dim 8 --batch-size 16 --device cpu"


def measure(process, out):
    """Rows of the log so far, MB resident, open files, bytes of the log, seconds of the CPU."""
    proc = Path("/proc", str(process.pid))
    log = Path(out, "log.csv").read_text() if Path(out, "log.csv").exists() else ""
    try:
        pages = int((proc / "statm").read_text().split()[1])
        times = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        files = len([*(proc / "fd").iterdir()])
    except OSError:  # it has ended
        return None
    if not pages:  # ended, but not yet waited for
        return None
    seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return log.count("\n") - 1, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, len(log), seconds


def watch(script, epochs, snapshots):
    """Run a trainer; measurements at its start and after each tenth of the epochs."""
    flags = [*FLAGS.split(), "--epochs", str(epochs), "--snapshot-every", str(snapshots)]
    flags += ["--out", script] + ["--n-critic", "1"] * (script != "dcgan")
    command = [sys.executable, str(ROOT / f"{script}.py"), *flags]
    found = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            now = measure(process, script)
            if now and now[0] > 0 and (not found or now[0] >= len(found) * epochs / 10):
                found.append(now)
                print("{:>9,} {:>9.1f} {:>7} {:>11,} {:>9.1f}".format(*now), flush=True)
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{script}.py ended with {process.returncode}")
    return found


def log_cost(size, rows):
    """Milliseconds in which a log of so many rows and bytes is made and written, as trainers do."""
    sys.path.insert(0, str(ROOT))
    from dcgan import atomic

    row = {name: 0.123456789012345 for name in "abcdefgh"}
    began = time.process_time()
    for _ in range(5):
        table = "".join(",".join(map(str, row.values())) + "\n" for _ in range(rows)).encode()
        with atomic("log.csv") as file:
            file.write(table[:size])
    return (time.process_time() - began) / 5 * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("scripts", nargs="*", default=["dcgan", "wgan", "wgan_gp"])
    parser.add_argument("--epochs", type=int, default=2000, help="of each run (default 2000)")
    parser.add_argument("--snapshot-every", type=int, default=100, help="epochs (default 100)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)
        np.save("set.npy", pixels)
        for script in args.scripts:
            print(f"{script}.py\n    epoch MB memory   files log (bytes)   seconds", flush=True)
            found = watch(script, args.epochs, args.snapshot_every)
            early, middle, late = found[2], found[len(found) // 2 + 1], found[-1]
            first = (middle[4] - early[4]) / (middle[0] - early[0]) * 1000
            last = (late[4] - middle[4]) / (late[0] - middle[0]) * 1000
            memory, files = late[1] - early[1], late[2] - early[2]
            flat = memory < 0.05 * early[1] and files <= 0 and last < 1.3 * first
            cost = log_cost(late[3], late[0])
            print(
                f"{'flat' if flat else 'NOT FLAT'}: {memory:+.1f} MB and {files:+} files from epoch"
                f" {early[0]:,} to {late[0]:,}; {first:.1f} ms an epoch, later {last:.1f}, of which"
                f" log.csv {cost:.1f}; it was written {late[3] * late[0] / 2e6:,.0f} MB in all",
                flush=True,
            )


if __name__ == "__main__":
    main()
