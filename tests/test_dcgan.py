"""dcgan.py: its mathematics, its loop, and a run from the first epoch to the last.

What the trainers share is tested here once; test_conventions.py holds their copies equal.
"""

import copy
import csv
import importlib
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import dcgan

SCRIPT = Path(dcgan.__file__)
TINY = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 16 --snapshot-every 2".split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with 83 small images in images.npy: five batches of 16."""
    pixels = np.random.default_rng(1).integers(0, 256, (83, 16, 16, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*flags, script=dcgan):
    script.main(["--data", "images.npy", "--device", "cpu", *TINY, *map(str, flags)])


def refusal(*flags):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    return str(stop.value)


def usage_error(capsys, *flags):
    with pytest.raises(SystemExit) as stop:
        dcgan.parse_args(list(flags))
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b, where=""):
    """Equal to the bit, at any depth; times are let be."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds", "out", "resume", "epochs"}:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


# ---- Networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "g_width, d_width, g_parameters, d_parameters",
    [
        # weights 16(100*512 + 512*256 + 256*128 + 128*3) + 3, norms 2(512 + 256 + 128)
        # weights 16(3*64 + 64*128 + 128*256 + 256) + 64 + 1, norms 2(128 + 256)
        (128, 64, 3_448_579, 663_361),
        # weights 16(100*256 + 256*128 + 128*64 + 64*3) + 3, norms 2(256 + 128 + 64)
        (64, 64, 1_068_931, 663_361),
    ],
)
def test_published_variants_at_32(g_width, d_width, g_parameters, d_parameters):
    G, D = dcgan.Generator(32, 100, g_width), dcgan.Discriminator(32, d_width)
    assert sum(p.numel() for p in G.parameters()) == g_parameters
    assert sum(p.numel() for p in D.parameters()) == d_parameters
    images = G(torch.randn(2, 100))
    assert images.shape == (2, 3, 32, 32) and images.abs().max() <= 1
    assert D(images).shape == (2,)
    widths = [m.out_channels for m in G.main if isinstance(m, nn.ConvTranspose2d)]
    assert widths == [4 * g_width, 2 * g_width, g_width, 3]
    assert [m.out_channels for m in D.main if isinstance(m, nn.Conv2d)] == [64, 128, 256, 1]


@pytest.mark.parametrize("size", [16, 28, 48, 64, 80, 96, 112, 128, 256])
def test_every_size_halves_down_to_its_first_map(size):
    G, D = dcgan.Generator(size, 5, 2), dcgan.Discriminator(size, 2)
    seen = []
    for layer in G.main:
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda m, i, o: seen.append(o.shape[-1]))
    images = G.eval()(torch.randn(1, 5))
    assert images.shape == (1, 3, size, size) and D.eval()(images).shape == (1,)
    assert 4 <= seen[0] <= 7 and seen[-1] == size
    assert all(b == 2 * a for a, b in pairwise(seen))


def test_widths_double_with_each_halving_up_to_1024():
    widths = [
        m.out_channels for m in dcgan.Discriminator(256, 64).main if hasattr(m, "kernel_size")
    ]
    assert widths == [64, 128, 256, 512, 1024, 1024, 1]


@pytest.mark.parametrize("size", [0, 8, 14, 30, 50, 288, 320, 512])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        dcgan.first_map(size)


def test_weights_start_as_in_the_paper():
    torch.manual_seed(0)
    for net in (dcgan.Generator(), dcgan.Discriminator()):
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.weight.numel() > 9000:
                assert abs(module.weight.mean()) < 1e-3 and abs(module.weight.std() - 0.02) < 1e-3
            if isinstance(module, nn.BatchNorm2d):
                assert abs(module.weight.mean() - 1) < 0.01 and 0.01 < module.weight.std() < 0.03
                assert (module.bias == 0).all()


def test_batch_norm_is_not_first_nor_last_and_the_ablations_are_what_they_say():
    kinds = [type(m).__name__ for m in dcgan.Discriminator().main]
    assert kinds == ["Conv2d", "LeakyReLU"] + ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2 + [
        "Conv2d"
    ]
    kinds = [type(m).__name__ for m in dcgan.Generator().main]
    assert kinds == ["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 3 + ["ConvTranspose2d", "Tanh"]
    plain = dcgan.Discriminator(norm="none", act="relu")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert all(m.bias is not None for m in plain.modules() if isinstance(m, nn.Conv2d))
    acts = [m for m in plain.modules() if isinstance(m, nn.LeakyReLU)]
    assert [m(torch.tensor([-3.0, 2.0])).tolist() for m in acts] == [[0, 2]] * 3
    assert not any(isinstance(m, nn.BatchNorm2d) for m in dcgan.Generator(norm="none").modules())


# ---- Objective ----------------------------------------------------------------------------------


def test_losses_are_the_cross_entropies_of_a_sigmoid():
    real, fake = torch.randn(2, 50, dtype=torch.float64) * 5
    entropy = nn.functional.binary_cross_entropy
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    expected = entropy(real.sigmoid(), ones) + entropy(fake.sigmoid(), zeros)
    assert torch.allclose(dcgan.discriminator_loss(real, fake), expected, rtol=1e-12)
    assert torch.allclose(dcgan.generator_loss(fake), entropy(fake.sigmoid(), ones), rtol=1e-12)


def test_a_logit_of_200_on_the_wrong_side_still_has_a_gradient():
    wrong = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = dcgan.discriminator_loss(wrong[:1], wrong[1:]) + dcgan.generator_loss(wrong[:1])
    loss.backward()
    assert loss.item() == pytest.approx(600)
    assert wrong.grad.tolist() == pytest.approx([-2, 1])


# ---- Training -----------------------------------------------------------------------------------


def two_nets(dtype=torch.float64):
    torch.manual_seed(3)
    return dcgan.Generator(16, 8, 4).to(dtype), dcgan.Discriminator(16, 4).to(dtype)


def test_a_train_step_is_the_algorithm_written_out_by_hand(monkeypatch):
    """Weights, batch-norm statistics and reported values after one iteration, in float64."""
    G, D = two_nets()
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    real = torch.rand(6, 3, 16, 16, dtype=torch.float64) * 2 - 1
    z = torch.randn(6, 8, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: z)
    opts = [torch.optim.SGD(net.parameters(), 0.1) for net in (G, D)]
    values = dcgan.train_step(G, D, *opts, [(real, real.new_zeros(6, 0))], 8)

    entropy = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    fake = G2(z)
    on_real, on_fake = D2(real), D2(fake.detach())
    d_loss = entropy(on_real, ones) + entropy(on_fake, zeros)
    steps = torch.autograd.grad(d_loss, list(D2.parameters()))
    with torch.no_grad():
        for p, g in zip(D2.parameters(), steps):
            p -= 0.1 * g
    g_loss = entropy(D2(fake), ones)
    steps = torch.autograd.grad(g_loss, list(G2.parameters()))
    with torch.no_grad():
        for p, g in zip(G2.parameters(), steps):
            p -= 0.1 * g
    for net, by_hand in ((G, G2), (D, D2)):
        for a, b in zip(net.state_dict().values(), by_hand.state_dict().values()):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)
    expected = [d_loss, g_loss, on_real.sigmoid().mean(), on_fake.sigmoid().mean()]
    assert values.tolist() == pytest.approx([v.item() for v in expected], rel=1e-10)


def test_each_update_moves_its_own_network_in_its_own_direction():
    G, D = two_nets(torch.float32)
    real, z = torch.rand(16, 3, 16, 16) * 2 - 1, torch.randn(16, 8)
    before_G, before_D = copy.deepcopy(G.state_dict()), copy.deepcopy(D.state_dict())
    opt_D, opt_G = (torch.optim.SGD(net.parameters(), 0.01) for net in (D, G))
    loss = dcgan.discriminator_loss(D(real), D(G(z).detach()))
    dcgan.optimizer_step(opt_D, loss)
    assert dcgan.discriminator_loss(D(real), D(G(z).detach())) < loss
    assert all(p.grad is None for p in G.parameters())
    for name, p in G.named_parameters():
        assert torch.equal(p, before_G[name])
    middle = copy.deepcopy(list(D.parameters()))
    loss = dcgan.generator_loss(D(G(z)))
    for p in D.parameters():
        p.grad = None
    dcgan.optimizer_step(opt_G, loss)
    assert dcgan.generator_loss(D(G(z))) < loss
    assert all(p.grad is None for p in D.parameters())
    assert all(torch.equal(p, q) for p, q in zip(D.parameters(), middle))
    assert not torch.equal(D.main[0].weight, before_D["main.0.weight"])


@given(st.integers(1, 60), st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_epochs_are_permutations_without_a_partial_step(n, per_step, epoch, seed):
    order = dcgan.shuffled_indices(n, per_step, epoch, seed)
    assert order.shape == (max(1, n // per_step), per_step) and order.dtype == torch.int64
    assert 0 <= order.min() and order.max() < n
    assert order.unique().numel() == min(n, order.numel())  # none twice, unless all are in it
    assert torch.equal(order, dcgan.shuffled_indices(n, per_step, epoch, seed))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [dcgan.shuffled_indices(50, 10, e, s).flatten() for e, s in ((0, 0), (1, 0), (0, 1))]
    for i in range(3):
        assert not torch.equal(orders[i], orders[i - 1])
        assert sorted(orders[i].tolist()) == list(range(50))


def test_the_average_follows_the_weights_and_the_batch_norm_statistics():
    G, _ = two_nets(torch.float32)
    G_ema = copy.deepcopy(G).requires_grad_(False)
    opt = torch.optim.SGD(G.parameters(), 0.5)
    expected = {k: v.double().numpy().copy() for k, v in G.state_dict().items()}
    for weight in torch.linspace(0.9, 0.1, 40):
        dcgan.optimizer_step(opt, G(torch.randn(4, 8)).square().mean())
        dcgan.update_ema(G_ema, G, weight)
        for k, v in G.state_dict().items():
            expected[k] = (1 - weight.item()) * expected[k] + weight.item() * v.double().numpy()
    for k, v in G_ema.state_dict().items():
        if k.endswith("num_batches_tracked"):
            assert v == 40
        else:
            np.testing.assert_allclose(v.numpy(), expected[k], rtol=1e-4, atol=1e-6, err_msg=k)
            assert not torch.equal(v, G.state_dict()[k])


def test_the_averages_decay_warms_up_and_0_is_the_raw_generator(folder, monkeypatch):
    update, weights = dcgan.update_ema, []
    monkeypatch.setattr(
        dcgan, "update_ema", lambda *a: (weights.append(float(a[2])), update(*a)) and None
    )
    run("--epochs", 4, "--ema", 0.5)
    decays = [min(0.5, (1 + t) / (10 + t)) for t in range(20)]
    assert [1 - w for w in weights] == pytest.approx(decays)
    run("--epochs", 1, "--ema", 0, "--out", "raw")
    saved = load("raw/checkpoint.pt")
    assert_same(saved["G"], saved["G_ema"])


def test_a_latent_belongs_to_its_seed():
    z = dcgan.latents([5, 0, 5, 99], 100)
    assert torch.equal(z[0], z[2]) and not torch.equal(z[0], z[1])
    assert torch.equal(z[3:], dcgan.latents([99], 100))
    many = dcgan.latents(range(2000), 100)
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01
    assert abs((many[1:] * many[:-1]).mean()) < 0.01  # neighbouring seeds are unrelated


def test_sampling_neither_mixes_images_nor_touches_the_run():
    G, _ = two_nets(torch.float32)
    G(torch.randn(64, 8))  # give the batch norms some statistics
    G.train()
    before, state = copy.deepcopy(G.state_dict()), torch.get_rng_state()
    z = dcgan.latents(range(10), 8)
    images = dcgan.sample(G, z, batch_size=4)
    assert images.dtype == torch.uint8 and images.shape == (10, 3, 16, 16)
    assert torch.equal(images[7:8], dcgan.sample(G, z[7:8]))
    assert torch.equal(images, dcgan.sample(G, z))
    assert G.training and torch.equal(state, torch.get_rng_state())
    assert_same(G.state_dict(), before)
    with torch.no_grad():
        by_hand = ((G.eval()(z).double() + 1) * 127.5).round().clamp(0, 255)
    assert (images.double() - by_hand).abs().max() <= 1


def test_bfloat16_runs_the_network_and_gives_float32_back():
    G, D = two_nets(torch.float32)
    average = copy.deepcopy(G)
    exact = D(G(torch.ones(4, 8))).detach()
    for net in (G, D):
        dcgan.autocast(net, torch.device("cpu"))
    seen = []
    D.main[3].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    rough = D(G(torch.ones(4, 8)))
    assert seen == [torch.bfloat16] and rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1
    assert average(torch.ones(4, 8)).dtype == torch.float32


# ---- A run from start to end --------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(folder, precision):
    common = ["--precision", precision, "--hflip", "--seed", 7]
    run("--epochs", 4, "--out", "whole", *common)
    run("--epochs", 2, "--out", "parts", *common)
    run("--epochs", 4, "--out", "parts", "--resume")
    assert_same(load("whole/checkpoint.pt"), load("parts/checkpoint.pt"))
    assert_same(load("whole/snapshots/epoch_0004.pt"), load("parts/snapshots/epoch_0004.pt"))
    for name in ("samples/epoch_0001.png", "samples/epoch_0004.png"):
        assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes()


@pytest.mark.parametrize("name, step", [("SIGINT", 2), ("SIGTERM", 5), ("SIGHUP", 7)])
def test_a_signal_stops_after_a_step_and_loses_nothing(folder, monkeypatch, capsys, name, step):
    """Before, at and after the end of the first epoch of five steps."""
    number = getattr(signal, name, signal.SIGINT)
    run("--epochs", 3, "--out", "whole", "--lr-decay")
    train_step, count = dcgan.train_step, []

    def interrupted(**rest):
        count.append(1)
        if len(count) == step:
            os.kill(os.getpid(), number)
        return train_step(**rest)

    monkeypatch.setattr(dcgan, "train_step", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run("--epochs", 3, "--out", "parts", "--lr-decay")
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    assert load("parts/checkpoint.pt")["step"] == step
    assert 'python dcgan.py --out "parts" --resume' in capsys.readouterr().out
    monkeypatch.setattr(dcgan, "train_step", train_step)
    dcgan.main(["--out", "parts", "--resume"])
    assert_same(load("whole/checkpoint.pt"), load("parts/checkpoint.pt"))


def test_what_a_killed_run_left_half_written_is_cleared_away(folder):
    run("--epochs", 1)
    left = [Path("runs/dcgan", name) for name in (".checkpoint.pt.7.tmp", "samples/.a.png.7.tmp")]
    for path in left:
        path.write_bytes(b"half")
    dcgan.main("--resume --epochs 2".split())
    assert (
        not any(path.exists() for path in left) and load("runs/dcgan/checkpoint.pt")["epoch"] == 2
    )


def test_the_run_folder_holds_what_it_should(folder):
    run("--epochs", 3)
    out = folder / "runs" / "dcgan"
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    pytest.importorskip("matplotlib")
    grids = [f"samples/epoch_000{e}.png" for e in (1, 2, 3)]
    shots = [f"snapshots/epoch_000{e}.pt" for e in (2, 3)]
    assert names == sorted(
        [".lock", "args.json", "checkpoint.pt", "dcgan.py", "log.csv", "loss.png", *grids, *shots]
    )
    assert (out / "dcgan.py").read_bytes() == SCRIPT.read_bytes()
    facts = json.loads((out / "args.json").read_text())
    assert facts["args"]["batch_size"] == 16 and facts["torch"] == torch.__version__
    rows = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        "epoch",
        "step",
        "images",
        "seconds",
        "d_loss",
        "g_loss",
        "D(x)",
        "D(G(z))",
    ]
    assert [(r["epoch"], r["step"], r["images"]) for r in rows] == [
        ("1", "5", "80"),
        ("2", "10", "160"),
        ("3", "15", "240"),
    ]
    assert all(0 < float(r["D(x)"]) < 1 and 0 < float(r["D(G(z))"]) < 1 for r in rows)


def test_cell_i_of_every_grid_is_the_image_of_seed_i(folder):
    run("--epochs", 1)
    out = folder / "runs" / "dcgan"
    for name, key in (("checkpoint.pt", "G_ema"), ("snapshots/epoch_0001.pt", "G_ema")):
        saved = load(out / name)
        assert (saved["format"], saved["script"]) == (2, "dcgan.py")
        G = dcgan.Generator(**saved["generator"]).eval()
        G.load_state_dict(saved[key])
        with torch.no_grad():
            image = G(dcgan.latents([19], 8))[0]
        grid = np.asarray(Image.open(out / "samples" / "epoch_0001.png"))
        row, column = divmod(19, 8)
        cell = grid[2 + row * 18 :][:16, 2 + column * 18 :][:, :16]
        by_hand = ((image.permute(1, 2, 0).numpy() + 1) * 127.5).round()
        assert abs(cell - by_hand).max() <= 1
    assert load(out / "snapshots/epoch_0001.pt").keys() == {
        "format",
        "script",
        "generator",
        "args",
        "epoch",
        "step",
        "G_ema",
        "classes",
    }


def test_the_learning_rate_falls_linearly_to_zero(folder, monkeypatch):
    train_step, seen = dcgan.train_step, []

    def spy(opt_G, opt_D, **rest):
        seen.append([float(opt.param_groups[0]["lr"]) for opt in (opt_G, opt_D)])
        return train_step(opt_G=opt_G, opt_D=opt_D, **rest)

    monkeypatch.setattr(dcgan, "train_step", spy)
    run("--epochs", 2, "--lr-decay", "--lr", 0.01)
    expected = [0.01 * (1 - k / 10) for k in range(10)]
    assert [a for a, _ in seen] == pytest.approx(expected) == [b for _, b in seen]


def test_it_learns(folder):
    """The left halves are dark red, the right ones bright blue; so are those of the samples."""
    pixels = np.random.default_rng(0).normal(0, 10, (256, 16, 16, 3))
    pixels[:, :, :8] += (120, 30, 30)
    pixels[:, :, 8:] += (90, 150, 220)
    np.save("halves.npy", pixels.clip(0, 255).astype(np.uint8))
    flags = "--g-width 16 --d-width 16 --batch-size 32 --lr 1e-3 --ema 0.9 --epochs 12".split()
    run(*flags, "--data", "halves.npy")
    saved = load("runs/dcgan/checkpoint.pt")
    G = dcgan.Generator(**saved["generator"])
    G.load_state_dict(saved["G_ema"])
    samples = dcgan.sample(G, dcgan.latents(range(100), 8)).double()
    for half, target in ((samples[..., :8], (120, 30, 30)), (samples[..., 8:], (90, 150, 220))):
        assert (half.mean((0, 2, 3)) - torch.tensor(target)).abs().max() < 35  # grey is 97 off


def test_sprites_take_settings_of_their_own_and_say_which(folder, capsys):
    demo, paper = dcgan.parse_args([]), dcgan.parse_args(["--data", "cifar10"])
    assert (demo.batch_size, demo.g_width, demo.ema) == (16, 24, 0.99)
    assert (paper.batch_size, paper.g_width, paper.d_width, paper.ema) == (128, 128, 64, 0.999)
    assert (paper.epochs, paper.lr, paper.betas) == (40, 2e-4, [0.5, 0.999])
    assert dcgan.parse_args(["--g-width", "8"]).g_width == 8
    dcgan.main("--size 16 --g-width 2 --d-width 2 --epochs 1 --batch-size 512".split())
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "settings for sprites" in x]
    same = dcgan.parse_args(["--data", "x/", *line.split("sprites: ")[1].split()])
    assert (same.g_width, same.batch_size, same.epochs, same.ema) == (2, 512, 1, 0.99)


# ---- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--size 50", "--size 50 is not 4, 5, 6 or 7 times a power of two"),
        ("--size 8", "16 to 256"),
        ("--epochs 0", "--epochs 0: must be 1 or more"),
        ("--batch-size x", "--batch-size: invalid int value: 'x'"),
        ("--lr 0", "--lr 0.0: must be above 0"),
        ("--lr nan", "--lr nan: must be above 0"),
        ("--seed -1", "--seed -1: must be 0 or more"),
        ("--seed 99999999999999999999", "--seed 99999999999999999999: must be"),
        ("--ema 1", "--ema 1.0: must be in [0, 1)"),
        ("--betas 0.5 1.5", "--betas [0.5, 1.5]: must be in [0, 1)"),
        ("--d-act gelu", "--d-act: invalid choice"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_flags_end_in_one_line_and_exit_2(capsys, flags, words):
    assert words in usage_error(capsys, *flags.split())


@pytest.mark.parametrize("batch_size", [1, 7, 83, 84, 500])
def test_any_batch_size_trains_and_a_set_smaller_than_a_batch_is_repeated(folder, batch_size):
    run("--epochs", 2, "--batch-size", batch_size, "--norm", "none")
    steps = max(1, 83 // batch_size)
    rows = load("runs/dcgan/checkpoint.pt")["log"]
    assert [row["step"] for row in rows] == [steps, 2 * steps]
    assert [row["images"] for row in rows] == [steps * batch_size, 2 * steps * batch_size]


def test_an_out_folder_in_use_is_refused(folder):
    run("--epochs", 1)
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*.*")}
    message = refusal("--epochs", 1)
    assert "runs/dcgan: holds a run" in message and "--resume" in message
    assert {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*.*")} == before
    Path("runs/dcgan/checkpoint.pt").unlink()
    assert "holds a run" in refusal("--epochs", 1)


def test_moments_of_another_layout_are_taken_by_value(folder):
    """As a run that was begun on MPS has them: fused Adam walks the memory of both side by side."""
    run("--epochs", 1, "--g-width", 8, "--d-width", 8)
    shutil.copytree("runs/dcgan", "runs/mps")
    path = Path("runs/mps/checkpoint.pt")
    saved = load(path)
    for opt in ("opt_G", "opt_D"):
        for kept in saved[opt]["state"].values():
            kept |= {k: kept[k].contiguous() for k in ("exp_avg", "exp_avg_sq")}
    assert not load("runs/dcgan/checkpoint.pt")["opt_D"]["state"][2]["exp_avg"].is_contiguous()
    torch.save(saved, path)
    for out in ("runs/dcgan", "runs/mps"):
        dcgan.main(["--out", out, "--resume", "--epochs", "2"])
    one, other = (load(f"{out}/checkpoint.pt")["G"] for out in ("runs/dcgan", "runs/mps"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_on_a_machine_with_mps_the_cpu_trains(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    run("--epochs", 1)


def test_resume_refuses_flags_that_would_make_it_another_run(folder, capsys):
    run("--epochs", 1)
    for flags, words in (
        ("--size 32", "--size: the run in runs/dcgan has 16"),
        ("--seed 3", "has 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            dcgan.main(["--resume", *flags.split()])
        assert stop.value.code == 2 and words in capsys.readouterr().err


def test_resume_of_a_finished_run_or_of_none_changes_nothing(folder, capsys):
    run("--epochs", 2)
    before = {path: path.read_bytes() for path in Path("runs/dcgan").rglob("*.*")}
    for epochs in (1, 2):
        with pytest.raises(SystemExit) as stop:
            dcgan.main(["--resume", "--lr", "1", "--epochs", str(epochs)])
        assert not stop.value.code and "epoch 2 is there already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path("runs/dcgan").rglob("*.*")} == before
    assert "no checkpoint.pt in runs/typo" in refusal("--resume", "--out", "runs/typo")
    assert not Path("runs/typo").exists()


def test_a_renamed_copy_speaks_of_itself(folder):
    shutil.copy(dcgan.__file__, "mygan.py")
    command = [sys.executable, "mygan.py", "--data", "images.npy", "--device", "cpu", *TINY]
    subprocess.run([*command, "--epochs", "1"], check=True, timeout=120)
    assert Path("runs/dcgan/mygan.py").read_bytes() == Path("mygan.py").read_bytes()
    assert "runs/dcgan/dcgan.py" not in map(str, Path("runs").rglob("*.py"))


def test_resume_refuses_another_number_of_images(folder):
    run("--epochs", 1)
    np.save("images.npy", np.zeros((82, 16, 16, 3), np.uint8))
    assert "has 82 images, not the 83 of the run" in refusal("--resume", "--epochs", 2)


def test_resume_takes_a_new_learning_rate(folder):
    run("--epochs", 1)
    dcgan.main("--resume --epochs 2 --lr 0.03".split())
    saved = load("runs/dcgan/checkpoint.pt")
    assert [saved[k]["param_groups"][0]["lr"] for k in ("opt_G", "opt_D")] == pytest.approx(
        [0.03, 0.03]
    )
    assert len(saved["log"]) == 2


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile-code-ran",))


def other_script(path):
    torch.save(load(path) | {"script": "wgan.py"}, path)


def newer(path):
    torch.save(load(path) | {"format": 99}, path)


def other_shapes(path):
    saved = load(path)
    saved["G"]["main.0.weight"] = torch.zeros(8, 99, 4, 4)
    torch.save(saved, path)


def snapshot(path):
    path.write_bytes(next(path.parent.glob("snapshots/*")).read_bytes())


def half_written(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage, words",
    [
        (other_script, "a checkpoint of wgan.py, format 2"),
        (newer, "a checkpoint of dcgan.py, format 99"),
        (other_shapes, "G does not fit this run"),
        (snapshot, "a snapshot of dcgan.py"),
        (half_written, "no checkpoint of dcgan.py"),
        (lambda path: path.write_text("hello"), "nothing in it was run"),
        (lambda path: path.write_bytes(b""), "nothing in it was run"),
        (lambda path: path.write_bytes(pickle.dumps(Hostile())), "nothing in it was run"),
        (
            lambda path: torch.save({"format": 2, "script": Hostile()}, path),
            "nothing in it was run",
        ),
        (lambda path: torch.save({"weights": torch.zeros(3)}, path), "no checkpoint"),
        (lambda path: torch.save([1, 2], path), "no checkpoint"),
    ],
)
def test_resume_refuses_what_is_not_its_checkpoint(folder, damage, words):
    run("--epochs", 1)
    path = Path("runs/dcgan/checkpoint.pt")
    damage(path)
    before = path.read_bytes() if path.exists() else None
    message = refusal("--resume")
    assert message.startswith("runs/dcgan/checkpoint.pt: ") and words in message
    assert "\n" not in message and not Path("hostile-code-ran").exists()
    assert before is None or path.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_leaves_the_last_good_checkpoint(folder):
    """A limit on the size of files stands for the full disk: writes fail in mid-file."""
    run("--epochs", 1)
    before = Path("runs/dcgan/checkpoint.pt").read_bytes()
    code = (
        "import resource, sys, dcgan;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2);"
        "dcgan.main('--resume --epochs 2 --snapshot-every 0'.split())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=path_env()
    )
    assert done.returncode == 1
    assert ": not written ([Errno 27] File too large); the previous" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert Path("runs/dcgan/checkpoint.pt").read_bytes() == before
    assert not list(Path("runs").rglob("*.tmp"))


def path_env(**extra):
    return os.environ | {"PYTHONPATH": str(SCRIPT.parent), "PYTHONDONTWRITEBYTECODE": "1"} | extra


def test_a_loss_that_is_not_finite_stops_the_run_before_its_checkpoint(folder, monkeypatch):
    run("--epochs", 1)
    before = Path("runs/dcgan/checkpoint.pt").read_bytes()
    loss, count = dcgan.generator_loss, []

    def broken(logits):
        count.append(1)
        return loss(logits) * (float("nan") if len(count) == 3 else 1)

    monkeypatch.setattr(dcgan, "generator_loss", broken)
    message = refusal("--resume", "--epochs", 3)
    assert "step 8:" in message and "--lr" in message and "--resume" in message
    assert Path("runs/dcgan/checkpoint.pt").read_bytes() == before


def test_weights_that_are_not_finite_never_reach_a_checkpoint(folder, monkeypatch):
    """The last update of an epoch can break the weights after every loss was finite."""
    train_step, count = dcgan.train_step, []

    def breaking(G, **rest):
        values = train_step(G=G, **rest)
        count.append(1)
        if len(count) == 5:
            with torch.no_grad():
                G.main[0].weight[0] = float("inf")
        return values

    monkeypatch.setattr(dcgan, "train_step", breaking)
    assert "not finite" in refusal("--epochs", 2)
    assert load("runs/dcgan/checkpoint.pt")["step"] == 0  # the start, which is good


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells what a CPU can")
def test_bfloat16_is_used_where_the_cpu_multiplies_it():
    can = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    assert dcgan.set_up_device("cpu", "auto")[2] == ("bf16" if can else "fp32")


def test_a_device_that_is_not_there():
    with pytest.raises(SystemExit, match="--device cuda:77: cannot be used here"):
        dcgan.set_up_device("cuda:77", "auto")
    with pytest.raises(SystemExit, match="--device toaster"):
        dcgan.set_up_device("toaster", "auto")


# ---- Elsewhere, twice, unread -------------------------------------------------------------------


def test_a_second_run_in_one_folder_ends_at_once(folder):
    """The lock comes before decoding, holds for --resume as well, and ends with its run."""
    checkpoint = Path("runs/dcgan/checkpoint.pt")
    with dcgan.locked(checkpoint.parent):
        assert "used by another process" in refusal()
        checkpoint.touch()
        assert "used by another process" in refusal("--resume")
        assert not Path("data").exists()
    checkpoint.unlink()
    run("--epochs", 1)


def test_a_killed_process_gives_its_lock_back_and_who_waits_hears_ctrl_c(folder):
    def holder(seconds, nap):
        code = "import dcgan, time, pathlib, signal; signal.signal(2, signal.default_int_handler)\n"
        code += f"print(1, flush=True)\nwith dcgan.locked(pathlib.Path('x'), {seconds}):\n"
        code += f"    print(2, flush=True)\n    time.sleep({nap})"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": path_env()}
        process = subprocess.Popen([sys.executable, "-c", code], **pipes)
        assert process.stdout.readline().strip() == b"1"
        return process

    first = holder(0, 60)
    assert first.stdout.readline().strip() == b"2"
    with pytest.raises(SystemExit, match="used by another process"), dcgan.locked(Path("x")):
        pass
    second, third = holder(60, 0), holder(60, 0)
    if os.name != "nt":
        second.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in second.communicate(timeout=20)[1]
    assert third.poll() is None
    first.kill()
    first.communicate()
    assert third.communicate(timeout=20) == (b"2\n", b"")
    second.communicate()
    with dcgan.locked(Path("x")):
        pass


def test_an_out_folder_that_cannot_be_written_is_named_before_decoding(folder):
    Path("file").write_text("")
    assert "file/run: [Errno 20]" in refusal("--out", "file/run")
    assert not Path("data").exists()


def test_a_run_killed_before_its_first_checkpoint_leaves_a_folder_that_can_be_used(folder):
    Path("runs/dcgan").mkdir(parents=True)
    Path("runs/dcgan/args.json").write_text("{}")
    assert "there is no checkpoint.pt in runs/dcgan" in refusal("--resume")
    run("--epochs", 1)


def test_a_resumed_run_finds_its_data_from_another_folder(folder, monkeypatch):
    run("--epochs", 1, "--out", "a run")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    dcgan.main(["--out", "../a run", "--resume", "--epochs", "2"])
    assert load("../a run/checkpoint.pt")["epoch"] == 2


def test_the_printed_command_is_quoted(folder, monkeypatch, capsys):
    monkeypatch.setattr(dcgan, "update_ema", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit):
        run("--epochs", 1, "--out", "my runs/it's")
    command = capsys.readouterr().out.split("go on with python ")[1].strip()
    script, *flags = shlex.split(command)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    importlib.import_module(script[:-3]).main([*flags, "--epochs", "2"])
    assert load("my runs/it's/checkpoint.pt")["epoch"] == 2


def test_a_resumed_run_says_that_its_pictures_are_others(folder, capsys):
    run("--epochs", 1)
    run("--resume", "--epochs", 2)
    assert "other images" not in capsys.readouterr().out
    np.save("images.npy", np.zeros((83, 16, 16, 3), np.uint8))
    run("--resume", "--epochs", 3)
    assert "other images than before" in capsys.readouterr().out


def test_main_runs_in_a_thread(folder):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, "--epochs", 1).result()
    assert load("runs/dcgan/checkpoint.pt")["epoch"] == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes are POSIX")
def test_a_run_goes_on_when_its_reader_has_gone_and_over_letters_that_stdout_lacks(folder):
    np.save("bilder-\u4e2d.npy", np.load("images.npy"))
    flags = ["--data", "bilder-\u4e2d.npy", "--device", "cpu", *TINY, "--epochs", "3"]
    env = path_env(PYTHONIOENCODING="cp1252")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(SCRIPT), *flags]
    done = subprocess.run(command, env=env, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert load("runs/dcgan/checkpoint.pt")["epoch"] == 3
    done = subprocess.run([*command, "--out", "b"], env=env, capture_output=True)
    assert done.returncode == 0 and b"bilder-?.npy" in done.stdout
    for script in ("wgan_gp.py", "wgan.py", "fid.py", "interpolate.py", "scrape_spirits.py"):
        done = subprocess.run(
            [sys.executable, str(SCRIPT.with_name(script)), "--help"],
            env=path_env(PYTHONIOENCODING="ascii"),
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, b"") and b"usage" in done.stdout


def test_a_file_that_another_program_holds_open(folder, monkeypatch, capsys):
    """As on Windows: for a moment it costs nothing, for long a picture or log costs a warning."""
    replace = os.replace

    def held(source, target):
        if Path(target).suffix in (".csv", ".png") or target not in waited:
            waited.append(target)
            raise PermissionError(13, "held open", str(target))
        replace(source, target)

    waited, sleep = [], time.sleep
    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 1000))
    run("--epochs", 2)
    assert capsys.readouterr().out.count("warning: runs/dcgan/log.csv: not written") == 2
    assert load("runs/dcgan/checkpoint.pt")["epoch"] == 2


def test_no_call_makes_float64_on_its_way_to_a_device():
    """MPS has no float64, and `.to(device)` of such a tensor from the CPU fails or gives zeros."""
    for script in SCRIPT.parent.glob("*.py"):
        text = script.read_text(encoding="utf-8")
        for call in re.findall(r"\.to\(([^()]*)\)", text):
            assert not ("device" in call and ("float64" in call or "double" in call)), call


# ---- On CUDA ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_it_trains_resumes_and_saves_for_any_machine(folder):
    run("--epochs", 1, "--device", "cuda")
    run("--epochs", 2, "--device", "cuda", "--resume")
    saved = load("runs/dcgan/checkpoint.pt")
    assert saved["epoch"] == 2 and saved["step"] == 10
    dcgan.main("--resume --epochs 3 --device cpu".split())


# ---- Several processes --------------------------------------------------------------------------


def torchrun(*flags, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}"]
    small = "--size 16 --g-width 2 --d-width 2 --z-dim 4 --batch-size 256 --device cpu".split()
    command += [dcgan.__file__, *small, *map(str, flags)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


def test_two_processes_train_and_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = torchrun("--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   2/2") == 1 and done.stdout.count("images of sprites") == 1
    saved = load("runs/dcgan/checkpoint.pt")
    assert (saved["epoch"], saved["step"]) == (2, 2 * (2048 // 256))
    dcgan.main("--resume --epochs 3".split())
    assert [row["step"] for row in load("runs/dcgan/checkpoint.pt")["log"]] == [8, 16, 24]


def test_a_process_that_fails_ends_all_with_its_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = torchrun("--epochs", 1, "--batch-size", 255)
    assert done.returncode != 0
    assert "--batch-size 255: must be a multiple of the processes" in done.stderr


# ---- Killed -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("script", ["dcgan", "wgan", "wgan_gp"])
def test_a_run_that_is_killed_and_resumed_is_the_run_that_was_never_touched(folder, script):
    """SIGKILL at random moments: while it starts, decodes, trains and writes."""
    code = f"import {script}; {script}.main()"
    flags = ["--data", "images.npy", "--device", "cpu", *TINY, "--epochs", "25"]

    def start(out, *flags):
        command = [sys.executable, "-c", code, "--out", out, *flags]
        environment = path_env(OMP_NUM_THREADS="1")
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    whole = start("whole", *flags)
    rng, kills, begun = np.random.default_rng(), 0, False
    while kills < 5:
        begun = begun or Path("parts/checkpoint.pt").exists()
        process = start("parts", *(["--resume"] if begun else flags))
        try:
            process.communicate(timeout=rng.uniform(1.0, 4.0))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    if process.returncode:
        assert start("parts", *(["--resume"] if begun else flags)).wait() == 0
    whole.communicate()
    assert_same(load("whole/checkpoint.pt"), load("parts/checkpoint.pt"))
    for path in Path("whole/samples").iterdir():
        assert path.read_bytes() == Path("parts/samples", path.name).read_bytes()
    assert not list(folder.rglob(".*.tmp"))
