"""dcgan.py: Algorithm 1 against one written out by hand, and the paper's settings."""

import copy

import pytest
import torch
from conftest import descend
from torch import nn
from torch.testing import assert_close

import dcgan
from dcgan import Discriminator, Generator

pytestmark = pytest.mark.usefixtures("float64")
TINY = "--data cifar10 --size 16 --z-dim 8 --g-width 4 --d-width 4"


def test_a_logit_of_1000_on_the_wrong_side_still_has_a_gradient():
    logits = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    loss = dcgan.discriminator_loss(logits[:1], logits[1:]) + dcgan.generator_loss(logits[:1])
    loss.backward()
    assert loss.item() == pytest.approx(3000)
    assert logits.grad.tolist() == pytest.approx([-2, 1])


@pytest.mark.parametrize("classes", [0, 3])
def test_two_train_steps_are_the_algorithm_written_out_by_hand(classes):
    """Every weight, every statistic of a batch norm, and every value that is logged."""
    torch.manual_seed(3)
    G, D = Generator(16, 8, 4, classes=classes), Discriminator(16, 4, classes=classes)
    G2, D2 = copy.deepcopy([G, D])
    opt_G = torch.optim.SGD(G.parameters(), 0.1)
    opt_D = torch.optim.SGD(D.parameters(), 0.1)
    attached = []  # to G's graph
    D.register_forward_hook(lambda net, inputs, logits: attached.append(inputs[0].requires_grad))
    y = torch.eye(3)[[0, 2, 1, 1]] if classes else None
    bce = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(4), torch.zeros(4)
    for step in range(2):
        real = torch.rand(4, 3, 16, 16)
        torch.manual_seed(step)
        values = dcgan.train_step(G, D, opt_G, opt_D, [(real, y)], 8)

        torch.manual_seed(step)
        fake = G2(torch.randn(4, 8), y)
        on_real = D2(real, y)
        on_fake = D2(fake.detach(), y)
        d_loss = bce(on_real, ones) + bce(on_fake, zeros)
        descend(D2, d_loss)
        g_loss = bce(D2(fake, y), ones)
        descend(G2, g_loss)

        D_x, D_G_z = on_real.sigmoid().mean(), on_fake.sigmoid().mean()
        by_hand = torch.stack([d_loss, g_loss, D_x, D_G_z])
        assert_close(values, by_hand)
        assert_close(G.state_dict(), G2.state_dict(), rtol=0, atol=1e-12)
        assert_close(D.state_dict(), D2.state_dict(), rtol=0, atol=1e-12)
    assert dcgan.COLUMNS == ("d_loss", "g_loss", "D(x)", "D(G(z))")
    assert attached == [False, False, True] * 2
    assert not values.requires_grad


def test_the_defaults_are_the_papers():
    flags = "--lr 2e-4 --betas 0.5 0.999 --batch-size 128 --epochs 40 --g-width 128 --d-width 64"
    flags += " --z-dim 100 --norm batch --d-norm same --d-act leaky"
    given = dcgan.parse_args(["--data", "cifar10", *flags.split()])
    assert dcgan.parse_args(["--data", "cifar10"]) == given


def test_adam_trains_both_networks_at_one_rate():
    args = dcgan.parse_args([*TINY.split(), "--lr", "3e-4", "--betas", "0.4", "0.9"])
    parts, _ = dcgan.build(args, 0, torch.device("cpu"))
    rate = parts["opt_D"].param_groups[0]["lr"]
    assert rate.item() == pytest.approx(3e-4)
    for name in ("G", "D"):
        opt = parts[f"opt_{name}"]
        assert type(opt) is torch.optim.Adam
        assert opt.defaults["betas"] == (0.4, 0.9)
        (group,) = opt.param_groups
        assert group["lr"] is rate
        assert group["params"] == list(parts[name].parameters())


@pytest.mark.parametrize("flags, in_G, in_D, slope, spectral", [
    ("", 2, 1, 0.2, False),
    ("--norm none", 0, 0, 0.2, False),
    ("--norm none --d-norm batch", 0, 1, 0.2, False),
    ("--d-norm spectral", 2, 0, 0.2, True),
    ("--d-act relu", 2, 1, 0.0, False),
])  # fmt: skip
def test_flags_choose_norms_and_activation(flags, in_G, in_D, slope, spectral):
    args = dcgan.parse_args([*TINY.split(), *flags.split()])
    parts, step = dcgan.build(args, 3, torch.device("cpu"))
    G, D = parts["G"], parts["D"]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in G.modules()) == in_G
    assert sum(isinstance(m, nn.BatchNorm2d) for m in D.modules()) == in_D
    assert {m.negative_slope for m in D.modules() if isinstance(m, nn.LeakyReLU)} == {slope}
    assert hasattr(D.main[0], "parametrizations") == spectral
    values = step(batches=[(torch.rand(3, 3, 16, 16), torch.eye(3))])
    assert values.isfinite().all()
