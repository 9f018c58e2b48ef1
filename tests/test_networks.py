"""The networks of the three trainers: shapes, initial weights, classes, and norms of weights.

test_conventions.py holds shared copies equal, so one script's Generator stands for all.
"""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import dcgan
import wgan
import wgan_gp
from dcgan import Discriminator, Generator

SECOND = [Discriminator, wgan.Critic, wgan_gp.Critic]
second_networks = pytest.mark.parametrize("Net", SECOND, ids=["dcgan", "wgan", "wgan_gp"])
BATCH_NORMED = [Generator, Discriminator, wgan.Critic]
batch_normed_networks = pytest.mark.parametrize("Net", BATCH_NORMED, ids=["G", "dcgan", "wgan"])


def layers(net, *kinds):
    return [m for m in net.modules() if isinstance(m, kinds)]


def convolutions(net):
    return layers(net, nn.Conv2d, nn.ConvTranspose2d)


def channels(net):
    return [layer.out_channels for layer in convolutions(net)]


def has_biases(net):
    return [layer.bias is not None for layer in convolutions(net)]


# ---- Shapes --------------------------------------------------------------------------------------


def test_sizes_are_4_to_7_times_a_power_of_two_from_16_to_256():
    allowed = {b * 2**n: (b, n) for b in (4, 5, 6, 7) for n in range(2, 7)}
    for size in range(600):
        if size in allowed and size <= 256:
            assert dcgan.base_resolution(size) == allowed[size]
        else:
            with pytest.raises(ValueError, match=f"^{size} is not"):
                dcgan.base_resolution(size)


@pytest.mark.parametrize("size", [16, 20, 28, 48, 64, 112, 256])
def test_maps_double_up_to_the_image_and_halve_back(size):
    G, critic = Generator(size, 5, 2), wgan_gp.Critic(size, 2)
    maps = []
    for layer in convolutions(G) + convolutions(critic):
        layer.register_forward_hook(lambda layer, x, out: maps.append(out.shape[-1]))
    images = G(torch.randn(2, 5))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert critic(images).shape == (2,)
    b, n = dcgan.base_resolution(size)
    up = [b * 2**i for i in range(n + 1)]
    assert maps == [*up, *up[-2::-1], 1]


@pytest.mark.parametrize("Net, width, maps, parameters", [
    # 16(100*512 + 512*256 + 256*128 + 128*3) + 3, norms 2(512 + 256 + 128)
    (Generator, 128, [512, 256, 128, 3], 3_448_579),
    (Generator, 64, [256, 128, 64, 3], 1_068_931),
    # 16(3*64 + 64*128 + 128*256 + 256) + 64 + 1, norms 2(128 + 256)
    (Discriminator, 64, [64, 128, 256, 1], 663_361),
    (wgan.Critic, 64, [64, 128, 256, 1], 663_361),
    (wgan_gp.Critic, 64, [64, 128, 256, 1], 662_977),  # biases, 128 + 256
])  # fmt: skip
def test_networks_published_at_32(Net, width, maps, parameters):
    net = Net(32, width=width)
    assert channels(net) == maps
    assert sum(p.numel() for p in net.parameters()) == parameters


@second_networks
def test_channels_double_with_each_halving_up_to_1024(Net):
    with torch.device("meta"):
        G, net = Generator(256), Net(256)
    assert channels(G) == [1024, 1024, 1024, 512, 256, 128, 3]
    assert channels(net) == [64, 128, 256, 512, 1024, 1024, 1]
    assert {layer.negative_slope for layer in layers(net, nn.LeakyReLU)} == {0.2}


# ---- Layers --------------------------------------------------------------------------------------


def test_the_generator_has_batch_norm_and_relu_on_all_but_its_last_layer():
    G = Generator()
    block = ["ConvTranspose2d", "BatchNorm2d", "ReLU"]
    kinds = [type(layer).__name__ for layer in G.main]
    assert kinds == [*block * 3, "ConvTranspose2d", "Tanh"]
    assert has_biases(G) == [False, False, False, True]


@pytest.mark.parametrize("Net", [Discriminator, wgan.Critic])
def test_batch_norm_is_neither_first_nor_last_in_the_second_network(Net):
    net = Net()
    kinds = [type(layer).__name__ for layer in net.main]
    block = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == ["Conv2d", "LeakyReLU", *block * 2, "Conv2d"]
    assert has_biases(net) == [True, False, False, True]


@batch_normed_networks
def test_a_network_without_a_norm_has_biases_instead(Net):
    net = Net(norm="none")
    assert not layers(net, nn.BatchNorm2d)
    assert all(has_biases(net))


@second_networks
def test_networks_compute_in_bfloat16_and_return_float32(Net):
    G = Generator(16, 8, 4, classes=3)
    net = Net(16, 4, classes=3)
    x, y = torch.ones(3, 3, 16, 16), torch.eye(3)
    exact = net(x, y)
    inside = []
    net.main[-1].register_forward_hook(lambda layer, x, out: inside.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        images = G(torch.randn(3, 8), y)
        scores = net(x, y)
    assert inside == [torch.bfloat16]
    assert images.dtype == torch.float32
    assert_close(scores, exact, rtol=0.05, atol=0.02)


# ---- Initial weights -----------------------------------------------------------------------------


@batch_normed_networks
def test_weights_start_at_a_standard_deviation_of_0_02(Net):
    torch.manual_seed(0)
    net = Net(classes=3)
    for layer in layers(net, nn.Conv2d, nn.ConvTranspose2d, nn.Linear):
        assert layer.weight.mean().abs() < 2e-3
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    for layer in layers(net, nn.BatchNorm2d):
        assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert not layer.bias.any()


def test_the_critic_of_wgan_gp_starts_with_pytorchs_own_weights():
    """U(-k, k) with k = 1 / sqrt(number of inputs of an output)."""
    torch.manual_seed(0)
    for layer in convolutions(wgan_gp.Critic()):
        k = (16 * layer.in_channels) ** -0.5
        assert 0.98 * k < layer.weight.max() <= k
        assert layer.weight.std().item() == pytest.approx(k / 3**0.5, rel=0.05)
        assert layer.bias.any()


# ---- Classes -------------------------------------------------------------------------------------


@second_networks
def test_the_projection_of_classes_is_the_formula_written_out(Net):
    """f(x, y) = y' V phi(x) + psi(phi(x)), phi summed over its pixels, in float64."""
    torch.manual_seed(1)
    net = Net(16, 4, classes=3).double().eval()
    x = torch.randn(5, 3, 16, 16).double()
    labels = [0, 1, 2, 1, 0]
    scores = net(x, torch.eye(3).double()[labels])
    V = net.embed.weight  # (8, 3)
    last = net.main[-1]
    for i, label in enumerate(labels):
        phi = net.main[:-1](x[i : i + 1])[0]  # (8, 4, 4)
        psi = (phi * last.weight[0]).sum() + last.bias[0]
        expected = psi + V[:, label] @ phi.sum((1, 2))
        assert_close(scores[i], expected, rtol=1e-12, atol=0)


def test_a_generator_takes_a_class_as_more_of_its_latent():
    G = Generator(16, 8, 4, classes=3)
    plain = Generator(16, 11, 4)
    plain.load_state_dict(G.state_dict())
    z, y = torch.randn(3, 8), torch.eye(3)
    assert torch.equal(G(z, y), plain(torch.cat([z, y], 1)))


# ---- Norms of the weights ------------------------------------------------------------------------


def singular_values(weight):
    return torch.linalg.svdvals(weight.detach().double().flatten(1))


def test_a_forward_of_spectral_norm_is_a_step_of_power_iteration():
    """Its weight is W/σ; its derivative is (D - <D, W/σ> u v') / σ where that by W/σ is D."""
    torch.manual_seed(1)
    W = torch.randn(8, 3, 2, 2).double()
    norm = wgan.SpectralNorm(W)
    assert singular_values(norm(W))[0].item() == pytest.approx(1, rel=1e-12)
    u, D = norm.u.clone(), torch.randn_like(W)
    W[0] += 1
    W.requires_grad_()
    normed = norm(W)
    normed.backward(D)

    matrix = W.detach().flatten(1)
    v = matrix.T @ u
    v = v / v.norm()
    u = matrix @ v
    sigma = u.norm()
    u = u / sigma
    assert_close(norm.u, u)
    assert_close(norm.v, v)
    assert_close(normed.flatten(1), matrix / sigma)
    D = D.flatten(1)
    inner = (D * matrix).sum() / sigma
    derivative = (D - inner * torch.outer(u, v)) / sigma
    assert_close(W.grad.flatten(1), derivative)
    assert singular_values(normed)[0] > 1.0001  # one step is not the limit


def test_a_spectral_norm_rests_in_eval_mode_and_is_whole_in_its_state_dict():
    W, X = torch.randn(2, 8, 3, 2, 2)
    norm, other = wgan.SpectralNorm(W).eval(), wgan.SpectralNorm(X).eval()
    normed = norm(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(X), normed)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other(X), normed)


@pytest.mark.parametrize("shape", [(16, 128), (40, 6), (1, 128), (5, 1)])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 1.0])
def test_stable_rank_against_the_singular_values(shape, share):
    """Algorithm 1 through a float64 SVD: σ1 = 1, its pair unchanged, the others scaled by one
    factor, so that the sum of σ² is share x rank, but at least 2, or less where it was less."""
    torch.manual_seed(3)
    weight = torch.randn(shape, dtype=torch.float64)
    U, S, V = torch.linalg.svd(weight, full_matrices=False)
    S = S / S[0]
    most = max(2, share * len(S))
    rest = S[1:].square().sum().item()
    if rest > most - 1:
        S[1:] *= ((most - 1) / rest) ** 0.5
    assert_close(wgan.StableRank(weight, share)(weight), U * S @ V)


@pytest.mark.parametrize("Net, norm", [
    (Discriminator, "spectral"), (wgan.Critic, "spectral"), (wgan.Critic, 0.5),
])  # fmt: skip
def test_norms_hold_within_a_few_percent_while_weights_are_trained_in_bfloat16(Net, norm):
    torch.manual_seed(1)
    net, y = Net(16, 4, norm, classes=3), torch.eye(3)
    assert all(has_biases(net))
    opt = torch.optim.Adam(net.parameters(), 1e-3)
    normed = layers(net, nn.Conv2d, nn.Linear)
    starts = [layer.weight for layer in normed]
    for _ in range(15):
        with torch.autocast("cpu", torch.bfloat16):
            real = net(torch.randn(3, 3, 16, 16), y)
            fake = net(torch.rand(3, 3, 16, 16), y)
        wgan.optimizer_step(opt, wgan.critic_loss(real, fake))
    net.eval()
    for layer, start in zip(normed, starts, strict=True):
        assert not torch.allclose(layer.weight, start, rtol=0.01)
        S = singular_values(layer.weight)
        assert S[0].item() == pytest.approx(1, abs=0.05)
        if norm == 0.5:
            assert S.square().sum() <= 1.05 * max(2, 0.5 * len(S))
