"""CUDA graphs: what they ask of a step, shown on a CPU, and what only a GPU can show.

On a CPU a tape takes the graph's place. It holds the kernels of one step with the memory that they
were recorded with, and runs them again without a line of Python. What a graph misses it misses as
well: a counter in Python, a buffer that is made anew, a number that the host reads.
"""

import inspect
import os
import signal
from itertools import chain

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import dcgan
import wgan
import wgan_gp

TRAINERS = [dcgan, wgan, wgan_gp]
TINY = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 16 --precision fp32".split()
SMALL = "--g-width 16 --d-width 16 --batch-size 64 --precision fp32 --device cuda".split()
HOST_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}

# ---- On a CPU: a tape in the graph's place -------------------------------------------------------


class Tape(TorchDispatchMode):
    """The kernels of a step, with their memory; replay() runs them again."""

    def __init__(self, step):
        super().__init__()
        self.kernels = []
        self.replays = 0
        with self:
            step()

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        assert kernel._schema.name not in HOST_READS
        made = kernel(*args, **(kwargs or {}))
        memory = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}, made))
        self.kernels.append((kernel, *memory))
        return made

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        if self.replays == 1:  # recording has run the kernels, which capturing does not
            return
        for kernel, args, kwargs, made in self.kernels:
            again = kernel(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again)):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def take_the_cpu_for_cuda(module, monkeypatch):
    """Let train() go its way on CUDA, with tapes for graphs: the list of them."""
    tapes = []

    def capture(step):
        tapes.append(Tape(step))
        return tapes[-1].replay

    source = inspect.getsource(module.train)
    assert source.count('device.type == "cuda"') == 2
    monkeypatch.setattr(module, "train", module.train)
    exec(source.replace('device.type == "cuda"', "True"), vars(module))
    monkeypatch.setattr(module, "capture", capture)
    for name in ("synchronize", "Stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: None)
    return tapes


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a trainer on 83 small images of three classes: networks, moments and log at its end."""
    pixels = np.random.default_rng(1).integers(0, 256, (83, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(83) % 3)
    monkeypatch.chdir(tmp_path)

    def run(module, out, *flags):
        monkeypatch.setattr(module, "find_spec", lambda name: None)  # no curves
        module.main(["--data", "images.npz", "--out", out, *TINY, *flags])
        saved = torch.load(f"{out}/checkpoint.pt", weights_only=True)
        for row in saved["log"]:
            del row["seconds"]
        parts = {name: saved[name] for name in ("step", "log", "G", "G_ema")}
        parts["moments"] = saved["opt_G"]["state"]
        parts["second"] = saved.get("D") or saved["critic"]
        return parts

    return run


@pytest.mark.parametrize("module, flags", [
    (dcgan, "--epochs 2 --lr-decay --ema 0"), (dcgan, "--epochs 2 --d-norm spectral --hflip"),
    (wgan_gp, "--epochs 4 --n-critic 2 --conditional --lr-decay"),
])  # fmt: skip
def test_a_replayed_step_is_one_that_python_runs(run, monkeypatch, module, flags):
    """To the bit: latents, updates, average, learning rate and losses, over several epochs."""
    plain = run(module, "plain", *flags.split())
    tapes = take_the_cpu_for_cuda(module, monkeypatch)
    replayed = run(module, "replayed", *flags.split())
    (tape,) = tapes
    assert tape.replays == plain["step"] - 3 > 4
    assert_close(replayed, plain, rtol=0, atol=0)


def test_a_capture_that_fails_names_the_flag(monkeypatch):
    def broken(graph, stream):
        raise RuntimeError("not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", broken)
    with pytest.raises(SystemExit, match=r"^.*--resume --no-graph.*not permitted.*$"):
        wgan_gp.capture(print)


@pytest.mark.parametrize("module", TRAINERS)
def test_weights_and_moments_are_channels_last(module):
    args = module.parse_args(["--data", "cifar10", *TINY])
    parts, step = module.build(args, 0, torch.device("cpu"))
    step(batches=[(torch.rand(6, 3, 16, 16), None)])
    moments = [state.values() for state in parts["opt_G"].state.values()]
    for tensor in [*parts["G"].parameters(), *chain(*moments)]:
        if tensor.ndim == 4:
            assert tensor.is_contiguous(memory_format=torch.channels_last)


# ---- On a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train on the sprites, on CUDA: the rows of the log, without their times."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def train(module, out, *flags):
        module.main([*SMALL, "--out", out, *map(str, flags)])
        rows = torch.load(f"{out}/checkpoint.pt", weights_only=True)["log"]
        for row in rows:
            del row["seconds"]
        return rows

    return train


def at_step(monkeypatch, step, act):
    """Call `act` when the step's random numbers are seeded."""
    SeedSequence = np.random.SeedSequence

    def watched(entropy):
        if entropy[1] == step:
            act()
        return SeedSequence(entropy)

    monkeypatch.setattr(np.random, "SeedSequence", watched)


@pytest.mark.gpu
@pytest.mark.parametrize("module", TRAINERS)
@pytest.mark.parametrize("flags, rtol", [
    ("--lr-decay", 1e-3), ("--hflip --ema 0 --conditional", 1e-3), ("--precision bf16", 5e-2),
])  # fmt: skip
def test_a_graph_agrees_with_eager_steps_on_images_in_ram(train, monkeypatch, module, flags, rtol):
    graph = train(module, "graph", "--epochs", 2, *flags.split())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 0))
    eager = train(module, "eager", "--epochs", 2, *flags.split(), "--no-graph")
    assert graph[-1]["step"] >= 32
    assert_close(graph, eager, rtol=rtol, atol=rtol / 10)


@pytest.mark.gpu
@pytest.mark.parametrize("module", TRAINERS)
def test_a_resumed_graph_goes_on_where_it_stopped(train, monkeypatch, module):
    whole = train(module, "whole", "--epochs", 4)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        in_second_epoch = whole[0]["step"] + 9
        at_step(patch, in_second_epoch, lambda: os.kill(os.getpid(), signal.SIGINT))
        train(module, "parts", "--epochs", 4)
    parts = train(module, "parts", "--resume")
    assert_close(parts, whole, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("module", TRAINERS)
def test_nothing_waits_for_the_device_inside_an_epoch(train, monkeypatch, module):
    check_finite = module.check_finite

    def after_the_epoch(tensors, state, args):
        torch.cuda.set_sync_debug_mode("default")
        check_finite(tensors, state, args)

    monkeypatch.setattr(module, "check_finite", after_the_epoch)
    at_step(monkeypatch, 9, lambda: torch.cuda.set_sync_debug_mode("error"))
    try:
        train(module, "run", "--epochs", 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
