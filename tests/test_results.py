"""Every command of docs/results.md runs, at toy size, in the order of the page."""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"
TRAINERS = ("dcgan.py", "wgan.py", "wgan_gp.py")
TOY = "--size 16 --g-width 4 --d-width 4 --batch-size 20 --snapshot-every 1 --epochs 1".split()


def commands():
    """The words of each command in a block of the page; a line that ends in \\ goes on."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Small sets of images where the page has large ones, and Inception weights that are random."""
    monkeypatch.chdir(tmp_path)
    for trainer in TRAINERS:  # curves have tests of their own
        monkeypatch.setattr(import_module(trainer.removesuffix(".py")), "draw_curves", print)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    for i, pixels in enumerate(
        np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    ):
        folder = Path("cifar10-train", names[i % 10])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for copy in ("cifar10-250", "cifar10-500", "data/gallery"):
        shutil.copytree("cifar10-train", copy)
    archives = "cifar10-train-part0 cifar10-train-part1 celeba-10k-89x109 clothing-3781-64x64"
    for name in archives.split():
        shutil.make_archive(name, "zip", "cifar10-train")
    torch.manual_seed(0)
    options = {"num_classes": 1008, "aux_logits": False, "init_weights": False}
    state = torchvision.models.inception_v3(weights=None, **options).state_dict()
    torch.save(state, "inception.pth")


def test_every_command_of_the_results_runs(workplace):
    runs = {}  # run folders by script and flags: one run for all commands of the same flags
    assert len(commands()) > 10
    for script, *words in commands():
        if script.startswith("tests/"):
            continue  # benchmarks have tests of their own
        kind = (script, *[word for word in words if word.startswith("--")])
        if script in TRAINERS:
            words += TOY
        elif script == "fid.py":  # the first layers are enough; some CPUs only emulate bfloat16
            words += ["--n", "20", "--allow-few", "--dims", "64", "--precision", "fp32"]
        for word in words:  # of a run that is longer than this one
            if re.search(r"snapshots/epoch_\d+\.pt$", word) and not Path(word).exists():
                shutil.copy(sorted(Path(word).parent.glob("*.pt"))[-1], word)
        if kind in runs:
            shutil.copytree(runs[kind], words[words.index("--out") + 1])
        else:
            import_module(script.removesuffix(".py")).main(words)
        if script in TRAINERS:
            runs[kind] = words[words.index("--out") + 1]
        for flag in ("--json", "--plot", "--out"):
            if flag in words:
                assert Path(words[words.index(flag) + 1]).exists(), (script, words)
