"""Kills, full disks, hostile files and numbers that diverge: nothing is lost, and nothing runs. A
sample of the campaign; docs/reliability.md says how to run the whole."""

import functools
import io
import itertools
import multiprocessing
import os
import pickle
import random
import re
import runpy
import signal
import sys
import threading
import time
import zipfile
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gallery import Gallery, page, pictures
from PIL import Image

import dcgan
import fid
import interpolate
import scrape_spirits
import wgan
import wgan_gp

resource = pytest.importorskip("resource", reason="SIGKILL and limits are POSIX")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Pillow and NumPy have many for damaged files
    pytest.mark.skipif(sys.platform != "linux", reason="memory in use is read from /proc"),
]

SIZE = int(os.environ.get("CAMPAIGN", 0))
COUNTS = defaultdict(Counter)  # what was tried: {how it ended: times}
TRAINERS = {"dcgan": dcgan, "wgan": wgan, "wgan_gp": wgan_gp}
ALL = {**TRAINERS, "fid": fid, "interpolate": interpolate, "scrape_spirits": scrape_spirits}
TINY = "--data set.npy --size 16 --g-width 4 --d-width 4 --z-dim 8 --batch-size 8".split()
TINY += "--epochs 4 --snapshot-every 3 --device cpu".split()
FID = ["--dims", "64", "--device", "cpu", "--allow-few"]
STATISTICS = {"mu": np.zeros(64), "sigma": np.eye(64), "n": 9999}
CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link")
PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")

watch = SimpleNamespace(happens=None)
forks = multiprocessing.get_context("forkserver")  # from a process that has imported these:
forks.set_forkserver_preload(["pytest", "scipy.linalg", "torchvision"])


def audit(event, args):
    """Call watch.happens(event, path) before a file is changed or a program is started."""
    reads = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if watch.happens and event in (*CHANGES, *PROGRAMS) and not reads:
        watch.happens(event, args[0])


sys.addaudithook(audit)


def times(full, sample):
    """How often something is tried: `full` times in the campaign, `sample` times every day."""
    return max(sample, full * SIZE // 100)


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    if "CAMPAIGN_REPORT" in os.environ:
        lines = [f"{row}: {n.total():,}: {n.most_common()}\n" for row, n in sorted(COUNTS.items())]
        Path(os.environ["CAMPAIGN_REPORT"]).write_text("".join(lines))


@pytest.fixture
def rng(request):
    return random.Random(os.environ.get("CAMPAIGN_SEED", "") + request.node.name)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A folder with 83 small images, a generator and statistics; no curves, 4 GB of memory, and a
    clock on which a checkpoint is due every third step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)  # of 64 the threads alone would take 4 GB
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(time, "perf_counter", itertools.count(0.0, 200.0).__next__)
    np.save("set.npy", np.random.default_rng(0).integers(0, 256, (83, 20, 20, 3), np.uint8))
    torch.save(dcgan.Generator(16, 8, 4).state_dict(), "g.pt")
    np.savez("good.npz", **STATISTICS)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**32, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not Path("ran").exists()  # what a Payload makes


@pytest.fixture(scope="module")
def gallery():
    """A web server on this machine with 24 pictures."""
    made = pictures(24)
    files = {f"/images/{name.replace(' ', '%20')}": body for name, body in made.items()}
    with Gallery(files | {"/spirits": page(made)}) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


# ---- Kills and full disks ------------------------------------------------------------------------

FAULTS = "SIGKILL SIGKILL SIGTERM SIGHUP SIGINT SIGXFSZ ENOSPC ENOSPC".split()


def run_script(folder, fault, moment, script, flags):
    """Run a script that gets a signal at the moment-th change of a file, or finds the disk full;
    SIGXFSZ limits files to as many bytes instead."""
    os.chdir(folder)
    sys.argv = [script, *flags]
    sys.modules["matplotlib"] = None
    sys.stdout = sys.stderr = open("said", "w", buffering=1)
    pace = 200.0 if moment % 2 else 3.0  # seconds; long epochs are saved within, short ones not all
    time.perf_counter = itertools.count(0.0, pace).__next__
    done = []

    def happens(event, path):
        done.append(event)
        if fault == "ENOSPC" and len(done) >= moment and event != "os.remove":
            raise OSError(28, "No space left on device")
        if fault.startswith("SIG") and len(done) == moment:
            os.kill(os.getpid(), signal.Signals[fault])

    watch.happens = happens
    if fault == "SIGXFSZ":
        resource.setrlimit(resource.RLIMIT_FSIZE, (moment, moment))
    runpy.run_path(script, run_name="__main__")


def strike(rng, changes, script, flags):
    """Run a script in a process with a fault at a random moment. Returns how it ended."""
    fault = rng.choice(FAULTS)
    moment = rng.randint(1, rng.choice((15, changes)))
    if fault == "SIGXFSZ":
        moment = rng.randint(10_000, 60_000)
    process = forks.Process(target=run_script, args=(os.getcwd(), fault, moment, script, flags))
    process.start()
    process.join(300)
    said, code, codes = Path("said").read_text(), process.exitcode, [0, 1]
    if fault not in ("SIGXFSZ", "ENOSPC"):
        codes = [0, -signal.Signals[fault], 128 + signal.Signals[fault]]
    assert code in codes, said
    assert "Traceback" not in said, said
    return f"{fault}: exit {code}"


def flags_for(name, out, gallery):
    """The flags with which a script fills the folder `out`, or goes on with it."""
    flags = {
        "fid": [*FID, "good.npz", "--save-stats", f"{out}/new.npz"],
        "interpolate": ["g.pt", "--device", "cpu", "--samples", "60", "--out", out],
        "scrape_spirits": ["--url", f"{gallery.url}/spirits", "--delay", "0", "--out", out],
    }
    if Path(out, "checkpoint.pt").exists():
        return ["--out", out, "--resume"]
    return flags.get(name, [*TINY, "--out", out])


def contents(out):
    """What must be equal in two folders: pictures, statistics, tensors, the log."""
    found = {}
    for path in Path(out).rglob("[!.]*"):
        if path.suffix in (".png", ".npz"):
            found[path.name] = path.read_bytes()
        elif path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                tensors = [name for name in archive.namelist() if "/data/" in name]
                found |= {(path.name, name): archive.read(name) for name in tensors}
        elif path.suffix == ".csv":
            found["log"] = re.sub(r"(?m)^(\d+,\d+,\d+),[\d.]+", r"\1", path.read_text())
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_run_that_is_struck_and_goes_on_ends_as_one_never_touched(gallery, rng, name):
    changes = []
    watch.happens = lambda event, path: changes.append(path)
    ALL[name].main(flags_for(name, "whole", gallery))
    watch.happens = None
    whole = contents("whole")
    for i in range(times(25, 1)):
        out = f"out/{i}"
        for path in Path().glob("data/*"):
            path.unlink()
        for _ in range(times(6, 2)):
            flags = flags_for(name, out, gallery)
            COUNTS[f"{name}.py"][strike(rng, len(changes), ALL[name].__file__, flags)] += 1
        ALL[name].main(flags_for(name, out, gallery))
        assert contents(out) == whole
        if name in TRAINERS:
            assert not list(Path(out).rglob(".*.tmp"))
        COUNTS[f"{name}.py, up to six times"]["equal to the bit"] += 1


# ---- Hostile input -------------------------------------------------------------------------------


def stay_inside(event, path):
    """No program is started, and no file changed outside of data and out."""
    inside = os.path.abspath("data"), os.path.abspath("out"), os.devnull
    if event in PROGRAMS or not os.path.abspath(os.fsdecode(path)).startswith(inside):
        pytest.fail(f"{event} {path}")


def outcome(call, *args):
    """ "taken", or "refused" in one line. Any other end is an exception of its own."""
    watch.happens = stay_inside
    try:
        call(*args)
    except SystemExit as end:
        assert "\n" not in str(end.code)
        return "refused"
    finally:
        watch.happens = None
    return "taken"


class Payload:  # unpickled, it makes a folder
    def __reduce__(self):
        return os.mkdir, ("ran",)


def damaged(data, rng):
    """A copy with bytes changed, left out or doubled, as disks, networks and people do it."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(rng.choice((99, len(data) + 1)))  # often in the header
        end = start + rng.choice((1, 2, 8, 50))
        part = data[start:end]
        others = rng.randbytes(len(part)), b"\xff" * len(part), bytes(len(part)), b"", part + part
        data = data[:start] + rng.choice(others) + data[end:]
    return rng.choice((data, data, data, data, data[: rng.randrange(len(data) + 1)]))


@functools.cache
def pictures_of_all_kinds():
    """(suffix, bytes) of a small picture in every format and mode that Pillow writes."""
    found = []
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    modes = "1 L LA P RGB RGBA CMYK YCbCr LAB HSV I I;16 F".split()
    kinds = (*dcgan.FORMATS, "MPO", "EPS", "PDF")
    for kind, mode, options in itertools.product(kinds, modes, ({}, frames)):
        file = io.BytesIO()
        with suppress(Exception):  # not in this format
            image.convert("L").convert(mode).save(file, kind, **options)
            found.append((kind.lower(), file.getvalue()))
    return found


def damaged_picture(rng):
    folder = f"pictures/{rng.random()}"
    Path(folder).mkdir(parents=True)
    suffix, body = rng.choice(pictures_of_all_kinds())
    for stem in "ab":
        Path(folder, f"{stem}.{rng.choice((suffix, 'png'))}").write_bytes(damaged(body, rng))
    args = fid.parse_args([*FID, folder, folder])
    return rng.choice(((dcgan.load_data, folder, 16), (fid.open_set, folder, args, "cpu")))


def zip_bytes(names, body):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, body)
    return file.getvalue()


def hostile_zip(rng):
    names = ["/etc/a.png", "../../b.png", "C:\\c.png", "a/../../d.png", "\\\\host\\e.png", ".png"]
    names += ["x" * 5000 + ".png", "..png", "\x1b[2J\n.png", "con.png", "g.png/"]
    bodies = [pictures_of_all_kinds()[0][1]] * 400 + [bytes(2**28 + 1)]  # a bomb
    body = zip_bytes(rng.choice((names, ["a.png"], [])), rng.choice(bodies))
    locked = re.sub(rb"(?s)(PK\x03\x04..|PK\x01\x02....)\x00", b"\\1\x01", body)  # by a password
    Path("hostile.zip").write_bytes(rng.choice((body, locked, damaged(body, rng))))
    return dcgan.load_data, "hostile.zip", 16


def odd_array(rng):
    """An array that nobody expects, one in ten of objects that would run."""
    shape = rng.choices((0, 1, 2, 3, 16, 64), k=rng.randrange(5))
    kind = rng.choice("u1 i8 f2 f8 c8 ? U3 S5 M8[s] V4 i4,f8".split())
    extreme = np.full((64, 64), rng.choice((1e308, -1e200, np.nan)))
    objects = np.array([Payload()], object)
    return rng.choice((*[np.zeros(shape, kind)] * 8, extreme, objects))


def hostile_arrays(rng):
    pixels, file = np.zeros((4, 16, 16, 3), np.uint8), io.BytesIO()
    kind = rng.choice("'|u1' '|O' '<f8' '<U99999999' [('a','u1')] '|S0' 'q 1".split())
    shapes = "(4,16,16,3) (10**15,) (999999999999,16,16,3) (4,2147483648,2147483648,3) (-1,3) 'a'"
    shape = rng.choice([*shapes.split(), "(" * 300])
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    lie = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + pixels.tobytes()
    labels = rng.choice(([1, 2, 3, 4], odd_array(rng)))
    np.savez(file, images=rng.choice((pixels, odd_array(rng))), labels=labels)
    odd = file.getvalue()
    bodies = odd, damaged(odd, rng), lie, zip_bytes(["images.npy"], lie), pickle.dumps(Payload())
    Path("hostile.npz").write_bytes(rng.choice(bodies))
    return dcgan.load_data, "hostile.npz", 16


def hostile_statistics(rng):
    odd = io.BytesIO()
    np.savez(odd, **STATISTICS | {rng.choice(list(STATISTICS)): odd_array(rng)})
    whole = Path("good.npz").read_bytes()
    Path("hostile.npz").write_bytes(rng.choice((damaged(whole, rng), odd.getvalue())))
    return fid.main, [*FID, *rng.sample(["good.npz", "hostile.npz"], 2)]


RECURSIVE = {}
RECURSIVE["state"] = RECURSIVE
ODD = [10**9, 2**63, -1, 0, 1.5, float("nan"), None, True, "", "x", "../../x", "a\0b", "x" * 300]
ODD += [b"x", 1j, [], [1, 2], {}, Payload(), RECURSIVE, torch.zeros(3), torch.zeros(0)]
ODD += [torch.zeros(1).expand(100, 10**10)]  # 4 TB, in a file of a kilobyte


def spoiled(saved, rng):
    """A copy of nested dicts in which a value is missing, not finite, or an odd one."""
    key = rng.choice(list(saved))
    value, dice = saved[key], rng.random()
    if isinstance(value, dict) and value and dice < 0.6:
        return saved | {key: spoiled(value, rng)}
    if torch.is_tensor(value) and dice < 0.5:
        return saved | {key: value * float("nan")}
    if dice < 0.7:
        return {other: saved[other] for other in saved if other != key}
    return saved | {key: rng.choice(ODD)}


def hostile_file(saved, rng):
    """The bytes of a spoiled or damaged file of torch.save."""
    whole, odd = io.BytesIO(), io.BytesIO()
    torch.save(saved, whole)
    torch.save(spoiled(saved, rng), odd)
    return rng.choice((damaged(whole.getvalue(), rng), odd.getvalue(), odd.getvalue()))


def hostile_generator(rng):
    weights = torch.load("g.pt", weights_only=True)
    snapshot = {"format": 2, "script": "dcgan.py", "epoch": 1, "step": 5, "classes": []}
    whole = rng.choice((snapshot | {"G_ema": weights}, weights, {"netG": weights}))
    Path("hostile.pt").write_bytes(hostile_file(whole, rng))
    return interpolate.main, ["hostile.pt", "--device", "cpu", "--out", "out/s.png"]


VALUES = "0 -1 3 1e400 nan / .. 1,2 0-5 5-0 sprites http://[ x.png x.npz (1,2)-3 -- -h x.pt".split()
VALUES += r"1 17 0.5* 1e9* ( ) , + - ** True f'{1}' [0] \d ' 1j 0x1 lambda: # {} %s none".split()
VALUES += ["\u2212", "\udcff", "\0", "\n", " ", "", "9" * 5000, "a" * 300, "(" * 150, "~nosuch/x"]


def command_line(rng):
    module = rng.choice(list(ALL.values()))
    line = rng.choices(VALUES, k=rng.randrange(3))
    for action in rng.sample(module.build_parser()._actions, rng.randrange(5)):
        value = "".join(rng.choices(VALUES, k=rng.choice((1, 1, 5))))
        line += [*action.option_strings, rng.choice([value, *map(str, action.choices or [])])]
    return module.parse_args, line


ATTEMPTS = {  # a function that makes such an input, how often in the campaign, and every day
    "damaged pictures": (damaged_picture, 8000, 100),
    "hostile and damaged .zip": (hostile_zip, 2000, 40),
    "hostile and damaged .npy and .npz": (hostile_arrays, 3000, 60),
    "hostile and damaged statistics": (hostile_statistics, 6000, 60),
    "hostile and damaged generators": (hostile_generator, 2000, 40),
    "random command lines": (command_line, 6000, 300),
}


@pytest.mark.parametrize("what", ATTEMPTS)
def test_hostile_input_is_taken_or_refused_in_one_line(rng, what):
    attempt, full, sample = ATTEMPTS[what]
    for _ in range(times(full, sample)):
        COUNTS[what][outcome(*attempt(rng))] += 1


@pytest.mark.parametrize("name", TRAINERS)
def test_hostile_checkpoints_do_no_harm(rng, name):
    """Not every field is checked: one of an absurd type may end in a traceback."""
    TRAINERS[name].main([*TINY, "--out", "whole"])
    saved = torch.load("whole/checkpoint.pt", weights_only=True)
    flags = ["--resume", "--epochs", "5", "--cache", "data", "--out", "out"]
    for _ in range(times(600, 8)):
        Path("out").mkdir(exist_ok=True)
        Path("out/checkpoint.pt").write_bytes(hostile_file(saved, rng))
        try:
            end = outcome(TRAINERS[name].main, flags)
        except Exception as error:
            end = f"a traceback: {type(error).__name__}"
        COUNTS[f"hostile and damaged checkpoints, {name}.py"][end] += 1


SOUP = """<a href= <img src= <img srcset=' <base href=' <![x <!doctype <!-- ]]> > ' " </a> <picture>
rel=next // http://[ javascript: &#x110000; data: ://u@h/ :99999/ [!a- $ .png utf-8 disallow: /
user-agent: * crawl-delay:""".split()
SOUP += ["<div class=spiritDiv>", " 9e99w,", "\0", "\n", "\udcff", "9" * 400, "*" * 50, "\u0130"]
HEADERS = ["Content-Length: ", "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Location: "]
HEADERS += ["Retry-After: ", "Content-Type: text/html; charset=", "X: "]
WORDS = "-1 0 10 // http://127.0.0.1:9/ file:///etc/passwd \xff\xfe /spirits zlib".split()
WORDS += ["", "9" * 5000, "a" * 70_000]


def hostile_answer(body, rng):
    lines = [f"HTTP/1.1 {rng.choice([200, 200, 200, 301, 404, 429, 503, 'x', 99])} OK"]
    for header in rng.sample(HEADERS, rng.randrange(4)):
        lines.append(header + rng.choice(WORDS))
    soup = "".join(rng.choices(SOUP, k=rng.randrange(30))).encode(errors="replace")
    answer = "\r\n".join([*lines, "", ""]).encode("latin-1") + rng.choice((body, soup))
    return rng.choice((answer, damaged(answer, rng)))


def test_hostile_answers_over_http_are_taken_or_refused(gallery, monkeypatch, rng):
    monkeypatch.setattr(scrape_spirits, "RETRIES", 0)
    for i in range(times(3000, 30)):
        picture = rng.choice(pictures_of_all_kinds())[1]
        files = {"/robots.txt": b"", "/spirits": b"<img src=a.png>", "/a.png": picture}
        path = rng.choice(list(files))
        raw = hostile_answer(files[path], rng)
        answer = lambda handler, raw=raw: handler.wfile.write(raw)  # noqa: E731
        monkeypatch.setattr(gallery, "files", {**files, path: answer})
        flags = ["--timeout", "1", "--delay", "0", "--min-side", "0", "--out", f"out/{i}"]
        end = outcome(scrape_spirits.main, ["--url", f"{gallery.url}/spirits", *flags])
        COUNTS["hostile answers over HTTP"][end] += 1


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("n, value", [(1, 7), (40, 0), (3, 255)])
def test_sets_of_one_colour_train(name, n, value):
    np.save("set.npy", np.full((n, 16, 16, 3), value, np.uint8))
    TRAINERS[name].main([*TINY, "--epochs", "2", "--out", "out"])
    assert np.isfinite(np.loadtxt("out/log.csv", delimiter=",", skiprows=1)).all()
