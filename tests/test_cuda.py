"""What only a CUDA device can show, for all three trainers. Skipped where there is none."""

import csv
import importlib

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SMALL = "--size 32 --g-width 16 --d-width 16 --batch-size 64 --device cuda --cache data".split()
TRAINERS = ["dcgan", "wgan", "wgan_gp"]


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


@pytest.mark.parametrize("flags", [[], ["--lr-decay"], ["--hflip", "--ema", "0"]])
@pytest.mark.parametrize("script", TRAINERS)
def test_graph_and_eager_runs_agree(train, script, flags):
    epochs = 2 if script == "dcgan" else 9  # 64 or 57 iterations
    flags = ["--precision", "fp32", "--epochs", epochs, *flags]
    torch.backends.cudnn.allow_tf32 = False
    graph = train(script, *flags, out="graph")
    eager = train(script, *flags, "--no-graph", out="eager")
    assert int(graph[-1]["step"]) >= 50
    for a, b in zip(graph, eager):
        for column in importlib.import_module(script).COLUMNS:
            assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("script", TRAINERS)
def test_a_resumed_graph_goes_on_where_it_stopped(train, script):
    flags = ["--precision", "fp32"]
    whole = train(script, *flags, "--epochs", 4, out="whole")
    train(script, *flags, "--epochs", 2, out="parts")
    parts = train(script, *flags, "--epochs", 4, "--resume", out="parts")
    column = importlib.import_module(script).COLUMNS[0]
    for a, b in zip(whole, parts):
        assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("script", TRAINERS)
def test_nothing_waits_for_the_device_inside_an_epoch(train, script, monkeypatch):
    module = importlib.import_module(script)
    iterations, watched = module.Run.iterations, []

    def watch(self, order, images):
        for i, batches in enumerate(iterations(self, order, images)):
            if self.epoch and not i:  # the first epoch records the graph
                torch.cuda.set_sync_debug_mode("error")
                watched.append(self.epoch)
            yield batches
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(module.Run, "iterations", watch)
    try:
        train(script, "--epochs", 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watched == [1, 2]


@pytest.mark.parametrize("script", TRAINERS)
def test_images_that_do_not_fit_are_streamed(train, script, monkeypatch):
    module = importlib.import_module(script)
    resident = train(script, "--precision", "fp32", "--epochs", 2, out="resident")
    monkeypatch.setattr(module, "place", lambda images, *_: images)
    streamed = train(script, "--precision", "fp32", "--epochs", 2, out="streamed")
    column = module.COLUMNS[0]
    for a, b in zip(resident, streamed):
        assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("script", TRAINERS)
def test_a_run_from_a_cpu_goes_on_with_a_graph(train, script):
    train(script, "--device", "cpu", "--epochs", 1)
    assert train(script, "--epochs", 2, "--resume")[-1]["epoch"] == "2"
