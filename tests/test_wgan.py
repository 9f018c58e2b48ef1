"""wgan.py: Algorithm 1 against one written out by hand, and the paper's settings."""

import copy

import pytest
import torch
from conftest import descend
from torch import nn
from torch.testing import assert_close

import wgan
from wgan import Critic, Generator, SpectralNorm, StableRank

pytestmark = pytest.mark.usefixtures("float64")
TINY = "--data cifar10 --size 16 --z-dim 8 --g-width 4 --d-width 4"


@pytest.mark.parametrize("classes", [0, 3])
def test_a_train_step_is_algorithm_1_written_out_by_hand(classes):
    """Every weight, every statistic of a batch norm, and every value that is logged."""
    torch.manual_seed(3)
    G, critic = Generator(16, 8, 4, classes=classes), Critic(16, 4, classes=classes)
    G2, critic2 = copy.deepcopy([G, critic])
    opt_G = torch.optim.SGD(G.parameters(), 0.1)
    opt_critic = torch.optim.SGD(critic.parameters(), 0.1)
    attached = []  # to G's graph
    critic.register_forward_hook(lambda net, inputs, f: attached.append(inputs[0].requires_grad))
    ys = torch.eye(3)[torch.randint(3, (3, 4))] if classes else [None, None, None]
    batches = [(torch.rand(4, 3, 16, 16), y) for y in ys]
    torch.manual_seed(4)
    values = wgan.train_step(G, critic, opt_G, opt_critic, batches, 8, 0.013)

    torch.manual_seed(4)
    for real, y in batches:
        fake = G2(torch.randn(4, 8), y).detach()
        wasserstein = critic2(real, y).mean() - critic2(fake, y).mean()
        descend(critic2, -wasserstein)
        for p in critic2.parameters():
            p.data.clip_(-0.013, 0.013)
    g_loss = -critic2(G2(torch.randn(4, 8), y), y).mean()
    descend(G2, g_loss)

    assert_close(G.state_dict(), G2.state_dict(), rtol=0, atol=1e-12)
    assert_close(critic.state_dict(), critic2.state_dict(), rtol=0, atol=1e-12)
    every = torch.cat([p.flatten() for p in critic2.parameters()])
    clipped = (every.abs() == 0.013).float().mean()
    assert 0.05 < clipped < 0.95
    by_hand = torch.stack([-wasserstein, g_loss, wasserstein, clipped])
    assert_close(values, by_hand)
    assert wgan.COLUMNS == ("critic_loss", "g_loss", "wasserstein", "clipped")
    assert attached == [False, False] * 3 + [True]
    assert not values.requires_grad


def test_the_defaults_are_the_papers():
    flags = "--lr 5e-5 --n-critic 5 --clip 0.01 --constraint clip --batch-size 64 --epochs 100"
    flags += " --g-width 128 --d-width 64 --z-dim 100 --norm batch"
    given = wgan.parse_args(["--data", "cifar10", *flags.split()])
    assert wgan.parse_args(["--data", "cifar10"]) == given


def test_rmsprop_without_momentum_trains_both_networks_at_one_rate():
    args = wgan.parse_args([*TINY.split(), "--lr", "3e-4"])
    parts, _ = wgan.build(args, 0, torch.device("cpu"))
    rate = parts["opt_critic"].param_groups[0]["lr"]
    assert rate.item() == pytest.approx(3e-4)
    for name in ("G", "critic"):
        opt = parts[f"opt_{name}"]
        assert type(opt) is torch.optim.RMSprop
        assert opt.defaults["momentum"] == 0
        (group,) = opt.param_groups
        assert group["lr"] is rate
        assert group["params"] == list(parts[name].parameters())


@pytest.mark.parametrize("flags, batch_norms, Norm", [
    ("", 1, None),
    ("--norm none", 0, None),
    ("--constraint spectral", 0, SpectralNorm),
    ("--constraint stable-rank --stable-rank 0.3", 0, StableRank),
])  # fmt: skip
def test_weights_are_either_clipped_or_normed(flags, batch_norms, Norm):
    torch.set_default_dtype(torch.float32)
    args = wgan.parse_args([*TINY.split(), *flags.split()])
    parts, step = wgan.build(args, 3, torch.device("cpu"))
    critic = parts["critic"]
    values = step(batches=[(torch.rand(3, 3, 16, 16), torch.eye(3))])
    assert sum(isinstance(m, nn.BatchNorm2d) for m in critic.modules()) == batch_norms
    largest = max(p.abs().max() for p in critic.parameters())
    if Norm is None:
        assert largest == torch.tensor(0.01)
        assert values[-1] > 0
    else:
        (norm,) = critic.main[2].parametrizations.weight
        assert type(norm) is Norm
        assert largest > 0.05
        assert values[-1] == 0
    if Norm is StableRank:
        assert norm.limit == pytest.approx(0.3 * 8)


@pytest.mark.parametrize("flags, said", [
    ("--stable-rank 1.1 --constraint stable-rank", "--stable-rank 1.1: must be at most 1"),
    ("--constraint spectral --clip 0.1", "--clip: has no effect on --constraint spectral"),
    ("--stable-rank 0.3", "--stable-rank: has no effect on --constraint clip"),
])  # fmt: skip
def test_constraints_that_make_no_sense_are_refused(capsys, flags, said):
    with pytest.raises(SystemExit, match="2"):
        wgan.parse_args(flags.split())
    assert said in capsys.readouterr().err
    wgan.parse_args(["--resume", "--stable-rank", "0.3"])  # is asked again beside the run's flags
