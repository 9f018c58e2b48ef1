"""wgan_gp.py: the penalty against closed forms, samples that stay apart, and a known distance.

What wgan_gp.py shares with the other trainers is tested in test_dcgan.py and test_wgan.py.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import wgan_gp

TINY = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 16".split()


def two_nets(dtype=torch.float32, norm="none"):
    torch.manual_seed(3)
    return wgan_gp.Generator(16, 8, 4).to(dtype), wgan_gp.Critic(16, 4, norm).to(dtype)


# ---- The penalty --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.2, 1.0, 3.0])
def test_a_linear_critic_has_penalty_norm_minus_one_squared(norm):
    w = torch.randn(3 * 8 * 8, dtype=torch.float64)
    w *= norm / w.norm()
    real, fake = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    penalty, norms = wgan_gp.gradient_penalty(lambda x: x.flatten(1) @ w, real, fake)
    assert penalty.item() == pytest.approx((norm - 1) ** 2, abs=1e-12)
    assert norms.tolist() == pytest.approx([norm] * 5)


def test_epsilon_is_random_and_one_per_sample():
    """f(x) = |x|²/2 has gradient x, so at real = a, fake = -a the norm is |2ε - 1| |a|."""
    torch.manual_seed(0)
    real = torch.ones(4000, 3, 2, 2, dtype=torch.float64) / 12**0.5  # |a| = 1
    _, norms = wgan_gp.gradient_penalty(lambda x: x.flatten(1).square().sum(1) / 2, real, -real)
    assert norms.unique().numel() > 3990  # one ε per batch would give one norm
    assert norms.max() <= 1  # and ε = 1 everywhere would give 1, one ε per pixel about 0.58
    quantiles = torch.quantile(norms, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]).double())
    assert quantiles.tolist() == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9], abs=0.03)


def test_epsilon_weighs_real_and_its_complement_fake():
    points = []

    def critic(x):
        points.append(x.detach())
        return x.flatten(1).sum(1)

    real, fake = torch.full((500, 3, 4, 4), 5.0), torch.full((500, 3, 4, 4), 1.0)
    wgan_gp.gradient_penalty(critic, real, fake)
    assert 1 <= points[0].min() < 1.1 and 4.9 < points[0].max() <= 5
    assert (points[0].flatten(1).std(1) < 1e-5).all()  # all pixels of a sample at the same ε


def test_the_penalty_is_two_sided():
    """Norms 0.5 and 1.5 cost the same; a one-sided penalty would let 0.5 go free."""
    x = torch.randn(4, 3, 4, 4)
    costs = [
        wgan_gp.gradient_penalty(lambda x, k=k: x[:, 0, 0, 0] * k, x, -x)[0].item()
        for k in (0.5, 1.5)
    ]
    assert costs == pytest.approx([0.25, 0.25])


def test_the_penaltys_gradient_against_finite_differences():
    torch.manual_seed(1)
    critic = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 1)
    ).double()
    real, fake = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64)
    names, weights = zip(*critic.named_parameters())

    def penalty(*values):
        torch.manual_seed(5)  # the same ε every time
        f = lambda x: torch.func.functional_call(critic, dict(zip(names, values)), (x,))[:, 0]  # noqa: E731
        return wgan_gp.gradient_penalty(f, real, fake)[0]

    assert torch.autograd.gradcheck(penalty, weights, eps=1e-6, atol=1e-8, rtol=1e-6)


def test_a_gradient_of_exactly_zero_stays_finite():
    w = torch.zeros(48, requires_grad=True)
    real, fake = torch.randn(2, 5, 3, 4, 4)
    penalty, norms = wgan_gp.gradient_penalty(lambda x: x.flatten(1) @ w, real, fake)
    penalty.backward()
    assert penalty.item() == 1 and (norms == 0).all()
    assert w.grad.isfinite().all()


# ---- The critic ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "layer", "instance"])
def test_no_sample_changes_anothers_score(norm):
    _, critic = two_nets(norm=norm)
    x = torch.randn(6, 3, 16, 16)
    y = x.clone()
    y[2] = torch.randn(3, 16, 16) * 10
    change = (critic(x) - critic(y)).abs()
    assert change[2] > 1e-4
    assert change[[0, 1, 3, 4, 5]].max() < 1e-6
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules())


@pytest.mark.parametrize("norm, axes", [("layer", (1, 2, 3)), ("instance", (2, 3))])
def test_layer_and_instance_norm_are_the_textbooks(norm, axes):
    _, critic = two_nets(torch.float64, norm)
    (layer,) = [m for m in critic.modules() if isinstance(m, nn.GroupNorm)]
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64) * 3 + 1
    mean, var = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, unbiased=False)
    torch.testing.assert_close(layer(x), (x - mean) / (var + 1e-5).sqrt())


# ---- Training -----------------------------------------------------------------------------------


def test_a_train_step_is_algorithm_1_written_out_by_hand(monkeypatch):
    """Every weight and every value, in float64, with two critic calls where the script has one."""
    G, critic = two_nets(torch.float64)
    G2, critic2 = copy.deepcopy(G), copy.deepcopy(critic)
    reals = [torch.rand(6, 3, 16, 16, dtype=torch.float64) * 2 - 1 for _ in range(3)]
    latents = [torch.randn(6, 8, dtype=torch.float64) for _ in range(4)]
    epsilons = [torch.rand(6, 1, 1, 1, dtype=torch.float64) for _ in range(3)]
    drawn, mixed = iter(latents), iter(epsilons)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: next(drawn))
    monkeypatch.setattr(torch, "randn_like", lambda z: next(drawn))
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: next(mixed))
    opts = [torch.optim.SGD(net.parameters(), 0.01) for net in (G, critic)]
    values = wgan_gp.train_step(G, critic, *opts, [(x, x.new_zeros(6, 0)) for x in reals], 8, 10.0)

    def descend(net, loss):
        parameters = list(net.parameters())
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
                p -= 0.01 * g

    for real, z, eps in zip(reals, latents, epsilons):
        fake = G2(z).detach()
        x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
        slope = torch.autograd.grad(critic2(x_hat).sum(), x_hat, create_graph=True)[0]
        norms = slope.square().sum((1, 2, 3)).sqrt()
        w = critic2(real).mean() - critic2(fake).mean()
        penalty = ((norms - 1) ** 2).mean()
        descend(critic2, -w + 10 * penalty)
    g_loss = -critic2(G2(latents[3])).mean()
    descend(G2, g_loss)
    for net, by_hand in ((G, G2), (critic, critic2)):
        for a, b in zip(net.state_dict().values(), by_hand.state_dict().values()):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-13)
    expected = [-w + 10 * penalty, g_loss, w, penalty, norms.mean()]
    assert values.tolist() == pytest.approx([v.item() for v in expected], rel=1e-8)


def test_the_critics_updates_leave_the_generators_gradients_alone(monkeypatch):
    G, critic = two_nets()
    opts = [torch.optim.Adam(net.parameters(), 1e-3) for net in (G, critic)]
    optimizer_step, fakes, forward = wgan_gp.optimizer_step, [], G.forward

    def watch(opt, loss):
        optimizer_step(opt, loss)
        if opt is opts[1]:
            assert all(p.grad is None for p in G.parameters())

    def record(z):
        image = forward(z)
        fakes.append((z, image.requires_grad))
        return image

    G.forward = record
    monkeypatch.setattr(wgan_gp, "optimizer_step", watch)
    batches = [(x, torch.zeros(6, 0)) for x in torch.rand(5, 6, 3, 16, 16)]
    wgan_gp.train_step(G, critic, *opts, batches, 8, 10.0)
    assert [needs for _, needs in fakes] == [False] * 5 + [True]
    assert len({tuple(z.flatten().tolist()) for z, _ in fakes}) == 6


def test_signs():
    G, critic = two_nets()
    real, z = torch.rand(6, 3, 16, 16) * 2 - 1, torch.randn(6, 8)
    opt_critic, opt_G = (torch.optim.SGD(net.parameters(), 1e-3) for net in (critic, G))

    def gap():
        return (critic(real).mean() - critic(G(z)).mean()).item()

    before = gap()
    wgan_gp.optimizer_step(opt_critic, wgan_gp.critic_loss(critic(real), critic(G(z).detach())))
    assert gap() > before
    before = critic(G(z)).mean().item()
    wgan_gp.optimizer_step(opt_G, wgan_gp.generator_loss(critic(G(z))))
    assert critic(G(z)).mean().item() > before


def train_critic(critic, real, fake, steps=400):
    opt = torch.optim.Adam(critic.parameters(), 5e-3, (0.0, 0.9))
    for _ in range(steps):
        x, y = real(), fake()
        loss = wgan_gp.critic_loss(critic(x)[:, 0], critic(y)[:, 0])
        penalty, _ = wgan_gp.gradient_penalty(lambda x: critic(x)[:, 0], x, y)
        wgan_gp.optimizer_step(opt, loss + 10 * penalty)
    return critic


@pytest.mark.parametrize("d", [0.5, 2.0, 5.0])
def test_the_estimate_is_the_distance_of_two_points(d):
    """Point masses d apart: W1 = d. The best penalised critic has slope 1 + d / 2λ between them."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    real, fake = torch.tensor([[d, 0.0]]).repeat(64, 1), torch.zeros(64, 2)
    train_critic(critic, lambda: real, lambda: fake)
    estimate = -wgan_gp.critic_loss(critic(real), critic(fake)).item()
    assert estimate == pytest.approx(d * (1 + d / 20), rel=0.03)
    assert estimate == pytest.approx(d, rel=0.03 + d / 20)


def test_the_estimate_is_the_distance_of_two_gaussians():
    """N(0, I) and N(m, I) in the plane: W1 = |m| = 3."""
    torch.manual_seed(0)
    shift = torch.tensor([1.8, 2.4])
    critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    train_critic(critic, lambda: torch.randn(256, 2) + shift, lambda: torch.randn(256, 2))
    real, fake = torch.randn(20_000, 2) + shift, torch.randn(20_000, 2)
    estimate = -wgan_gp.critic_loss(critic(real), critic(fake)).item()
    assert estimate == pytest.approx(3 * (1 + 3 / 20), rel=0.06)  # the slope is 1 + 3 / 2λ


@pytest.mark.parametrize("flags", ["", "--critic-norm layer", "--critic-norm instance --hflip"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, monkeypatch, flags):
    """Seven batches an epoch, five a step."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (120, 16, 16, 3), np.uint8)
    np.save("images.npy", pixels)
    common = ["--data", "images.npy", "--device", "cpu", *TINY, *flags.split()]
    wgan_gp.main([*common, "--epochs", "5", "--out", "whole"])
    for epochs in (1, 2, 5):
        resume = ["--resume"] if epochs > 1 else []
        wgan_gp.main([*common, "--epochs", str(epochs), "--out", "parts", *resume])
    whole, parts = (torch.load(f"{o}/checkpoint.pt", weights_only=True) for o in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 5
    for part in ("G", "G_ema", "critic"):
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), (part, name)
    for i, state in whole["opt_critic"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, parts["opt_critic"]["state"][i][name])
    columns = ("step", *wgan_gp.COLUMNS)
    for a, b in zip(whole["log"], parts["log"], strict=True):
        assert [a[c] for c in columns] == [b[c] for c in columns]


def test_its_defaults_are_the_papers():
    args = wgan_gp.parse_args(["--data", "cifar10"])
    assert (args.lr, args.betas, args.gp_weight, args.n_critic) == (1e-4, [0.0, 0.9], 10, 5)
    assert (args.epochs, args.batch_size, args.critic_norm) == (100, 64, "none")
    assert (args.g_width, args.d_width) == (128, 64)


PROCESS = """
import sys, torch, torch.distributed as dist, wgan_gp
rank, world = 0, 1
if "LOCAL_RANK" in __import__("os").environ:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
critic = wgan_gp.Critic(16, 4).double()
real, fake = torch.rand(2, 8, 3, 16, 16).double()
eps = torch.rand(8, 1, 1, 1).double()
share = slice(rank * 8 // world, (rank + 1) * 8 // world)
torch.rand = lambda *_, **__: eps[share]
penalty, _ = wgan_gp.gradient_penalty(critic, real[share], fake[share])
loss = wgan_gp.critic_loss(critic(real[share]), critic(fake[share])) + 10 * penalty
wgan_gp.optimizer_step(torch.optim.SGD(critic.parameters(), 0.0), loss)
if rank == 0:
    torch.save([p.grad for p in critic.parameters()], sys.argv[1])
if dist.is_initialized():
    dist.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(wgan_gp.__file__).parent)}
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = []
    for how, name in (([sys.executable], "one"), (several, "two")):
        subprocess.run([*how, script, tmp_path / name], env=env, check=True, timeout=300)
        found.append(torch.load(tmp_path / name, weights_only=True))
    one, two = (torch.cat([gradient.flatten() for gradient in each]) for each in found)
    assert (one - two).abs().max() <= 1e-6 * one.abs().max() and one.abs().max() > 0.1
