"""wgan.py: clipping, the order of updates, the signs, and a distance that is known.

What wgan.py shares with dcgan.py is tested in test_dcgan.py.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import wgan

TINY = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 16".split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with 83 small images: five batches of 16, so 5/3 iterations."""
    pixels = np.random.default_rng(1).integers(0, 256, (83, 16, 16, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*flags):
    wgan.main(["--data", "images.npy", "--device", "cpu", *TINY, *map(str, flags)])


def two_nets(dtype=torch.float32):
    torch.manual_seed(3)
    return wgan.Generator(16, 8, 4).to(dtype), wgan.Critic(16, 4).to(dtype)


def batches(n, dtype=torch.float32):
    return [torch.rand(6, 3, 16, 16, dtype=dtype) * 2 - 1 for _ in range(n)]


def classless(reals):
    """Batches of images and one-hot classes, of which there are none."""
    return [(real, real.new_zeros(len(real), 0)) for real in reals]


def test_losses_are_those_of_algorithm_1():
    real, fake = torch.tensor([1.0, 5.0]), torch.tensor([-2.0, 0.0])
    assert wgan.critic_loss(real, fake) == -4
    assert wgan.generator_loss(fake) == 1


def test_the_critic_scores_without_a_sigmoid():
    critic = wgan.Critic()
    assert not any(isinstance(m, nn.Sigmoid) for m in critic.modules())
    kinds = [type(m).__name__ for m in critic.main]
    assert kinds == ["Conv2d", "LeakyReLU"] + ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2 + [
        "Conv2d"
    ]
    with torch.no_grad():
        critic.main[-1].bias += 50
    assert critic(torch.randn(3, 3, 32, 32)).min() > 10


def test_a_train_step_is_algorithm_1_written_out_by_hand(monkeypatch):
    """Every weight, every batch-norm statistic and every value, in float64."""
    G, critic = two_nets(torch.float64)
    G2, critic2 = copy.deepcopy(G), copy.deepcopy(critic)
    reals, c = batches(3, torch.float64), 0.013
    latents = [torch.randn(6, 8, dtype=torch.float64) for _ in range(4)]
    drawn = iter(latents)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: next(drawn))
    monkeypatch.setattr(torch, "randn_like", lambda z: next(drawn))
    opts = [torch.optim.RMSprop(net.parameters(), 5e-3) for net in (G, critic)]
    values = wgan.train_step(G, critic, *opts, classless(reals), 8, c)

    squares = {}

    def rmsprop(net, loss):
        parameters = list(net.parameters())
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
                squares[p] = 0.99 * squares.get(p, 0) + 0.01 * g * g
                p -= 5e-3 * g / (squares[p].sqrt() + 1e-8)

    for real, z in zip(reals, latents):
        w = critic2(real).mean() - critic2(G2(z).detach()).mean()
        rmsprop(critic2, -w)
        with torch.no_grad():
            for p in critic2.parameters():
                p.copy_(p.clip(-c, c))
    g_loss = -critic2(G2(latents[3])).mean()
    rmsprop(G2, g_loss)
    for net, by_hand in ((G, G2), (critic, critic2)):
        for a, b in zip(net.state_dict().values(), by_hand.state_dict().values()):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-13)
    flat = torch.cat([p.flatten() for p in critic2.parameters()])
    share = (flat.abs() == c).double().mean()
    expected = [-w.item(), g_loss.item(), w.item(), share.item()]
    assert values.tolist() == pytest.approx(expected, rel=1e-6) and 0 < share < 1


def test_weights_are_within_the_clip_after_every_critic_update_and_for_the_generator(monkeypatch):
    G, critic = two_nets()
    opts = [torch.optim.RMSprop(net.parameters(), 0.05) for net in (G, critic)]
    seen, forward, clip = [], critic.forward, wgan.clip_weights

    def largest():
        return max(p.abs().max().item() for p in critic.parameters())

    def after_clip(*args):
        share = clip(*args)
        seen.append(("update", largest()))
        return share

    def scores(x, y):
        if x.requires_grad:  # the generator's turn: it sees clipped weights
            seen.append(("generator", largest()))
        return forward(x, y)

    monkeypatch.setattr(wgan, "clip_weights", after_clip)
    critic.forward = scores
    for _ in range(3):
        wgan.train_step(G, critic, *opts, classless(batches(4)), 8, 0.01)
    assert [kind for kind, _ in seen] == (["update"] * 4 + ["generator"]) * 3
    assert all(size <= np.float32(0.01) for _, size in seen)
    assert max(size for _, size in seen) == np.float32(0.01)


def test_the_share_at_the_clip_is_counted():
    critic = nn.Linear(3, 1)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[0.5, -0.001, -7.0]]))
        critic.bias.fill_(0.002)
    assert wgan.clip_weights(critic, 0.01) == 0.5
    torch.testing.assert_close(critic.weight.detach(), torch.tensor([[0.01, -0.001, -0.01]]))


def test_signs():
    """A critic update widens its gap; a generator update raises the scores of its fakes."""
    G, critic = two_nets()
    (real,), z = batches(1), torch.randn(6, 8)
    opt_critic, opt_G = (torch.optim.SGD(net.parameters(), 0.02) for net in (critic, G))

    def gap():
        return (critic(real).mean() - critic(G(z)).mean()).item()

    before = gap()
    wgan.optimizer_step(opt_critic, wgan.critic_loss(critic(real), critic(G(z).detach())))
    assert gap() > before
    before = critic(G(z)).mean().item()
    wgan.optimizer_step(opt_G, wgan.generator_loss(critic(G(z))))
    assert critic(G(z)).mean().item() > before


def test_the_critics_updates_leave_the_generators_gradients_alone(monkeypatch):
    G, critic = two_nets()
    opts = [torch.optim.RMSprop(net.parameters(), 1e-3) for net in (G, critic)]
    optimizer_step, fakes, forward = wgan.optimizer_step, [], G.forward
    before = copy.deepcopy(list(G.parameters()))

    def watch(opt, loss):
        optimizer_step(opt, loss)
        if opt is opts[1]:
            assert all(p.grad is None for p in G.parameters())
            assert all(torch.equal(p, q) for p, q in zip(G.parameters(), before))

    def record(z):
        image = forward(z)
        fakes.append((z, image.requires_grad))
        return image

    G.forward = record
    monkeypatch.setattr(wgan, "optimizer_step", watch)
    wgan.train_step(G, critic, *opts, classless(batches(5)), 8, 0.01)
    assert [needs for _, needs in fakes] == [False] * 5 + [True]
    assert len({tuple(z.flatten().tolist()) for z, _ in fakes}) == 6  # fresh latents each time
    assert not torch.equal(before[0], next(G.parameters()))


@pytest.mark.parametrize("stops", [[7], [1, 7], [2, 3, 7]])
def test_n_critic_updates_per_generator_update_across_epochs_and_resumes(
    folder, monkeypatch, stops
):
    """7 epochs of 83 images: a step takes 2 batches of 16, so an epoch has 2 steps, 64 images."""
    seen, updates, train_step = [], [], wgan.train_step
    optimizer_step = wgan.optimizer_step

    def note(opt, loss):
        updates.append(len(opt.param_groups[0]["params"]))
        optimizer_step(opt, loss)

    def note_batches(batches, **rest):
        seen.extend(real.clone() for real, _ in batches)
        return train_step(batches=batches, **rest)

    monkeypatch.setattr(wgan, "optimizer_step", note)
    monkeypatch.setattr(wgan, "train_step", note_batches)
    for i, epochs in enumerate(stops):
        run("--n-critic", 2, "--epochs", epochs, *["--resume"] * (i > 0))
    critic, G = (
        len(list(net.parameters())) for net in (wgan.Critic(16, 4), wgan.Generator(16, 8, 4))
    )
    assert updates == [critic, critic, G] * 14 and critic != G
    order = [np.random.default_rng([0, e]).permutation(83)[:64].reshape(4, 16) for e in range(7)]
    images = torch.from_numpy(np.load("images.npy").transpose(0, 3, 1, 2))
    assert torch.equal(
        torch.stack(seen),
        wgan.to_input(images[np.concatenate(order)].flatten(0, 1)).view(28, 16, 3, 16, 16),
    )


def test_the_estimate_is_the_distance_of_two_points_up_to_a_scale():
    """Point masses d apart: W1 = d, and a clipped linear critic reaches c d in 1-norm, exactly."""
    c = 0.01
    estimates = []
    for d in (0.5, 1.0, 2.0):
        torch.manual_seed(0)
        critic = nn.Linear(2, 1, bias=False)
        opt = torch.optim.RMSprop(critic.parameters(), 1e-3)
        real = torch.tensor([[d, 0.0]]).expand(32, 2)
        fake = torch.zeros(32, 2)
        for _ in range(200):
            loss = wgan.critic_loss(critic(real), critic(fake))
            wgan.optimizer_step(opt, loss)
            wgan.clip_weights(critic, c)
        estimates.append(-wgan.critic_loss(critic(real), critic(fake)).item())
    assert estimates == pytest.approx([c * d for d in (0.5, 1.0, 2.0)], rel=1e-5)


def test_a_deep_clipped_critic_orders_gaussians_by_their_distance():
    """N(0, 1) against N(d, 1): W1 = d. The estimates are in proportion, to within a quarter."""
    estimates = []
    for d in (1.0, 2.0, 4.0):
        torch.manual_seed(0)
        critic = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        opt = torch.optim.RMSprop(critic.parameters(), 1e-3)
        for _ in range(300):
            real, fake = torch.randn(256, 1) + d, torch.randn(256, 1)
            wgan.optimizer_step(opt, wgan.critic_loss(critic(real), critic(fake)))
            wgan.clip_weights(critic, 0.05)
        real, fake = torch.randn(20_000, 1) + d, torch.randn(20_000, 1)
        estimates.append(-wgan.critic_loss(critic(real), critic(fake)).item())
    scale = [estimate / d for estimate, d in zip(estimates, (1.0, 2.0, 4.0))]
    assert min(scale) > 0 and max(scale) / min(scale) < 1.25


@pytest.mark.parametrize(
    "flags, words", [("--clip 0", "must be above 0"), ("--n-critic 0", "must be 1 or more")]
)
def test_wrong_flags(capsys, flags, words):
    with pytest.raises(SystemExit) as stop:
        wgan.parse_args(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_its_defaults_are_the_papers():
    args = wgan.parse_args(["--data", "cifar10"])
    assert (args.lr, args.clip, args.n_critic, args.batch_size) == (5e-5, 0.01, 5, 64)
    assert (args.epochs, args.g_width, args.d_width, args.norm) == (100, 128, 64, "batch")
