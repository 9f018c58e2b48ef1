"""Do the tests notice? Each mutant is one line of a script made wrong; its tests should fail.

    python tests/benchmarks/mutants.py                 all rows of mutants.txt, about half an hour
    python tests/benchmarks/mutants.py clip_weights    the rows that contain this text
    python tests/benchmarks/mutants.py --root OTHER    on another checkout, where the line occurs

A row of mutants.txt is SCRIPTS | TEST FILES | OLD | NEW, and perhaps | WHY IT MAY LIVE. OLD is
replaced by NEW, once in each of the scripts that has it, in a copy of the project. Prints killed,
LIVES or absent per row, then the counts.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent


def mutate(copy, scripts, old, new):
    """Replace old by new in the scripts of the copy that have it; the texts before, by path."""
    before = {}
    for name in scripts.split():
        text = (copy / name).read_text(encoding="utf-8")
        if old in text:
            before[copy / name] = text
            (copy / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    return before


def killed(copy, tests):
    """Whether one of the test files fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    files = [f"tests/{name}" for name in tests.split() if (copy / "tests" / name).exists()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command + files, cwd=copy, env=environment, capture_output=True)
    return done.returncode != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("text", nargs="?", default="", help="rows that contain this text")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="checkout to test")
    args = parser.parse_args()
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "project")
        ignored = shutil.ignore_patterns(".*", "runs", "data", "docs", "__pycache__")
        shutil.copytree(args.root, copy, ignore=ignored)
        for row in (HERE / "mutants.txt").read_text(encoding="utf-8").splitlines():
            if row.startswith("#") or "|" not in row or args.text not in row:
                continue
            scripts, tests, old, new, *why = [part.strip() for part in row.split(" | ")]
            before = mutate(copy, scripts, old, new)
            verdict = "absent"
            if before:
                verdict = "killed" if killed(copy, tests) else "LIVES"
            for path, text in before.items():
                path.write_text(text, encoding="utf-8")
            counts[verdict] += 1
            print(f"{verdict:7} {scripts}: {old}  ->  {new}  {''.join(why)}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


if __name__ == "__main__":
    main()
