"""wgan_gp.py: the penalty, Algorithm 1 against one written out by hand, and a known distance."""

import copy

import pytest
import torch
from conftest import descend
from torch import nn
from torch.testing import assert_close

import wgan_gp
from wgan_gp import Critic, Generator, gradient_penalty

pytestmark = pytest.mark.usefixtures("float64")
TINY = "--data cifar10 --size 16 --z-dim 8 --g-width 4 --d-width 4"


def test_the_penalty_is_two_sided_and_takes_the_norm_of_each_sample():
    """f(x) = <w, x> has the gradient w everywhere; here there is a w for each sample."""
    w = torch.randn(4, 3, 8, 8)
    slopes = torch.tensor([3.0, 0.5, 1.0, 3.0])
    scale = slopes / w.flatten(1).norm(dim=1)
    w *= scale[:, None, None, None]
    real, fake = torch.randn(2, 4, 3, 8, 8)
    penalty, norms = gradient_penalty(lambda x: (w * x).sum((1, 2, 3)), real, fake)
    assert_close(norms, slopes)
    costs = [2**2, 0.5**2, 0, 2**2]
    assert penalty.item() == pytest.approx(sum(costs) / 4)


def test_epsilon_is_uniform_and_one_per_sample():
    """f(x) = |x|²/2 has the gradient x_hat itself: ε a where the real image is a, the fake 0."""
    torch.manual_seed(0)
    points = []

    def critic(x):
        points.append(x.detach())
        return x.square().sum((1, 2, 3)) / 2

    real = torch.full((4000, 3, 2, 2), 12**-0.5)  # of norm 1
    _, eps = gradient_penalty(critic, real, torch.zeros_like(real))
    quarters = torch.linspace(0, 1, 5)
    assert_close(eps.quantile(quarters), quarters, rtol=0, atol=0.03)
    assert len(eps.unique()) == 4000
    assert_close(points[0], real * eps.view(-1, 1, 1, 1))


def test_the_derivative_of_the_penalty_is_that_of_finite_differences():
    torch.manual_seed(1)
    real, fake = torch.randn(2, 3, 3, 2, 2)
    inner = torch.randn(12, 4, requires_grad=True)
    outer = torch.randn(4, requires_grad=True)

    def penalty(inner, outer):
        def critic(x):
            return (x.flatten(1) @ inner).tanh() @ outer

        torch.manual_seed(5)  # the same ε every time
        return gradient_penalty(critic, real, fake)[0]

    assert torch.autograd.gradcheck(penalty, (inner, outer))


def test_a_gradient_of_exactly_zero_stays_finite():
    w = torch.zeros(48, requires_grad=True)
    real, fake = torch.randn(2, 5, 3, 4, 4)
    penalty, norms = gradient_penalty(lambda x: x.flatten(1) @ w, real, fake)
    penalty.backward()
    assert penalty == 1
    assert not norms.any()
    assert w.grad.isfinite().all()


@pytest.mark.parametrize("d", [0.5, 5.0])
def test_the_estimate_of_two_points_is_their_distance(d):
    """W1 = d, and the slope of the best penalized critic is 1 + d / 2λ."""
    w = torch.zeros(2, requires_grad=True)
    opt = torch.optim.SGD([w], 0.02)
    real, fake = torch.tensor([[d, 0.0]]), torch.zeros(1, 2)
    for _ in range(100):
        penalty, _ = gradient_penalty(lambda x: x @ w, real, fake)
        loss = wgan_gp.critic_loss(real @ w, fake @ w) + 10 * penalty
        wgan_gp.optimizer_step(opt, loss)
    estimate = -wgan_gp.critic_loss(real @ w, fake @ w)
    assert estimate.item() == pytest.approx(d * (1 + d / 20))


@pytest.mark.parametrize("classes", [0, 3])
def test_a_train_step_is_algorithm_1_written_out_by_hand(classes):
    """Every weight, every statistic of a batch norm, and every value that is logged."""
    torch.manual_seed(3)
    G, critic = Generator(16, 8, 4, classes=classes), Critic(16, 4, classes=classes)
    G2, critic2 = copy.deepcopy([G, critic])
    opt_G = torch.optim.SGD(G.parameters(), 0.01)
    opt_critic = torch.optim.SGD(critic.parameters(), 0.01)
    constant = []  # fakes
    G.register_forward_hook(lambda net, inputs, fake: constant.append(not fake.requires_grad))
    ys = torch.eye(3)[torch.randint(3, (3, 4))] if classes else [None, None, None]
    batches = [(torch.rand(4, 3, 16, 16), y) for y in ys]
    torch.manual_seed(4)
    values = wgan_gp.train_step(G, critic, opt_G, opt_critic, batches, 8, 7.0)

    torch.manual_seed(4)
    for real, y in batches:
        fake = G2(torch.randn(4, 8), y).detach()
        wasserstein = critic2(real, y).mean() - critic2(fake, y).mean()
        eps = torch.rand(4, 1, 1, 1)
        x_hat = (eps * real + (1 - eps) * fake).requires_grad_()
        scores = critic2(x_hat, y)
        (gradient,) = torch.autograd.grad(scores.sum(), x_hat, create_graph=True)
        norms = gradient.square().sum((1, 2, 3)).sqrt()
        penalty = ((norms - 1) ** 2).mean()
        c_loss = -wasserstein + 7 * penalty
        descend(critic2, c_loss, 0.01)
    fake = G2(torch.randn(4, 8), y)
    g_loss = -critic2(fake, y).mean()
    descend(G2, g_loss, 0.01)

    assert_close(G.state_dict(), G2.state_dict(), rtol=0, atol=1e-12)
    assert_close(critic.state_dict(), critic2.state_dict(), rtol=0, atol=1e-12)
    by_hand = torch.stack([c_loss, g_loss, wasserstein, penalty, norms.mean()])
    assert_close(values, by_hand)
    assert wgan_gp.COLUMNS == ("critic_loss", "g_loss", "wasserstein", "penalty", "grad_norm")
    assert constant == [True, True, True, False]
    assert not values.requires_grad


def test_the_defaults_are_the_papers():
    flags = "--lr 1e-4 --betas 0 0.9 --n-critic 5 --gp-weight 10 --batch-size 64 --epochs 100"
    flags += " --g-width 128 --d-width 64 --z-dim 100 --norm batch"
    given = wgan_gp.parse_args(["--data", "cifar10", *flags.split()])
    assert wgan_gp.parse_args(["--data", "cifar10"]) == given


def test_flags_reach_adam_at_one_rate_and_the_train_step():
    flags = "--lr 3e-4 --betas 0.4 0.8 --gp-weight 7 --norm none"
    args = wgan_gp.parse_args([*TINY.split(), *flags.split()])
    parts, step = wgan_gp.build(args, 3, torch.device("cpu"))
    rate = parts["opt_critic"].param_groups[0]["lr"]
    assert rate.item() == pytest.approx(3e-4)
    for name in ("G", "critic"):
        net, opt = parts[name], parts[f"opt_{name}"]
        assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
        assert type(opt) is torch.optim.Adam
        assert opt.defaults["betas"] == (0.4, 0.8)
        (group,) = opt.param_groups
        assert group["lr"] is rate
        assert group["params"] == list(net.parameters())
    values = step(batches=[(torch.rand(3, 3, 16, 16), torch.eye(3))])
    critic_loss, _, wasserstein, penalty, _ = values.tolist()
    assert critic_loss == pytest.approx(7 * penalty - wasserstein)
