"""Every command of README, docs and docstrings runs, at toy size, in the order of its page."""

import ast
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

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
TRAINERS = ("dcgan.py", "wgan.py", "wgan_gp.py")
PAGES = ["README.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")), *SCRIPTS]
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
TOY = "--size 16 --g-width 4 --d-width 4 --batch-size 100 --snapshot-every 1 --epochs".split()


def commands(page):
    """Script and words of each `python SCRIPT.py ...` of a page; a line that ends in \\ goes on."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page in SCRIPTS:
        text = ast.get_docstring(ast.parse(text))
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"(?:python|uv run|%run) (\w+\.py\b[^`\n]*)", text)
    return [shlex.split(re.split(r"\s{3,}|\s#", line)[0]) for line in lines]


class TinyCIFAR10(torchvision.datasets.FakeData):
    """In place of torchvision's CIFAR10: 40 images of noise."""

    filename, tgz_md5, classes = "archive", "its md5", CLASSES
    targets = [*range(10)] * 4

    def __init__(self, root, download):
        super().__init__(len(self.targets), (3, 32, 32))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Small images, a run and random weights where the pages have large ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", TinyCIFAR10)
    for trainer in TRAINERS:  # curves have tests of their own
        monkeypatch.setattr(import_module(trainer.removesuffix(".py")), "draw_curves", print)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    np.savez("fake-b.npz", images=pixels)
    for i, image in enumerate(pixels):
        folder = Path("cifar10-train", CLASSES[i % 10])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    for copy in "photos real fake fake-a half-0 half-1 samples data/spirits data/gallery".split():
        shutil.copytree("cifar10-train", copy, ignore=shutil.ignore_patterns("??.png"))
    shutil.copytree("cifar10-train", "cifar10-250")
    shutil.copytree("cifar10-train", "cifar10-500")
    archives = "cifar10-train-part0 cifar10-train-part1 celeba-10k-89x109 clothing-3781-64x64"
    for name in [*archives.split(), "photos"]:
        shutil.make_archive(name, "zip", "cifar10-train")
    torch.manual_seed(0)
    options = {"num_classes": 1008, "aux_logits": False, "init_weights": False}
    state = torchvision.models.inception_v3(weights=None, **options).state_dict()
    torch.save(state, "inception.pth")
    run("dcgan.py", *"--data cifar10 --conditional --out runs/dcgan".split())
    for copy in ("runs/cifar10", "runs/faces"):
        shutil.copytree("runs/dcgan", copy)
    for copy in ("CHECKPOINT", "weights.pt"):
        shutil.copy("runs/dcgan/snapshots/epoch_0001.pt", copy)
    Path("models.py").write_text("from dcgan import Generator\n", encoding="utf-8")


def run(script, *words):
    """Run a command with toy settings added, and look for the files it names."""
    module = import_module(script.removesuffix(".py"))
    if script in TRAINERS:
        words = [*words, *TOY, "2" if "--resume" in words else "1"]
    elif script == "fid.py":
        words = [*words, "--n", "20", "--allow-few", "--weights", "inception.pth"]
        words += ["--precision", "fp32"]  # some CPUs only emulate bfloat16
        if "--is" not in words:  # the first layers are enough
            words += ["--dims", "64"]
    elif "--samples" in words:
        words = [*words, "--samples", "8"]
    for word in words:  # of a run that is longer than this one
        if re.search(r"snapshots/epoch_\d+\.pt$", word) and not Path(word).exists():
            shutil.copy(sorted(Path(word).parent.glob("*.pt"))[-1], word)
    args = vars(module.parse_args(words))
    if script == "scrape_spirits.py":
        return  # it takes the network, and has tests of its own
    if args.get("out") and "--resume" not in words:  # of an earlier command of the page
        shutil.rmtree(args["out"], ignore_errors=True)
    module.main(words)
    for name in ("out", "json", "plot", "nearest"):
        assert not args.get(name) or Path(args[name]).exists(), (script, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(page, workplace):
    for script, *words in commands(page):
        run(script, *words)


def test_the_python_of_readme_runs(workplace, monkeypatch):
    wgan_gp = import_module("wgan_gp")
    main = wgan_gp.main
    monkeypatch.setattr(wgan_gp, "Critic", wgan_gp.Critic)  # which README replaces
    monkeypatch.setattr(wgan_gp, "main", lambda words: main([*words, *TOY, "1"]))
    run("dcgan.py", "--data", "photos")  # without classes
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        exec(block, {})
    assert Path("runs/mine/checkpoint.pt").exists() and Path("grid.png").exists()


def test_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 100
