"""The training loop, which the trainers share: what a step is given, and what becomes of it."""

import copy
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

import dcgan
import wgan
import wgan_gp

TINY = "--size 16 --g-width 4 --d-width 4 --z-dim 8 --batch-size 8 --device cpu".split()
IMAGES = np.random.default_rng(1).integers(0, 256, (83, 16, 16, 3), np.uint8)
LABELS = np.arange(83) % 3
INPUTS = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 127.5 - 1
PER_EPOCH = 5  # steps of two batches of eight; three images are left over


def order_of(epoch, seed=0):
    """The images of an epoch, 16 to a step."""
    order = np.random.default_rng([seed, epoch]).permutation(83)
    return order[:80].reshape(PER_EPOCH, 16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with IMAGES of three classes."""
    np.savez(tmp_path / "images.npz", images=IMAGES, labels=LABELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # curves take longer than an epoch
    return tmp_path


def run(*flags, trainer=wgan_gp):
    if trainer is not dcgan:
        flags = ["--n-critic", 2, *flags]
    trainer.main(["--data", "images.npz", *TINY, *map(str, flags)])


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def steps(folder, monkeypatch):
    """What each step of a run is given, in place of training; its values are its number from 1."""
    steps = []

    def note(G, critic, opt_G, opt_critic, batches, z_dim, gp_weight):
        step = SimpleNamespace(seed=torch.initial_seed())
        step.images = torch.cat([real for real, _ in batches])
        step.onehots = None
        if batches[0][1] is not None:
            step.onehots = torch.cat([y for _, y in batches])
        step.rates = [float(opt.param_groups[0]["lr"]) for opt in (opt_G, opt_critic)]
        steps.append(step)
        return torch.full((5,), float(len(steps)))

    monkeypatch.setattr(wgan_gp, "train_step", note)
    return steps


# ---- Steps ---------------------------------------------------------------------------------------


@given(integers(1, 60), integers(1, 3), integers(1, 10))
@settings(deadline=None, max_examples=50)
def test_epochs_are_permutations_without_a_partial_step(n, n_critic, batch_size):
    order = wgan_gp.shuffled_indices(n, (n_critic, batch_size), epoch=1, seed=3)
    steps = max(1, n // (n_critic * batch_size))
    assert order.shape == (steps, n_critic, batch_size)
    counts = order.flatten().bincount(minlength=n)
    assert len(counts) == n
    assert counts.max() - counts.min() <= 1  # too few images for a step are repeated evenly


def test_images_classes_and_random_numbers_of_a_step_follow_from_seed_epoch_and_step(steps):
    run("--epochs", 3, "--seed", 4, "--conditional")
    assert len(steps) == 3 * PER_EPOCH
    for t, step in enumerate(steps):
        epoch, position = divmod(t, PER_EPOCH)
        index = order_of(epoch, seed=4)[position]
        assert torch.equal(step.images, INPUTS[index])
        assert torch.equal(step.onehots, torch.eye(3)[LABELS[index]])
        assert step.seed == np.random.SeedSequence([4, t, 0]).generate_state(1)[0]


def test_hflip_mirrors_each_image_at_random(steps):
    run("--epochs", 1, "--hflip")
    images = torch.cat([step.images for step in steps])
    plain = INPUTS[order_of(0).flatten()]
    upright = (images == plain).all((1, 2, 3))
    mirrored = (images == plain.flip(3)).all((1, 2, 3))
    assert (upright ^ mirrored).all()
    shares = mirrored.view(10, 8).float().mean(1)  # of each batch
    assert 0.35 < shares.mean() < 0.65
    assert len(shares.unique()) > 3


@pytest.mark.parametrize("batch_size", [1, 2, 5, 99])
def test_any_batch_size_trains_on_few_images_and_in_a_thread(folder, batch_size):
    np.save("five.npy", IMAGES[:5])
    flags = "--data", "five.npy", "--batch-size", batch_size, "--epochs", 2
    with ThreadPoolExecutor(1) as pool:  # which may not catch signals
        pool.submit(run, *flags, trainer=dcgan).result()
    for row in load("runs/dcgan/checkpoint.pt")["log"]:
        assert row["step"] == row["epoch"] * max(1, 5 // batch_size)
        assert row["images"] == row["step"] * batch_size


def test_the_learning_rate_falls_linearly_to_zero_with_lr_decay_alone(steps):
    run("--epochs", 2, "--lr", 0.01, "--lr-decay", "--out", "falling")
    for t, step in enumerate(steps):
        rate = 0.01 * (1 - t / 10)
        assert step.rates == pytest.approx([rate, rate])
    run("--epochs", 1, "--lr", 0.01)
    assert steps[-1].rates == pytest.approx([0.01, 0.01])


def test_the_average_follows_weights_and_batch_norm_statistics():
    torch.manual_seed(0)
    G = wgan_gp.Generator(16, 8, 4)
    G_ema, before = copy.deepcopy(G), copy.deepcopy(G).state_dict()
    G(torch.randn(4, 8))  # moves the statistics
    for p in G.parameters():
        p.data += 1
    wgan_gp.update_ema(G_ema, G, 0.1)
    for name, value in G.state_dict().items():
        if value.is_floating_point():
            assert not torch.equal(value, before[name])
            mean = 0.9 * before[name] + 0.1 * value
            torch.testing.assert_close(G_ema.state_dict()[name], mean)


def test_the_averages_memory_is_short_at_the_start(steps, monkeypatch):
    weights = []
    monkeypatch.setattr(wgan_gp, "update_ema", lambda G_ema, G, w: weights.append(float(w)))
    run("--epochs", 2, "--ema", 0.5)
    for t, weight in enumerate(weights):
        decay = min(0.5, (1 + t) / (10 + t))
        assert weight == pytest.approx(1 - decay)


def test_an_optimizer_step_uses_the_gradients_of_its_own_loss_and_network():
    mine, other = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)
    opt = torch.optim.SGD(mine.parameters(), lr=0.1)
    x = torch.tensor([[3.0, 5.0]])
    before = mine.weight.detach().clone()
    for _ in range(2):  # gradients do not pile up
        wgan_gp.optimizer_step(opt, mine(x) + 0 * other(mine(x)))
    torch.testing.assert_close(mine.weight, before - 0.2 * x)
    assert other.weight.grad is None


def test_logged_values_are_means_over_the_steps_of_their_epoch(steps):
    run("--epochs", 3)
    losses = [row["critic_loss"] for row in load("runs/wgan_gp/checkpoint.pt")["log"]]
    assert losses == [3, 8, 13]  # of 1 to 5, of 6 to 10, of 11 to 15


# ---- Learning, precision, devices ----------------------------------------------------------------


def test_it_learns_the_colours_of_two_halves(folder):
    halves = np.zeros((16, 16, 3))
    halves[:, :8] = 120, 30, 30
    halves[:, 8:] = 90, 150, 220
    np.save("halves.npy", (halves + IMAGES / 10).astype(np.uint8))
    flags = "--g-width 16 --d-width 16 --batch-size 8 --lr 1e-3 --ema 0.9 --epochs 9".split()
    run("--data", "halves.npy", *flags, trainer=dcgan)
    saved = load("runs/dcgan/checkpoint.pt")
    G = dcgan.Generator(**saved["generator"])
    G.load_state_dict(saved["G_ema"])
    columns = dcgan.sample(G, dcgan.latents(range(100), 8)).double().mean((0, 2)).T
    assert np.allclose(columns, halves[0] + 12, rtol=0, atol=40)  # grey would be 100 off


@pytest.mark.parametrize("trainer", [dcgan, wgan, wgan_gp])
def test_bfloat16_gives_nearly_the_values_of_float32(folder, trainer):
    for precision in ("fp32", "bf16"):
        run("--precision", precision, "--out", precision, "--epochs", 1, trainer=trainer)
    saved = load("bf16/checkpoint.pt")
    exact, rough = load("fp32/checkpoint.pt")["log"][0], saved["log"][0]
    assert exact["g_loss"] != rough["g_loss"]
    for name in trainer.COLUMNS:
        assert exact[name] == pytest.approx(rough[name], rel=0.05, abs=1e-4)
    for value in saved["G"].values():
        assert value.dtype in (torch.float32, torch.int64)


def test_sprites_train_on_one_thread_and_other_data_on_all(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(wgan_gp, "THREADS", 2)
    for data, number in (("cifar10", 2), ("sprites", 1)):
        args = wgan_gp.parse_args(["--data", data, "--device", "cpu", "--precision", "fp32"])
        assert wgan_gp.set_up_device(args)[1] == f"cpu (threads: {number}), float32"
        assert torch.get_num_threads() == number
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    args.precision = "auto"
    assert wgan_gp.set_up_device(args)[1:] == ("cpu (threads: 1), bfloat16", True)
    with wgan_gp.catch_signals():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "99")  # of a process of a torchrun
    with pytest.raises(SystemExit, match=r"^--device cuda:99: cannot"):
        wgan_gp.find_device("cuda")
    with pytest.raises(SystemExit, match=r"^--device toaster: cannot be used here .*$"):
        wgan_gp.find_device("toaster")


# ---- Several processes ---------------------------------------------------------------------------

PROCESS = """
import sys
import torch
import wgan_gp

noted, train_step = {"values": [], "seeds": [], "images": []}, wgan_gp.train_step

def note(critic, batches, **rest):
    noted["seeds"].append(torch.initial_seed())
    if not noted["values"]:
        torch.save(gradients(), f"gradients-{wgan_gp.RANK}")
    noted["images"] += [real for real, _ in batches]
    noted["values"].append(train_step(critic=critic, batches=batches, **rest))
    noted["critic"] = critic.state_dict()
    return noted["values"][-1]

def gradients():
    torch.manual_seed(0)
    critic, x = wgan_gp.Critic(16, 4).double(), torch.rand(8, 3, 16, 16).double()
    opt = torch.optim.SGD(critic.parameters(), 0.1)
    wgan_gp.optimizer_step(opt, critic(x[wgan_gp.RANK :: wgan_gp.WORLD]).square().mean())
    return [p.grad for p in critic.parameters()]

if __name__ == "__main__":
    sys.modules["matplotlib"] = None
    wgan_gp.train_step = note
    wgan_gp.main(sys.argv[1:])
    torch.save(noted, f"noted-{wgan_gp.RANK}")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder and the output of two processes that have trained together for two epochs."""
    folder = tmp_path_factory.mktemp("two")
    np.savez(folder / "images.npz", images=IMAGES, labels=LABELS)
    (folder / "process.py").write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["process.py", "--data", "images.npz", *TINY, "--n-critic", "2", "--out", "out"]
    command += ["--conditional", "--epochs", "2", "--precision", "fp32"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env["PYTHONPATH"] = str(Path(wgan_gp.__file__).parent)
    options = {"cwd": folder, "env": env, "timeout": 300}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(two, monkeypatch):
    monkeypatch.syspath_prepend(two[0])
    import process

    for rank in (0, 1):
        halves = load(two[0] / f"gradients-{rank}")
        torch.testing.assert_close(halves, process.gradients(), rtol=1e-9, atol=1e-12)


def test_two_processes_share_out_each_batch_stay_equal_and_log_the_means_of_both(two):
    first, second = load(two[0] / "noted-0"), load(two[0] / "noted-1")
    assert len({*first["seeds"], *second["seeds"]}) == 4 * PER_EPOCH
    both = torch.stack([torch.cat(first["images"]), torch.cat(second["images"])], 1)
    order = np.concatenate([order_of(0), order_of(1)]).flatten()
    assert torch.equal(both.flatten(0, 1), INPUTS[order])
    saved = load(two[0] / "out/checkpoint.pt")
    torch.testing.assert_close(first["critic"], saved["critic"], rtol=0, atol=0)
    torch.testing.assert_close(second["critic"], saved["critic"], rtol=0, atol=0)
    values = (torch.stack(first["values"]) + torch.stack(second["values"])) / 2
    for row, means in zip(saved["log"], values.view(2, PER_EPOCH, 5).mean(1)):
        assert [*row.values()][4:] == pytest.approx(means.tolist(), rel=1e-5)
    assert saved["log"][1]["images"] == 160
    assert two[1].count("epoch   2/2") == 1


def test_one_process_goes_on_where_two_stopped(two, folder):
    shutil.copytree(two[0] / "out", "out")
    Path("images.npz").unlink()  # those of the first folder are read
    wgan_gp.main("--out out --resume --epochs 3".split())
    assert load("out/checkpoint.pt")["step"] == 3 * PER_EPOCH


def test_a_batch_that_processes_cannot_share_out_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(wgan_gp, "WORLD", 3)
    with pytest.raises(SystemExit, match="2"):
        wgan_gp.parse_args(["--batch-size", "64"])
    assert "--batch-size 64: must be a multiple of 3 processes" in capsys.readouterr().err
