"""CUDA graphs: what they ask of a step, shown on a CPU, and what only a GPU can show.

On a CPU a tape takes the graph's place. It holds the kernels of one step with the memory that they
were captured with, and runs them again without a line of Python. What a graph would miss it misses
as well: a counter in Python, a buffer that is made anew, a number that the host reads.
"""

import csv
import importlib
import os
import signal
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TRAINERS = ["dcgan", "wgan", "wgan_gp"]
TINY = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 16 --precision fp32".split()

# ---- On a CPU: a tape in the graph's place ------------------------------------------------------


class Tape(TorchDispatchMode):
    """The kernels that ran while it was on, with their memory; replay() runs them again."""

    WAIT = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "_unique2")

    def __init__(self):
        super().__init__()
        self.kernels, self.replays = [], 0

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        assert kernel._schema.name.split("::")[1] not in self.WAIT, f"{kernel} reads the device"
        made = kernel(*args, **(kwargs or {}))
        self.kernels.append((kernel, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        if self.replays == 1:  # capturing on a tape has run the kernels, as a graph's has not
            return
        for kernel, args, kwargs, made in self.kernels:
            for old, new in zip(tree_leaves(made), tree_leaves(kernel(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def taped(monkeypatch):
    """Let a trainer's train() take the CPU for CUDA, and a tape for the graph: the list of them."""
    tapes = []

    def make():
        tapes.append(Tape())
        return tapes[-1]

    @contextmanager
    def record(tape, stream):
        assert not tape.kernels
        with tape:
            yield

    class CPU(str):  # torch takes it for the CPU, the trainer for CUDA
        type = "cuda"

    event = SimpleNamespace(synchronize=lambda: None, record=lambda: None)
    fakes = {"CUDAGraph": make, "graph": record, "stream": lambda _: nullcontext()}
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes |= {"Stream": lambda: stream, "Event": lambda: event, "current_stream": lambda: None}

    def patch(module):
        train = module.train
        monkeypatch.setattr(module, "train", lambda *args: train(*args[:5], CPU("cpu"), 0, 1))
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        return tapes

    return patch


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a trainer on 83 small images, five batches of 16 and three left: its checkpoint."""
    pixels = np.random.default_rng(1).integers(0, 256, (83, 16, 16, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    monkeypatch.chdir(tmp_path)

    def run(module, out, *flags):
        flags = ["--out", out, "--device", "cpu", *map(str, flags)]
        module.main(["--data", "images.npy", *TINY, *flags])
        return torch.load(f"{out}/checkpoint.pt", weights_only=True)

    return run


def same(a, b, within=0.0):
    """Whether two checkpoints are equal, to the bit or `within`, but for times and folders."""
    if isinstance(a, dict):
        keys = a.keys() - {"seconds", "out", "resume"}
        return a.keys() == b.keys() and all(same(a[k], b[k], within) for k in keys)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, within) for x, y in zip(a, b))
    if within and isinstance(a, (float, torch.Tensor)):
        return torch.allclose(*(torch.as_tensor(x).double() for x in (a, b)), within, within)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("flags", [[], ["--lr-decay", "--ema", 0], ["--hflip", "--norm", "none"]])
@pytest.mark.parametrize("script", TRAINERS)
def test_a_replayed_step_is_one_that_python_runs(taped, run, script, flags):
    """To the bit: latents, updates, average, learning rate, losses, over several epochs."""
    if script == "wgan":
        pytest.skip("on a CPU, RMSprop reads a rate that is a tensor")
    module = importlib.import_module(script)
    epochs = ["--epochs", 3 if script == "dcgan" else 9]
    plain = run(module, "plain", *flags, *epochs)
    tapes = taped(module)
    replayed = run(module, "replayed", *flags, *epochs)
    assert len(tapes) == 1 and tapes[0].replays == plain["step"] - 3 >= 6
    assert same(plain, replayed)


def test_a_replayed_step_iterates_the_spectral_norm(taped, run):
    plain = run(importlib.import_module("dcgan"), "plain", "--d-norm", "spectral", "--epochs", 3)
    tapes = taped(importlib.import_module("dcgan"))
    replayed = run(
        importlib.import_module("dcgan"), "replayed", "--d-norm", "spectral", "--epochs", 3
    )
    assert len(tapes) == 1 and same(plain, replayed)


def test_a_replayed_run_stopped_in_mid_epoch_goes_on_to_the_same_end(taped, run, monkeypatch):
    module = importlib.import_module("wgan_gp")
    flags = ["--epochs", 6, "--n-critic", 2]
    plain = run(module, "plain", *flags)
    tapes, seeds = taped(module), np.random.SeedSequence

    def interrupted(entropy):
        if entropy[1] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return seeds(entropy)

    with monkeypatch.context() as patch:
        patch.setattr(np.random, "SeedSequence", interrupted)
        with pytest.raises(SystemExit) as stop:
            run(module, "parts", *flags)
    assert stop.value.code == 130 and torch.load("parts/checkpoint.pt")["step"] == 6
    assert same(plain, run(module, "parts", *flags, "--resume")) and len(tapes) == 2


def test_a_capture_that_fails_names_the_flag_and_leaves_a_folder_to_go_on_with(
    taped, run, monkeypatch
):
    module = importlib.import_module("dcgan")
    plain = run(module, "plain", "--epochs", 2)
    with monkeypatch.context() as patch:
        taped(module)

        def broken(graph, stream):
            raise RuntimeError("operation not permitted when stream is capturing")

        patch.setattr(torch.cuda, "graph", broken)
        with pytest.raises(SystemExit, match=r"not permitted.*--resume --no-graph"):
            run(module, "parts", "--epochs", 2)
    assert same(plain["G"], run(module, "parts", "--resume", "--no-graph", "--epochs", 2)["G"])


def test_the_tape_misses_what_a_graph_misses():
    """A counter in Python, a new buffer and a number read by the host are all noticed."""
    x, state = torch.zeros(3), {"calls": 0, "buffer": torch.zeros(3)}

    def step():
        state["calls"] += 1
        state["buffer"] = x + state["calls"]
        x.add_(state["buffer"])

    tape = Tape()
    with tape:
        step()
    before = state["buffer"]
    for _ in range(3):
        tape.replay()
    assert state["calls"] == 1 and x.tolist() == [7] * 3 and before is state["buffer"]
    with pytest.raises(AssertionError, match="reads the device"), Tape():
        x.sum().item()


# ---- On a GPU -----------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SMALL = "--size 32 --g-width 16 --d-width 16 --batch-size 64 --device cuda --cache data".split()


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Run a trainer on the sprites in an empty folder: the rows of its log."""
    monkeypatch.chdir(tmp_path)

    def run(script, *flags, out="run"):
        module = importlib.import_module(script)
        module.main([*SMALL, "--out", out, *map(str, flags)])
        with open(tmp_path / out / "log.csv") as file:
            return list(csv.DictReader(file))

    return run


def assert_near(script, rows, others, rel=1e-2):
    assert len(rows) == len(others)
    for a, b in zip(rows, others):
        for column in importlib.import_module(script).COLUMNS:
            assert float(a[column]) == pytest.approx(float(b[column]), rel=rel, abs=rel / 10)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(
    "flags",
    ["", "--lr-decay", "--hflip --ema 0", "--batch-size 60", "--precision bf16"],
)
@pytest.mark.parametrize("script", TRAINERS)
def test_graph_and_eager_runs_agree(train, script, flags, monkeypatch):
    flags = ["--precision", "fp32", "--epochs", 2 if script == "dcgan" else 9, *flags.split()]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    graph = train(script, *flags, out="graph")
    eager = train(script, *flags, "--no-graph", out="eager")
    assert int(graph[-1]["step"]) >= 50
    assert_near(script, graph, eager, 5e-2 if "bf16" in flags else 1e-3)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("script", TRAINERS)
def test_a_resumed_graph_goes_on_where_it_stopped(train, script, monkeypatch):
    """Also from the middle of an epoch."""
    flags = ["--precision", "fp32", "--epochs", 4]
    whole = train(script, *flags, out="whole")
    module, seeds = importlib.import_module(script), np.random.SeedSequence

    def interrupted(entropy):
        if entropy[1] == int(whole[1]["step"]) + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return seeds(entropy)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(module.np.random, "SeedSequence", interrupted)
        train(script, *flags, out="parts")
    assert_near(script, whole, train(script, *flags, "--resume", out="parts"))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("script", TRAINERS)
def test_nothing_waits_for_the_device_inside_an_epoch(train, script, monkeypatch):
    module = importlib.import_module(script)
    update, isfinite = module.np.random.SeedSequence, torch.Tensor.isfinite

    def watch(entropy):
        if entropy[1] > 4:  # after the graph has been captured
            torch.cuda.set_sync_debug_mode("error")
        return update(entropy)

    def end(totals):  # what the losses of an epoch come to
        torch.cuda.set_sync_debug_mode("default")
        return isfinite(totals)

    monkeypatch.setattr(module.np.random, "SeedSequence", watch)
    monkeypatch.setattr(torch.Tensor, "isfinite", end)
    try:
        train(script, "--epochs", 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("script", TRAINERS)
def test_images_that_do_not_fit_are_streamed(train, script, monkeypatch):
    resident = train(script, "--precision", "fp32", "--epochs", 2, out="resident")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 0))
    streamed = train(script, "--precision", "fp32", "--epochs", 2, out="streamed")
    assert_near(script, resident, streamed)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("script", TRAINERS)
def test_a_run_from_a_cpu_goes_on_with_a_graph(train, script):
    train(script, "--device", "cpu", "--epochs", 1)
    assert train(script, "--epochs", 2, "--resume")[-1]["epoch"] == "2"
