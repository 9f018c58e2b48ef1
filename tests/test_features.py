"""tests/benchmarks/features.py: its features, its classifier, and a run at toy size."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))

import features

TINY = "--g-width 4 --d-width 4 --size 16 --z-dim 8 --batch-size 16 --device cpu --epochs 1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with 96 images of two classes, dark and bright; of one; of two others."""
    labels, noise = np.arange(96) % 2, np.random.default_rng(0).uniform(0, 160, (96, 16, 16, 3))
    pixels = (noise + 90 * labels[:, None, None, None]).astype(np.uint8)
    for name, named in {"two": labels, "one": labels * 0, "other": labels + 5}.items():
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=named)
    monkeypatch.chdir(tmp_path)


def train(script, flags=""):
    importlib.import_module(script).main(f"--data two.npz --out run {TINY} {flags}".split())


def refusal(words):
    with pytest.raises(SystemExit) as stop:
        features.main(words.split())
    assert "\n" not in str(stop.value)
    return str(stop.value)


def test_features_are_the_pooled_activations_of_all_layers_but_the_score():
    torch.manual_seed(0)
    first, second, norm = nn.Conv2d(3, 5, 4, 2, 1), nn.Conv2d(5, 7, 4, 2, 1), nn.BatchNorm2d(7)
    net, act, x = nn.Module(), nn.LeakyReLU(0.2, inplace=True), torch.randn(3, 3, 32, 32)
    norm.running_mean.normal_()
    net.main = nn.Sequential(first, act, second, norm, act, nn.Conv2d(7, 1, 8)).eval()
    with torch.no_grad():
        a = nn.functional.leaky_relu(first(x), 0.2)  # (3, 5, 16, 16)
        h = (second(a) - norm.running_mean[:, None, None]) / (1 + norm.eps) ** 0.5
        h = nn.functional.leaky_relu(h, 0.2)  # (3, 7, 8, 8)
    pooled = a.view(3, 5, 4, 4, 4, 4).amax((3, 5)), h.view(3, 7, 4, 2, 4, 2).amax((3, 5))
    wanted = torch.cat([part.flatten(1) for part in pooled], 1)  # (3, 192)
    assert torch.allclose(features.network_features(net, x), wanted, atol=1e-5)


def test_classifier_is_the_minimum_that_repeated_ridge_regressions_find():
    """A squared hinge is a square around a target moved out to where the score is beyond it."""
    rng, n, strength = np.random.default_rng(0), 300, 0.05
    labels = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 6)) @ rng.normal(size=(6, 6)) + np.eye(3)[labels] @ np.eye(3, 6)
    w, b = features.fit_svm(x, labels, 3, strength, features.correlations(x, 64))
    ones, y, score = np.hstack([x, np.ones((n, 1))]), 2 * np.eye(3)[labels] - 1, np.zeros((n, 3))
    ridge = ones.T @ ones / n + strength * np.diag([1.0] * 6 + [0])
    for _ in range(2000):
        both = np.linalg.solve(ridge, ones.T @ (y * np.maximum(1, y * score)) / n)
        score = ones @ both
    assert (y * score > 1).any() and (y * score < 1).any()
    assert np.allclose(np.vstack([w, b]), both, atol=1e-3)


def test_separable_classes_are_told_apart_and_drawn_in_their_shares():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], [100, 300])
    order = features.by_turns(labels, 0)
    assert sorted(order.tolist()) == list(range(400))
    assert (abs(labels[order].reshape(10, 40).mean(1) - 0.75) <= 0.05).all()
    x = torch.from_numpy(rng.normal(7, 0.1, (400, 30)).astype(np.float32))
    x[:, 4], x[:, 5] = 1 + torch.from_numpy(labels), 1  # the one tells all, the other nothing
    parts = [part[index] for part in (x, labels) for index in (order[:300], order[300:])]
    row = features.evaluate(*parts, 2)
    assert row["test"] == row["validation"] == 1


def test_a_run_is_judged_beside_pixels_and_the_network_before_training(folder, capsys):
    train("dcgan")
    words = "run/checkpoint.pt --data two.npz "
    features.main([*words.split(), "--hold-out", "0.25", "--json", "table.json"])
    printed = capsys.readouterr().out
    assert "2 classes, 72 images to train on, 24 to test" in printed
    table = [
        [cell.strip() for cell in row.split("|")] for row in printed.splitlines() if "|" in row
    ]
    names = ["raw pixels", "untrained network", "trained network"]
    assert table[2][5] == "50.0%" and [row[1] for row in table[3:]] == names
    assert [row[2] for row in table[3:]] == ["768", "192", "192"]
    rows = json.loads(Path("table.json").read_text())["rows"]
    assert [*rows] == names and all(row["test"] > 0.9 for row in rows.values())
    features.main([*words.split(), *"--test two.npz --n 60 --n-test 40 --grid 2".split()])
    assert "60 images to train on, 40 to test" in capsys.readouterr().out
    assert "a snapshot" in refusal("run/snapshots/epoch_0001.pt --data two.npz")
    assert "no checkpoint of a trainer" in refusal("two.npz --data two.npz")
    assert "has one class" in refusal("run/checkpoint.pt --data one.npz")
    assert "other classes than two.npz (0 1 5 6)" in refusal(words + "--test other.npz")
    assert "give a smaller --n or --grid" in refusal(words + "--grid 999")
    assert refusal(words + "--hold-out 1.5") == "2"  # exit 2, by the parser


@pytest.mark.parametrize("script, flags", [
    ("dcgan", "--d-norm spectral --conditional"), ("wgan", "--constraint stable-rank"),
    ("wgan_gp", "--critic-norm layer --conditional"), ("wgan", ""),
])  # fmt: skip
def test_the_network_before_training_is_the_runs(folder, monkeypatch, script, flags):
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "train", lambda *args: args[1].update(seconds=0))
    train(script, flags)  # writes the checkpoint of step 0
    module, saved = features.load_run("run/checkpoint.pt")
    state = saved.get("D", saved.get("critic"))
    for trained in (False, True):
        found = features.second_network(module, saved, trained).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in found.items())
