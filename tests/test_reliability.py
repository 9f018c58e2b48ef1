"""Nothing lost, nobody let in: kills, full disks, hostile files and numbers that diverge.

    pytest tests/test_reliability.py                                          a sample of all
    CAMPAIGN=100 CAMPAIGN_REPORT=counts.md pytest tests/test_reliability.py   the campaign

CAMPAIGN is the size in percent of the campaign, which is over 300 kills and 20,000 hostile inputs.
CAMPAIGN_SEED names others. The table says of each fault how often it was tried and how it ended.
"""

import builtins
import csv
import inspect
import io
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gallery import Gallery, page, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dcgan
import fid
import interpolate
import scrape_spirits
import wgan
import wgan_gp

SIZE, SEED = (int(os.environ.get(name, 0)) for name in ("CAMPAIGN", "CAMPAIGN_SEED"))
TRAINERS = {module.SCRIPT[:-3]: module for module in (dcgan, wgan, wgan_gp)}
ALL = TRAINERS | {"fid": fid, "interpolate": interpolate, "scrape_spirits": scrape_spirits}
FILES = {module.__file__: name for name, module in ALL.items()}
TINY = "--data set --size 16 --g-width 4 --d-width 4 --z-dim 8 --batch-size 16 --epochs 6".split()
TINY += ["--snapshot-every", "3", "--device", "cpu"]
COUNTS = defaultdict(Counter)  # of each row of the report: outcome -> times

resource = pytest.importorskip("resource", reason="SIGKILL, limits and mounts are POSIX")
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # numpy's own
]


def times(full, sample):
    """How often something is tried: `full` in the whole campaign, `sample` times every day."""
    return max(sample, full * SIZE // 100)


@pytest.fixture(scope="module", autouse=True)
def report(request):
    """Like the children: one thread, no matplotlib, which costs a quarter of a second an epoch."""
    threads, hidden = torch.get_num_threads(), sys.modules.get("matplotlib")
    torch.set_num_threads(1)
    sys.modules["matplotlib"] = None
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("matplotlib")
    sys.modules |= {"matplotlib": hidden} if hidden else {}
    lines = ["| fault | times | outcomes |", "|---|---|---|"]
    for row, found in sorted(COUNTS.items()):
        outcomes = ", ".join(f"{n:,} {what}" for what, n in found.most_common())
        lines += [f"| {row} | {found.total():,} | {outcomes} |"]
    if SIZE:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("", *lines, sep="\n")
    if path := os.environ.get("CAMPAIGN_REPORT"):
        Path(path).write_text("\n".join(lines) + "\n")


@pytest.fixture
def rng(request):
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with 83 small pictures of two classes: five batches of 16."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    for i in range(83):
        Path("set", "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(f"set/{'ab'[i % 2]}/{i}.png")
    return tmp_path


# ---- Faults: in a process of its own, or in this one ---------------------------------------------


def watch(happens):
    """open(), os.fsync and os.replace that call happens() first, and write() in mid-write."""
    import builtins
    import io
    import os

    plain_open, fsync, replace = builtins.open, os.fsync, os.replace

    class File(io.FileIO):
        def write(self, data):
            data = memoryview(data).cast("B")
            done = super().write(data[: len(data) // 2])
            happens()
            return done + super().write(data[done:])

    def watched_open(path, mode="r", buffering=-1, **options):
        if mode not in ("wb", "a+b"):
            return plain_open(path, mode, buffering, **options)
        happens()
        return io.BufferedWriter(File(path, mode)) if buffering else File(path, mode)

    return watched_open, lambda fd: [happens(), fsync(fd)], lambda *a: [happens(), replace(*a)]


def launch(fault, moment, script, *flags):
    """Run a script. At the `moment`, a count of file operations or seconds, it sends itself the
    signal `fault`, noting what it was at; the fault FSIZE is a limit on files, of so many bytes."""
    import builtins
    import os
    import random
    import resource
    import runpy
    import signal
    import sys
    import threading
    import time

    if "scrape" not in script:
        pass
    if "gan" in script:
        import torchvision  # noqa: F401
    moment, count, clock, jumps = float(moment), [0], [0.0], random.Random(moment)

    def strike(frame=None):
        names = []
        frame = frame or sys._current_frames()[threading.main_thread().ident]
        while frame:
            names += [frame.f_code.co_name] if frame.f_code.co_filename == script else []
            frame = frame.f_back
        os.write(notes, f"{'/'.join(names)}\n".encode())
        os.kill(os.getpid(), getattr(signal, fault))

    def happens():
        count[0] += 1
        if count[0] == moment:
            strike(sys._getframe())

    def passing():  # checkpoints come after 10 s at the end of an epoch, after 600 s within one
        clock[0] += jumps.choice((1, 1, 2, 4, 700))
        return clock[0]

    notes = os.open("moments", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.argv, sys.modules["matplotlib"] = [script, *flags], None
    time.perf_counter = passing
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    if fault == "FSIZE":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(moment), int(moment)))
    elif moment == int(moment):
        builtins.open, os.fsync, os.replace = watch(happens)
    else:
        timer = threading.Timer(moment, strike)
        timer.daemon = True
        timer.start()
    runpy.run_path(script, run_name="__main__")


LAUNCH = "\n".join([*map(inspect.getsource, (watch, launch)), "import sys; launch(*sys.argv[1:])"])


def child(fault, moment, module, *flags):
    """The finished process in which `fault` befell a script, and what the script was doing."""
    Path("moments").write_text("")
    command = [sys.executable, "-c", LAUNCH, fault, moment, module.__file__, *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*map(str, command)], env=env, **pipes)
    assert "Traceback" not in done.stderr or done.returncode == -9, done.stderr
    return done, moment_of(Path("moments").read_text())


def moment_of(names):
    known = {"decode": "decoding", "save_checkpoint": "checkpoint", "end_epoch": "picture or log"}
    known |= {"load_data": "reading data", "train": "training", "write_folder": "sampling"}
    known |= {"add": "picture or manifest", "collect": "fetching", "save": "sampling"}
    found = [known[name] for name in names.strip().split("/") if name in known]
    return found[0] if found else "starting or ending"


@contextmanager
def faulty_disk(monkeypatch, at, lasting=True):
    """A disk that is full at the at-th file operation and, if `lasting`, ever after; a clock on
    which checkpoints are due often, as in launch()."""
    count, clock, jumps = [0], [0.0], random.Random(at)

    def passing():
        clock[0] += jumps.choice((1, 1, 2, 4, 700))
        return clock[0]

    def happens():
        count[0] += 1
        if count[0] == at or (lasting and count[0] > at > 0):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        opened, fsync, replace = watch(happens)
        patch.setattr(builtins, "open", opened)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        patch.setattr(time, "perf_counter", passing)
        yield count


GUARD = SimpleNamespace(allowed=None, broken=[])


def audit(event, args):
    """While GUARD.allowed lists folders: note files that are changed elsewhere, and programs."""
    if GUARD.allowed is None:
        return
    changed = []
    if event == "open" and isinstance(args[0], (str, bytes)):
        writes = (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        changed = [args[0]] if writes else []
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link"):
        changed = [arg for arg in args[:2] if isinstance(arg, (str, bytes))]
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"):
        GUARD.broken.append(f"{event} {args}")
    for path in (os.path.abspath(os.fsdecode(path)) for path in changed):
        if not path.startswith((*GUARD.allowed, os.devnull)) and "__pycache__" not in path:
            GUARD.broken.append(f"{event} {path}")


sys.addaudithook(audit)


def outcome(call, *args, allowed=("data", "out", "runs")):
    """What comes of it: "taken", "refused" or WRONG: an exception but SystemExit, a message of many
    lines, a file outside the folders `allowed`, a program that was run."""
    GUARD.allowed, GUARD.broken = [os.path.abspath(name) for name in allowed], []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*args)
        result = "taken"
    except SystemExit as end:
        result = "refused" if end.code else "taken"
        if isinstance(end.code, str):  # further lines list files
            listed = re.fullmatch(r"[^\n]+(\n    [^\n]+)*", end.code)
            result = "refused" if listed else f"WRONG: {end.code!r}"
        elif end.code not in (None, 0, 1, 2):
            result = f"WRONG: exit code {end.code}"
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in FILES]
        last = frames[-1] if frames else SimpleNamespace(filename="", name="?", lineno=0)
        place = f"{FILES.get(last.filename)}.py:{last.lineno} {last.name}"
        result = f"WRONG: {place}: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    finally:
        GUARD.allowed = None
    return f"WRONG: {GUARD.broken[0]}" if GUARD.broken else result


def refused_or_taken(row, outcomes):
    """Count the outcomes; none may be another than "taken" and "refused"."""
    found = Counter(outcomes)
    COUNTS[row] += found
    wrong = {what: n for what, n in found.items() if what.startswith("WRONG")}
    assert not wrong, "\n".join(f"{n} x {what}" for what, n in wrong.items())


def mutate(data, rng):
    """Bytes cut, flipped, overwritten, left out, doubled, as disks, networks and people do it."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        i = rng.randrange(rng.choice((len(data), len(data), min(99, len(data)))) + 1)
        n = rng.choice((1, 2, 4, 8, 50))
        match rng.randrange(6):
            case 0:
                del data[i:]
            case 1 | 2:
                data[i : i + 1] = bytes(b ^ 1 << rng.randrange(8) for b in data[i : i + 1])
            case 3:
                data[i : i + n] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * n
            case 4:
                del data[i : i + n]
            case 5:
                data[i:i] = data[i : i + n] or rng.randbytes(n)
    return bytes(data)


# ---- Kill anywhere -------------------------------------------------------------------------------


def contents(out):
    """What must be equal: weights, state, pictures, and log.csv but for its seconds."""
    found = {path.name: path.read_bytes() for path in Path(out, "samples").iterdir()}
    for path in (*Path(out).glob("snapshots/*"), Path(out, "checkpoint.pt")):
        saved = torch.load(path, weights_only=True)
        rows = [row | {"seconds": 0} for row in saved.pop("log", [])]
        saved |= {"args": 0, "seconds": 0, "log": rows}
        found[path.name] = {name: tensor.numpy().tobytes() for name, tensor in flat(saved)}
        found[f"{path.name}: other"] = repr(saved) if "opt_G" not in saved else repr(rows)
    with open(Path(out, "log.csv")) as file:
        found["log.csv"] = [{**row, "seconds": 0} for row in csv.DictReader(file)]
    return found


def flat(tree, name=""):
    if torch.is_tensor(tree):
        yield name, tree
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from flat(value, f"{name}.{key}")


@pytest.fixture
def untouched(folder, monkeypatch):
    """untouched(module): contents of a run that nothing befell, its file operations and seconds."""

    def run(module, *flags):
        began = time.monotonic()
        with faulty_disk(monkeypatch, 0) as count:
            module.main([*TINY, *flags, "--out", "whole"])
        return contents("whole"), count[0], time.monotonic() - began

    return run


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_killed_anywhere_ends_as_one_never_touched(untouched, rng, name):
    module, kills, chain = TRAINERS[name], times(84, 1), 0
    whole, operations, seconds = untouched(module)
    while kills > 0:
        chain += 1
        out, here, finished = f"out/{chain}", 0, False
        for path in Path("data").glob("*"):
            path.unlink()  # so that it decodes again
        while kills > 0 and here < 12 and not finished:
            begun = Path(out, "checkpoint.pt").exists()
            flags = ["--out", out, *(["--resume"] if begun else TINY)]
            soon, later = rng.randint(1, 60), rng.randint(1, operations)
            at = rng.choice((soon, later, rng.random() * seconds))
            done, moment = child("SIGKILL", at, module, *flags)
            finished = done.returncode == 0
            assert finished or done.returncode == -9, done.stderr
            if not finished:
                COUNTS[f"SIGKILL, {name}.py"][f"while {moment}"] += 1
                kills, here = kills - 1, here + 1
        begun = Path(out, "checkpoint.pt").exists()
        module.main(["--out", out, *(["--resume"] if begun else TINY)])
        assert contents(out) == whole
        assert not [*Path().rglob(".*.tmp")]
        COUNTS[f"runs killed and resumed, {name}.py"]["equal to the bit"] += 1


@pytest.mark.parametrize("number", range(times(36, 1)))
def test_a_signal_leaves_a_checkpoint_and_the_command_that_goes_on(untouched, rng, number):
    name, fault = rng.choice([*TRAINERS]), ("SIGTERM", "SIGHUP", "SIGINT")[number % 3]
    module, code = TRAINERS[name], 128 + getattr(signal, fault)
    whole, operations, _ = untouched(module)
    done, moment = child(fault, rng.randint(20, operations), module, *TINY, "--out", "out/1")
    if moment in ("training", "checkpoint", "picture or log") and done.returncode == code:
        assert f'go on with python {name}.py --out "out/1" --resume' in done.stdout
        COUNTS[f"{fault}, trainers"][f"checkpoint while {moment}, exit {code}"] += 1
    else:  # before the first step, or in the last
        assert done.returncode in (code, 0, -getattr(signal, fault))
        COUNTS[f"{fault}, trainers"]["before the first or after the last step"] += 1
    begun = Path("out/1/checkpoint.pt").exists()
    module.main(["--out", "out/1", *(["--resume"] if begun else TINY)])
    assert contents("out/1") == whole


@pytest.fixture
def generator(tmp_path, monkeypatch):
    """A snapshot with random weights, g.pt, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    G = dcgan.Generator(16, 8, 4)
    torch.save(G.state_dict(), "g.pt")
    return G


def test_sampling_killed_anywhere_ends_with_every_image_whole(generator, rng):
    n, kills, chain = 2000 if SIZE >= 10 else 200, times(40, 1), 0
    flags = ["g.pt", "--device", "cpu", "--samples", n, "--out"]
    images = interpolate.sample(generator, interpolate.latents(range(n), 8)).numpy()
    while kills > 0:
        chain += 1
        out = Path("out", str(chain))
        for _ in range(min(kills, 5)):
            at = rng.choice((rng.randint(1, 4 * n // 3), rng.random() * n / 300))
            done, moment = child("SIGKILL", at, interpolate, *flags, out)
            assert done.returncode in (0, -9), done.stderr
            COUNTS["SIGKILL, interpolate.py --samples"][f"while {moment}"] += done.returncode == -9
            kills -= done.returncode == -9
        interpolate.main([*map(str, flags), str(out)])
        for i, image in enumerate(images):
            with Image.open(out / f"{i:06}.png") as found:
                assert np.array_equal(np.asarray(found).transpose(2, 0, 1), image)
        COUNTS["folders of samples after kills"]["whole and equal"] += 1


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    """A server on this machine with 24 spirits, a server that no retry waits for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scrape_spirits, "BACKOFF", 0.001)
    made = pictures(24)
    files = {f"/images/{name.replace(' ', '%20')}": body for name, body in made.items()}
    with Gallery(files | {"/spirits": page(made)}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def scraped(out):
    return {p.name: p.read_bytes() for p in Path(out).glob("[!.]*") if p.suffix != ".jsonl"}


def scrape(server, *flags, out="out"):
    flags = ["--delay", "0", "--timeout", "5", "--out", out, *map(str, flags)]
    scrape_spirits.main(["--url", f"{server.url}/spirits", *flags])


def test_scraping_killed_anywhere_ends_as_a_run_never_touched(gallery, rng):
    kills, chain = times(60, 3), 0
    scrape(gallery, out="whole")
    while kills > 0:
        chain += 1
        for _ in range(min(kills, 4)):
            at = rng.choice((rng.randint(1, 60), rng.random() * 0.3))
            flags = ["--url", f"{gallery.url}/spirits", "--delay", "0", "--out", f"out{chain}"]
            done, moment = child("SIGKILL", at, scrape_spirits, *flags)
            assert done.returncode in (0, -9), done.stderr
            COUNTS["SIGKILL, scrape_spirits.py"][f"while {moment}"] += done.returncode == -9
            kills -= done.returncode == -9
        scrape(gallery, out=f"out{chain}")
        assert scraped(f"out{chain}") == scraped("whole")
        assert not [*Path().rglob(".*.tmp")]
        COUNTS["galleries after kills"]["the same files"] += 1


# ---- Full and failing disks ----------------------------------------------------------------------


def one_line(call, *args):
    """What a run on a full disk says before it exits with 1; None if it came to its end."""
    try:
        call(*args)
    except SystemExit as end:
        assert isinstance(end.code, str) and len(end.code.splitlines()) == 1, end.code
        return end.code


@pytest.mark.parametrize("name", TRAINERS)
def test_a_full_disk_costs_a_trainer_nothing_it_had(untouched, monkeypatch, rng, name, capsys):
    module = TRAINERS[name]
    whole, operations, _ = untouched(module)
    for i in range(times(60, 1)):
        out, lasting, at = f"out/{i}", rng.random() < 0.7, rng.randint(1, operations)
        for path in Path("data").glob("*"):
            path.unlink()
        capsys.readouterr()
        with faulty_disk(monkeypatch, at, lasting) as count:
            said = one_line(module.main, [*TINY, "--out", out])
        warned = re.findall(r"warning: \S+/(\S+): not written", capsys.readouterr().out)
        assert said or (warned and not lasting) or count[0] < at
        begun = Path(out, "checkpoint.pt").exists()
        module.main(["--out", out, *(["--resume"] if begun else TINY)])
        found, lost = contents(out), () if lasting else warned
        assert {k: v for k, v in found.items() if k not in lost} == {
            k: v for k, v in whole.items() if k not in lost
        }
        assert not [*Path().rglob(".*.tmp")]
        result = "one line, exit 1" if said else "a warning" if warned else "done before"
        COUNTS[f"ENOSPC, {name}.py"][result] += 1


def test_a_full_disk_costs_samples_pictures_and_statistics_nothing(
    generator, gallery, monkeypatch, rng
):
    """interpolate.py, scrape_spirits.py, and the caches that load_data and fid.py fill."""
    rows = np.random.default_rng(0).normal(size=(99, 64))
    good = fid.Stats(99, rows.mean(0), np.cov(rows.T), None)
    args = SimpleNamespace(dims=64, allow_few=True)
    flags = ["g.pt", "--device", "cpu", "--samples", "40", "--out"]
    scrape(gallery, out="whole")
    for i in range(times(100, 3)):
        lasting = rng.random() < 0.7
        with faulty_disk(monkeypatch, rng.randint(1, 160), lasting):
            said = one_line(interpolate.main, [*flags, f"fake{i}"])
        COUNTS["ENOSPC, interpolate.py"]["one line, exit 1" if said else "done before"] += 1
        interpolate.main([*flags, f"fake{i}"])
        images = [np.asarray(Image.open(path)) for path in sorted(Path(f"fake{i}").glob("*.png"))]
        assert len(images) == 40 and not [*Path().rglob(".*.tmp")]
        expected = interpolate.sample(generator, interpolate.latents(range(40), 8))
        assert np.array_equal(np.stack(images), expected.permute(0, 2, 3, 1))

        with faulty_disk(monkeypatch, rng.randint(1, 120), lasting):
            said = one_line(scrape, gallery, "--out", f"out{i}")
        COUNTS["ENOSPC, scrape_spirits.py"]["one line, exit 1" if said else "done before"] += 1
        one_line(scrape, gallery, "--out", f"out{i}")
        assert scraped(f"out{i}") == scraped("whole") and not [*Path().rglob(".*.tmp")]

        with faulty_disk(monkeypatch, rng.randint(1, 6), lasting):
            said = one_line(fid.save_stats, "s.npz", good)
        COUNTS["ENOSPC, statistics of fid.py"]["one line, exit 1" if said else "done before"] += 1
        assert Path("s.npz").exists() == (not said)
        if not said:
            assert np.array_equal(fid.load_stats("s.npz", args).sigma, good.sigma)
            Path("s.npz").unlink()

        with faulty_disk(monkeypatch, rng.randint(1, 60), lasting):
            said = one_line(dcgan.load_data, "sprites", 16, ["cat"])
        COUNTS["ENOSPC, decoded images"]["one line, exit 1" if said else "done before"] += 1
        left = [path.name for path in Path("data").iterdir() if path.name != ".lock"]
        assert len(left) == (not said) and all(name.endswith(".u8") for name in left)
        for path in Path("data").glob("*.u8"):
            path.unlink()


@pytest.mark.parametrize("number", range(times(20, 0)))
def test_a_limit_on_files_ends_a_run_in_one_line(untouched, rng, number):
    name = rng.choice([*TRAINERS])
    whole, _, _ = untouched(TRAINERS[name])
    size = Path("whole/checkpoint.pt").stat().st_size
    for path in Path("data").glob("*"):
        path.unlink()
    done, _ = child("FSIZE", rng.randint(1000, size - 1000), TRAINERS[name], *TINY, "--out", "out")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert ": not written" in done.stderr and not [*Path().rglob(".*.tmp")]
    TRAINERS[name].main([*TINY, "--out", "out"])
    assert contents("out") == whole
    COUNTS["RLIMIT_FSIZE, trainers"]["one line, exit 1"] += 1


@pytest.mark.parametrize("number", range(times(30, 1)))
def test_a_small_disk_fills_and_the_run_goes_on_when_there_is_room(untouched, rng, number, capsys):
    name = rng.choice([*TRAINERS])
    whole, _, _ = untouched(TRAINERS[name])
    size = sum(path.stat().st_size for path in Path("whole").rglob("*")) // 1024
    Path("disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={rng.randint(20, size)}k", "none", "disk"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        flags = ["--out", "disk/out", "--cache", "disk"]
        said = one_line(TRAINERS[name].main, [*TINY, *flags])
        assert (said and ": not written" in said) or "not to be written" in said
        subprocess.run(["mount", "-o", "remount,size=99m", "disk"], check=True)
        begun = Path("disk/out/checkpoint.pt").exists()
        TRAINERS[name].main([*flags, *(["--resume"] if begun else TINY)])
        assert contents("disk/out") == whole
    finally:
        subprocess.run(["umount", "disk"], check=True)
    COUNTS["a full tmpfs, trainers"][f"one line, exit 1, {'resumed' if begun else 'again'}"] += 1


# ---- Hostile input -------------------------------------------------------------------------------

MODES = "1 L LA P PA RGB RGBA CMYK YCbCr LAB HSV I I;16 F".split()


def real_images():
    """A small picture in every format and mode that Pillow writes, one with all that PNG has."""
    Image.init()
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    found, exif = [], Image.Exif()
    exif[0x0112] = 6
    for kind in sorted({*Image.SAVE} & {*dcgan.FORMATS, "MPO", "EPS", "PDF"}):
        for mode in MODES:
            grey = rgb.convert("L")
            image = rgb.convert(mode) if mode not in ("LA", "PA", "I;16") else grey.convert(mode)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    image.save(file := io.BytesIO(), kind)
                except Exception:  # not in this format
                    continue
            found.append((f"{kind} {mode}", kind.lower(), file.getvalue()))
    for kind in {*Image.SAVE_ALL} & {"GIF", "TIFF", "WEBP", "PNG"}:
        more = {"save_all": True, "append_images": [rgb.rotate(90)], "exif": exif}
        rgb.save(file := io.BytesIO(), kind, **more)
        found.append((f"{kind} frames", kind.lower(), file.getvalue()))
    rgb.convert("P").save(file := io.BytesIO(), "PNG", transparency=bytes(range(256)), exif=exif)
    return [*found, ("PNG transparent", "png", file.getvalue())]


def inspected(body):
    try:
        scrape_spirits.inspect("http://h/a", body)
    except scrape_spirits.Failure as error:
        raise SystemExit(str(error))


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """An empty working folder, and 4 GB that may be taken beyond what is."""
    monkeypatch.chdir(tmp_path)
    before, pages = resource.getrlimit(resource.RLIMIT_AS), Path("/proc/self/statm").read_text()
    most = int(pages.split()[0]) * resource.getpagesize() + 2**32
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert not Path("ran").exists()  # what a Payload makes


def test_damaged_images(sandbox, rng):
    images, found, most = real_images(), [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = SimpleNamespace(size=None, cache="data", batch_size=8, skip_corrupt=True)
    for batch in range(times(80, 1)):
        folder = Path("set", str(batch))
        folder.mkdir(parents=True)
        for i in range(100):
            _, suffix, body = rng.choice(images)
            body = mutate(body, rng)
            Path(folder, f"{i}.{rng.choice((suffix, suffix, 'png', 'jpg'))}").write_bytes(body)
            found.append(outcome(inspected, body))
        Path(folder, "whole.png").write_bytes(images[-1][2])
        found.append(outcome(lambda f=folder: dcgan.load_data(str(f), 16, skip_corrupt=True)))
        found.append(outcome(dcgan.load_data, str(folder), 16))
        loaded = lambda f=folder: [*fid.open_images(str(f), options).load(range(101))]  # noqa: E731
        found.append(outcome(loaded))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) // 1024
    assert grown < 2000, f"{grown} MB"  # Pillow itself refuses from 179 million pixels on
    COUNTS["damaged images in folders (each by three readers)"]["in batches of 100"] += batch + 1
    refused_or_taken("damaged images", found)


def zip_bytes(names, body, **info):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(entry, key, value)
            archive.writestr(entry, body)
    return file.getvalue()


def hostile_zips():
    body = real_images()[-1][2]
    evil = ["/etc/a.png", "../../b.png", "C:\\c.png", "a/../../d.png", "\\\\host\\e.png", "//f.png"]
    evil += ["x" * 5000 + ".png", ".png", "..png", "\x1b[2J.png", "con.png", "g.png/"]
    plain = zip_bytes([f"{c}/{i}.png" for c in "ab" for i in range(4)], body)
    yield from (plain, zip_bytes(evil, body), zip_bytes([], b""))
    yield zip_bytes(["link.png"], b"/etc/passwd", external_attr=0o120777 << 16)
    encrypted = bytearray(plain)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for found in re.finditer(re.escape(mark), plain):
            encrypted[found.start() + offset] |= 1
    yield bytes(encrypted)
    if SIZE >= 10:
        yield zip_bytes(["a.png"], bytes(2**28))  # within the limit, no picture
        yield zip_bytes(["a.png"], bytes(2**28 + 1))
        yield zip_bytes([f"{i}.txt" for i in range(70_000)] + ["a.png"], b"")


def test_hostile_zips(sandbox, rng):
    archives, found = [*hostile_zips()], []
    small = [body for body in archives if len(body) < 10**5]
    for i in range(times(2000, 60)):
        body = archives[i] if i < len(archives) else mutate(rng.choice(small), rng)
        Path("set.zip").write_bytes(body)
        skip = rng.random() < 0.5
        found.append(outcome(dcgan.load_data, "set.zip", 16, None, "data", skip))
    refused_or_taken("hostile and damaged .zip", found)


class Payload:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def odd(rng, deep=2):
    """A value that nobody expects, of any kind."""
    big = [10**9, 2**31, 2**63, -1, 0, 1, 3, 10**30, 1e308, -1e308, float("nan"), float("inf"), 0.5]
    words = ["", "x", "cpu", "../../x", "a\0b", "\udcff", "x" * 300, None, True, b"x", 1j]
    if deep and rng.random() < 0.4:
        inner = [odd(rng, deep - 1) for _ in range(rng.randrange(4))]
        pairs = zip(rng.sample(["state", "count", "step", 0, "epoch", "size"], 4), inner)
        return rng.choice((inner, tuple(inner), dict(pairs)))
    shape = [rng.choice((0, 1, 2, 3, 8, 64)) for _ in range(rng.randrange(5))]
    fill = rng.choice((0, 1, float("nan"), float("inf"), 1e30))
    return rng.choice((rng.choice(big), rng.choice(words), torch.full(shape, fill)))


def odd_array(rng):
    """An array that nobody expects; one in ten is of objects that would run."""
    shape = [rng.choice((0, 1, 2, 3, 4, 16, 64, 1000)) for _ in range(rng.randrange(5))]
    shape = shape if np.prod(shape) < 10**6 else shape[:1]
    kinds = "u1 i8 f2 f4 f8 c8 ? U3 S5 M8[s] V4 i4,f8".split()
    with np.errstate(all="ignore"):
        array = np.full(shape, rng.choice((0, 1, -1, 200)), np.float64)
        array = np.zeros(shape, rng.choice(kinds)) if rng.random() < 0.7 else array
    extreme = np.full((64, 64) if rng.random() < 0.5 else 64, rng.choice((1e308, -1e200, 1e-320)))
    objects = np.array([Payload()], object)
    return rng.choice((array, array, array, extreme, objects))


def npy_bytes(rng):
    """An .npy with a header that lies: descriptions, shapes, versions, lengths."""
    descr = rng.choice("'|u1' '|O' '<f8' '<U99999999' [('a','u1')] '|S0' 'q 1".split())
    shape = "(4,16,16,3) (10**15,) (999999999999,16,16,3) (4,2147483648,2147483648,3) (-1,16,16,3)"
    shape = [*shape.split(), "(0,)", "'a'", "(1.5,)", "4", "(True,16,16,3)", "(" * 300]
    text = f"{{'descr': {descr}, 'fortran_order': {rng.choice(['False', 'True', '2'])}, "
    text = (text + f"'shape': {rng.choice(shape)}, }}").encode() + b"\n"
    version = rng.choice((1, 1, 1, 2, 3, 9))
    length = struct.pack("<H" if version == 1 else "<I", rng.choice([len(text)] * 5 + [0, 65535]))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(4 * 16 * 16 * 3)


def test_hostile_arrays(sandbox, rng):
    pixels, found = np.zeros((4, 16, 16, 3), np.uint8), []
    np.save(file := io.BytesIO(), pixels)
    np.savez_compressed(archive := io.BytesIO(), images=pixels, labels=np.arange(4))
    for _ in range(times(3000, 90)):
        match rng.randrange(4):
            case 0:
                body = mutate(rng.choice((file, archive)).getvalue(), rng)
            case 1:
                body = npy_bytes(rng)
            case 2:
                parts = {"images": rng.choice((pixels, odd_array(rng))), "labels": odd_array(rng)}
                np.savez(made := io.BytesIO(), **parts)
                body = made.getvalue()
            case 3:
                body = zip_bytes(["images.npy"], npy_bytes(rng))
        if rng.random() < 0.05:
            body = pickle.dumps(Payload())
        name = rng.choice(("set.npy", "set.npz"))
        Path(name).write_bytes(body)
        found.append(outcome(dcgan.load_data, name, 16))
    refused_or_taken("hostile and damaged .npy and .npz", found)


def test_hostile_statistics(sandbox, monkeypatch, rng):
    """As REAL, as FAKE, and in the cache of fid.py, where they are never taken for whole."""
    rows, found = np.random.default_rng(0).normal(size=(99, 64)), []
    good = {"mu": rows.mean(0), "sigma": np.cov(rows.T), "n": 9999, "weights": "aaaaaaaa"}
    np.savez_compressed("good.npz", **good)
    whole = Path("good.npz").read_bytes()
    args = fid.parse_args("good.npz s.npz --dims 64 --device cpu --cache data".split())
    args.rank, args.world = 0, 1
    images = fid.Images("set", [], None, "key", {})
    for _ in range(times(3000, 90)):
        parts = good | {rng.choice([*good]): odd_array(rng) for _ in range(rng.randrange(1, 3))}
        for key in [*parts]:
            parts.pop(key) if rng.random() < 0.05 else None
        np.savez(made := io.BytesIO(), **parts)
        cut = rng.random() < 0.4
        Path("s.npz").write_bytes(mutate(whole, rng) if cut else made.getvalue())
        pair = rng.choice((["good.npz", "s.npz"], ["s.npz", "good.npz"]))
        found.append(outcome(fid.main, [*pair, "--dims", "64", "--device", "cpu"]))
        with monkeypatch.context() as patch:
            patch.setattr(fid.Path, "exists", lambda path: True)
            load = fid.load_stats
            patch.setattr(fid, "load_stats", lambda _, args, load=load: load("s.npz", args))
            patch.setattr(fid, "measure", lambda *_: fid.Stats(99, good["mu"], good["sigma"], None))
            found.append(outcome(cached, images, args, [good] if cut else [good, parts]))
    refused_or_taken("hostile and damaged statistics", found)


def cached(images, args, whole):
    """Statistics from the cache: those that were written, or measured anew."""
    stats = fid.statistics(images, None, "aaaaaaaa", args, False, cached=True)
    same = [np.array_equal(stats.mu, x["mu"]) for x in whole if "mu" in x]
    assert any(same) and stats.sigma.shape == (64, 64)


def spoiled(saved, rng):
    """A copy of nested dicts with a value left out or changed for an odd one."""
    saved = dict(saved)
    key = rng.choice([*saved])
    if isinstance(saved[key], dict) and saved[key] and rng.random() < 0.6:
        saved[key] = spoiled(saved[key], rng)
    elif rng.random() < 0.3:
        del saved[key]
    elif torch.is_tensor(saved[key]) and rng.random() < 0.5:
        huge = torch.zeros(1).expand(10**6, 10**6)  # of a file of a kilobyte
        saved[key] = rng.choice((saved[key] * float("nan"), saved[key].flatten()[:1], huge))
    else:
        saved[key] = odd(rng) if rng.random() < 0.95 else Payload()
    return saved


def write_spoiled(path, saved, rng):
    if rng.random() < 0.25:
        torch.save(saved, body := io.BytesIO())
        Path(path).write_bytes(mutate(body.getvalue(), rng))
    else:
        torch.save(spoiled(saved, rng) if rng.random() < 0.97 else odd(rng), path)


@pytest.mark.parametrize("name", TRAINERS)
def test_hostile_checkpoints(folder, sandbox, rng, name):
    module, found = TRAINERS[name], []
    module.main([*TINY, "--out", "whole"])
    saved = torch.load("whole/checkpoint.pt", weights_only=True)
    for i in range(times(600, 20)):
        out = f"out/{i}"
        Path(out).mkdir(parents=True)
        write_spoiled(f"{out}/checkpoint.pt", saved, rng)
        flags = ["--out", out, "--resume", "--epochs", "7", "--device", "cpu", "--cache", "data"]
        found.append(outcome(module.main, flags))
    refused_or_taken(f"hostile and damaged checkpoints, {name}.py", found)


def test_hostile_generators(generator, sandbox, rng):
    """Checkpoints, snapshots and foreign files for interpolate.py, whose reader fid.py shares."""
    weights, found = generator.state_dict(), []
    snapshot = {"format": 2, "script": "dcgan.py", "generator": {"size": 16, "z_dim": 8}}
    snapshot |= {"args": {}, "epoch": 1, "step": 5, "G_ema": weights}
    for _ in range(times(2000, 60)):
        write_spoiled("h.pt", rng.choice((snapshot, weights, {"netG": weights})), rng)
        flags = ["h.pt", "--samples", "1", "--device", "cpu", "--out", "out/s.png"]
        found.append(outcome(interpolate.main, flags))
    refused_or_taken("hostile and damaged generators", found)


def tried(row, result):
    COUNTS[row][result] += 1
    assert result in ("taken", "refused"), result


def sampled(full, sample):
    """hypothesis, so often; the same examples every day."""
    how = {"deadline": None, "database": None, "derandomize": True}
    return settings(max_examples=times(full, sample), **how)


PIECES = r"1 17 0.5* 1e9* ( ) , + - 2** True* f'{1}' [0] \d ' 1j* 0x1 lambda: # := * ++".split()
PIECES += ["__import__('os').mkdir('ran')", "1if 2else 3", "\u2212", "\udcff", "\0", "\n", " "]
PIECES += ["9" * 25, "-" * 3000, "(" * 150, "+1" * 60]


@sampled(3000, 80)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
def test_hostile_expressions(text):
    def draw():
        checked = interpolate.parse_args(["g.pt", f"--arithmetic={text}"]).arithmetic
        images = lambda z: torch.zeros(len(z), 3, 1, 1)  # noqa: E731
        interpolate.arithmetic(checked, lambda seed: torch.zeros(2), images)

    tried("hostile --arithmetic", outcome(draw, allowed=()))


VALUES = (
    "0 -1 3 1e400 nan / .. 1,2 0-5 5-0 sprites http://[ x.png x.npz (1,2)-3 -- -h x.pt é".split()
)
VALUES += ["", "http://a b/", "\udcff", "\n", "{}", "%s", "9" * 5000, "a" * 300, "a" * 300 + "/b"]
VALUES += ["lsun-" + "a" * 300, "cuda:99", "none", "0.5"]


@pytest.mark.parametrize("name", ALL)
def test_hostile_command_lines(sandbox, rng, name):
    module, found = ALL[name], []
    actions = [a for a in module.build_parser()._actions if a.dest != "help"]
    for _ in range(times(600, 60)):
        line = [rng.choice(VALUES) for _ in range(rng.choice((0, 1, 1, 2)))]
        for action in rng.sample(actions, rng.randrange(5)):
            line += rng.choice(action.option_strings or [""]).split()
            line += [rng.choice([*VALUES, *map(str, action.choices or ())])] * (action.nargs != 0)
        found.append(outcome(module.parse_args, line, allowed=()))
    refused_or_taken(f"random command lines, {name}.py", found)


SOUP = """<a href= <img src= <img srcset=' <base href=' <![x <!doctype <!-- ]]> > ' " </a> <picture>
rel=next // http://[ javascript: &#x110000; data: ://u@h/ :99999/ [!a- $ ² .png""".split()
SOUP += ["<div class=spiritDiv>", " 9e99w,", "<source srcset=x type=y>", "\0", "\udcff", "\n", " "]
SOUP += ["user-agent: *", "disallow: /", "crawl-delay: ", "9" * 400, "*" * 50]
TEXT = st.lists(st.sampled_from(SOUP) | st.text(max_size=4), max_size=30).map("".join)


@sampled(3000, 80)
@given(TEXT, TEXT, st.binary(max_size=60))
def test_hostile_pages_robots_and_headers(text, other, raw):
    def read():
        base, web = "http://h/x", scrape_spirits
        kind = f"text/html; charset={other.split()[0] if other.split() else ''}"
        html = web.decode_page(text.encode("utf-8", "replace") + raw, kind)
        links, following, _ = web.find_links(html, base, None, 32)
        for link in filter(None, [*links, *links.values(), following, web.resolve(base, other)]):
            assert re.match("https?://[^@/]+/", link) and link.isascii() and " " not in link
            name = web.file_name(link, "0" * 64, ".png")
            assert (
                not re.search(r"[/\\:\0\n]", name) and len(name.encode()) < 120 and name[0] != "."
            )
        rules, gap = web.read_robots(text)
        assert 0 <= gap <= web.DAY and web.may_fetch(rules, other) in (True, False)
        assert (web.seconds_to_wait(other) or 0) >= 0
        web.read_record(raw), web.read_record(text)

    tried("hostile pages, robots.txt and headers", outcome(read, allowed=()))


def test_hostile_answers(gallery, sandbox, monkeypatch, rng):
    """Bytes of any kind in the place of an HTTP answer, for robots.txt, page and picture."""
    picture, found = next(body for path, body in gallery.files.items() if "png" in path), []
    monkeypatch.setattr(scrape_spirits, "RETRIES", 0)
    heads = ["Content-Length: ", "Transfer-Encoding: chunked", "Content-Encoding: gzip", "ETag: "]
    heads += [
        "Retry-After: ",
        "Location: ",
        "Content-Type: text/html; charset=",
        "X: " + "a" * 70_000,
    ]
    words = [
        "",
        "-1",
        "9" * 5000,
        "0",
        "10",
        "//",
        "http://10.0.0.1/",
        "\xff\xfe",
        "/spirits",
        "zlib",
    ]
    for _ in range(times(1000, 20)):
        files = {"/robots.txt": b"", "/spirits": b"<img src=a.png>" * 2, "/a.png": picture}
        lines = [f"HTTP/1.1 {rng.choice([200, 200, 200, 301, 304, 404, 429, 503, 'x', 99])} OK"]
        lines += [rng.choice(heads) + rng.choice(words) for _ in range(rng.randrange(4))]
        where = rng.choice([*files])
        body = rng.choice((files[where], mutate(files[where] or b"x", rng), zlib.compress(picture)))
        raw = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        raw = mutate(raw, rng) if rng.random() < 0.3 else raw
        gallery.files = files | {where: lambda handler, raw=raw: handler.wfile.write(raw)}
        flags = ["--timeout", "1", "--delay", "0", "--min-side", "0", "--out", f"out/{len(found)}"]
        command = ["--url", f"{gallery.url}/spirits", *flags]
        found.append(outcome(scrape_spirits.main, command, allowed=("out",)))
    refused_or_taken("hostile answers over HTTP", found)


# ---- Numbers that go wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_that_diverges_says_so_and_keeps_the_checkpoint_before(folder, name):
    module = TRAINERS[name]
    module.main([*TINY, "--out", "out"])
    before = Path("out/checkpoint.pt").read_bytes()
    for lr in ("1e12", "1e38"):
        said = one_line(module.main, ["--out", "out", "--resume", "--epochs", "9", "--lr", lr])
        assert re.match(r"step \d+: .* is not finite; .*--resume.* lower --lr", said)
        assert Path("out/checkpoint.pt").read_bytes() == before
        COUNTS["learning rates of 1e12 and 1e38"]["one line, exit 1, checkpoint as before"] += 1


SETS = {"one image": (1, 0, 255), "equal": (16, 7, 8), "black": (40, 0, 1), "white": (3, 255, 256)}


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("kind", SETS)
def test_sets_without_variety_train(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    n, low, high = SETS[kind]
    np.save("set.npy", np.random.default_rng(0).integers(low, high, (n, 16, 16, 3), np.uint8))
    TRAINERS[name].main([*TINY, "--data", "set.npy", "--epochs", "2", "--out", "out"])
    saved = torch.load("out/checkpoint.pt", weights_only=True)
    assert all(np.isfinite(list(row.values())).all() for row in saved["log"])
    COUNTS["sets of one, equal, black, white images"]["trained, all finite"] += 1


# ---- Defects that the campaign found -------------------------------------------------------------

LONG = "a" * 300
STATISTICS = {"mu": np.zeros(64), "sigma": np.eye(64), "n": 9999, "weights": "aaaaaaaa"}


def with_statistics(**values):
    def run():
        np.savez("good.npz", **STATISTICS)
        np.savez("s.npz", **STATISTICS | values)
        fid.main("good.npz s.npz --dims 64 --device cpu".split())

    return run


def cache_of_other_arrays():
    args = fid.parse_args("real fake --dims 64 --device cpu --cache data".split())
    args.rank, args.world = 0, 1
    images = fid.Images("set", [], None, "key", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "measure", lambda *_: fid.Stats(9, np.zeros(64), np.eye(64), None))
        fid.statistics(images, None, None, args, False, cached=True)
        np.savez(next(Path("data").glob("fid-*.npz")), other=np.zeros(3))
        assert fid.statistics(images, None, None, args, False, cached=True)


def with_checkpoint(change):
    def run():
        dcgan.main([*TINY, "--epochs", "1", "--out", "out"])
        saved = torch.load("out/checkpoint.pt", weights_only=True)
        change(saved)
        torch.save(saved, "out/checkpoint.pt")
        dcgan.main("--out out --resume --epochs 2".split())

    return run


def with_generator(value):
    def run():
        torch.save(value, "g.pt")
        interpolate.main("g.pt --device cpu --out out/g.png".split())

    return run


def zip_of_two_lines():
    Path("set.zip").write_bytes(zip_bytes(["a\nTraceback: all is lost.png"], b"no picture"))
    dcgan.load_data("set.zip", 16)


def expanded():
    torch.save({"main.0.weight": torch.zeros(1).expand(10**6, 1024, 4, 4)}, "g.pt")
    with pytest.raises(SystemExit) as end:
        interpolate.load_generator("g.pt")
    assert "memory" not in str(end.value)  # was not even tried
    raise end.value


RECURSIVE = {}
RECURSIVE["a"] = RECURSIVE
FORMAT = {"format": "9\nlines", "script": "dcgan.py", "generator": {}}
DEFECTS = {
    "statistics whose n is no number": with_statistics(n=np.arange(3)),
    "statistics whose n is a word": with_statistics(n="x"),
    "statistics so large that the FID is inf": with_statistics(mu=np.full(64, 1e200)),
    "statistics in the cache that hold other arrays": cache_of_other_arrays,
    "fid.py: too long a name": lambda: fid.main(["a", "b", "--json", f"{LONG}/b"]),
    "interpolate.py: too long a name": lambda: interpolate.main(
        ["g.pt", "--samples", "3", "--out", f"{LONG}.png"]
    ),
    "--data lsun- and too long a name": lambda: dcgan.load_data(f"lsun-{LONG}", 16),
    "a checkpoint without its flags": with_checkpoint(lambda saved: saved.pop("args")),
    "a checkpoint without one flag": with_checkpoint(lambda saved: saved["args"].pop("norm")),
    "a checkpoint with a flag of another type": with_checkpoint(
        lambda saved: saved["args"].update(size="32")
    ),
    "a checkpoint without a moment of Adam": with_checkpoint(
        lambda saved: saved["opt_G"]["state"][0].pop("exp_avg")
    ),
    "a checkpoint with a moment of another shape": with_checkpoint(
        lambda saved: saved["opt_G"]["state"][0].update(exp_avg=torch.zeros(3))
    ),
    "a checkpoint with a log of numbers": with_checkpoint(lambda saved: saved.update(log=[1, 2])),
    "a checkpoint of step -1": with_checkpoint(lambda saved: saved.update(step=-1)),
    "a checkpoint of step 1.5": with_checkpoint(lambda saved: saved.update(step=1.5)),
    "a checkpoint whose format has two lines": with_generator(FORMAT),
    "a checkpoint that holds itself": with_generator(RECURSIVE),
    "a weight of a kilobyte that unfolds to 65 GB": expanded,
    "a line break in a name in a .zip": zip_of_two_lines,
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defects(folder, sandbox, name):
    taken = "cache" in name or "without one flag" in name
    assert outcome(DEFECTS[name], allowed=[""]) == ("taken" if taken else "refused")


@pytest.mark.parametrize("flag", ["--batch-size", "--z-dim"])
def test_what_no_memory_holds_is_one_line(folder, flag):
    done, _ = child("SIGTERM", 10**9, dcgan, *TINY, flag, 10**9)
    assert done.returncode == 1 and "try a smaller --batch-size" in done.stderr.splitlines()[-1]
