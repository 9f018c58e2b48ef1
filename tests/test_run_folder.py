"""The run folder, which the trainers share: its files, going on with a run, and the flags."""

import importlib
import io
import json
import os
import pickle
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dcgan
import interpolate
import wgan
import wgan_gp

TINY = "--size 16 --g-width 8 --d-width 8 --z-dim 8 --batch-size 8 --device cpu".split()
PER_EPOCH = 5  # steps of two batches of eight of 83 images
SNAPSHOT = {"format", "script", "generator", "args", "G_ema", "image", "epoch", "step", "classes"}
MORE = {"G", "critic", "opt_G", "opt_critic", "totals", "images", "seconds", "log"}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """They take longer than an epoch."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags for 83 small images in three classes."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(1).integers(0, 256, (83, 16, 16, 3), np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=np.arange(83) % 3)
    return ["--data", f"{folder}/images.npz", "--cache", str(folder), *TINY, "--n-critic", "2"]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The folder of a run of three epochs, with curves; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "my run"
    wgan_gp.main([*data, "--epochs", "3", "--snapshot-every", "2", "--out", str(out)])
    return out


@pytest.fixture
def out(finished, tmp_path, monkeypatch):
    """A copy of the finished run, "my run" in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "my run")
    return Path("my run")


def run(*flags, trainer=wgan_gp):
    trainer.main([*map(str, flags)])


def resume(out, *flags, trainer=wgan_gp):
    trainer.main(["--out", str(out), "--resume", *map(str, flags)])


def load(path):
    return torch.load(path, weights_only=True)


def one_line_of(function, *args):
    """The one line with which a run ends."""
    with pytest.raises(SystemExit) as stop:
        function(*args)
    (line,) = stop.value.code.splitlines()
    return line


# ---- Files ---------------------------------------------------------------------------------------


def test_the_run_folder_holds_its_files_and_a_row_of_the_log_per_epoch(finished):
    names = [path.relative_to(finished).as_posix() for path in finished.rglob("*.*")]
    files = [".lock", "args.json", "checkpoint.pt", "log.csv", "loss.png", "wgan_gp.py"]
    files += ["samples/epoch_0001.png", "samples/epoch_0002.png", "samples/epoch_0003.png"]
    files += ["snapshots/epoch_0002.pt", "snapshots/epoch_0003.pt"]  # every other one, the last
    assert sorted(names) == sorted(files)
    with Image.open(finished / "loss.png") as curves:
        assert curves.size == (1760, 286)  # five side by side
    head = (finished / "log.csv").read_text().splitlines()[0]
    assert head.split(",") == ["epoch", "step", "images", "seconds", *wgan_gp.COLUMNS]
    rows = np.loadtxt(finished / "log.csv", delimiter=",", skiprows=1)
    assert rows[:, :3].tolist() == [[1, 5, 80], [2, 10, 160], [3, 15, 240]]
    for row, saved in zip(rows, load(finished / "checkpoint.pt")["log"]):
        assert row.tolist() == list(saved.values())


def test_args_json_and_the_copied_script_say_how_the_run_was_made(finished):
    assert (finished / "wgan_gp.py").read_bytes() == Path(wgan_gp.__file__).read_bytes()
    facts = json.loads((finished / "args.json").read_text())
    assert facts["script"] == "wgan_gp.py"
    assert facts["args"] == load(finished / "checkpoint.pt")["args"]
    assert f"torch {torch.__version__}, numpy {np.__version__}" in facts["versions"]
    assert facts["device"].startswith("cpu (threads: ")


def test_a_checkpoint_holds_the_state_and_a_snapshot_the_average_alone(finished):
    saved = load(finished / "checkpoint.pt")
    assert saved.keys() == SNAPSHOT | MORE
    assert (saved["format"], saved["script"], saved["classes"]) == (2, "wgan_gp.py", [])
    assert saved["generator"] == {"size": 16, "z_dim": 8, "width": 8, "norm": "batch"}
    assert (saved["epoch"], saved["step"], saved["images"]) == (3, 15, 83)
    snapshot = load(finished / "snapshots/epoch_0003.pt")
    assert snapshot.keys() == SNAPSHOT
    torch.testing.assert_close(snapshot["G_ema"], saved["G_ema"], rtol=0, atol=0)


def image_of(saved, seed, *onehot):
    """The image (3, size, size) of a seed, made alone, with each pixel doubled."""
    G = wgan_gp.Generator(**saved["generator"])
    G.load_state_dict(saved["G_ema"])
    z = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    z = torch.cat([z, *onehot])
    with torch.no_grad():
        pixels = ((G.eval()(z[None])[0] + 1) * 127.5).round().numpy()
    return pixels.repeat(2, 1).repeat(2, 2)


def cell_of(grid, row, column):
    """The image (3, 32, 32) in a grid of 16 x 16 images with a border of 2, all doubled."""
    top, left = 4 + 36 * row, 4 + 36 * column
    return np.asarray(grid)[top : top + 32, left : left + 32].transpose(2, 0, 1)


def test_cell_i_of_every_grid_is_the_image_of_seed_i(finished):
    for epoch in (2, 3):
        saved = load(finished / f"snapshots/epoch_000{epoch}.pt")
        with Image.open(finished / f"samples/epoch_000{epoch}.png") as grid:
            assert grid.size == (4 + 8 * 36, 4 + 8 * 36)
            for i in (0, 1, 19, 63):
                assert abs(cell_of(grid, *divmod(i, 8)) - image_of(saved, i)).max() <= 1


def test_a_conditional_run_counts_its_classes_and_draws_a_row_for_each(data, tmp_path, capsys):
    flags = "--conditional", "--epochs", 2, "--snapshot-every", 0, "--ema", 0
    run(*data, *flags, "--out", tmp_path)
    assert "classes: {'0': 28, '1': 28, '2': 27}" in capsys.readouterr().out
    saved = load(tmp_path / "snapshots/epoch_0002.pt")
    assert saved["classes"] == ["0", "1", "2"]
    with Image.open(tmp_path / "samples/epoch_0002.png") as grid:
        assert grid.size == (4 + 8 * 36, 4 + 3 * 36)
        for label, seed in ((0, 0), (1, 7), (2, 0)):
            image = image_of(saved, seed, torch.eye(3)[label])
            assert abs(cell_of(grid, label, seed) - image).max() <= 1


@pytest.mark.parametrize("size, pixels", [(32, 2 * 274), (40, 338)])
def test_pixels_are_doubled_at_32_or_less(size, pixels):
    state = wgan_gp.SimpleNamespace(G_ema=wgan_gp.Generator(size, 8, 2), classes=[])
    args = wgan_gp.parse_args(["--size", str(size), "--z-dim", "8"])
    assert wgan_gp.sample_grid(state, args).shape == (3, pixels, pixels)


def test_of_many_classes_the_first_64_have_a_row():
    G = wgan_gp.Generator(16, 8, 2, classes=70)
    state = wgan_gp.SimpleNamespace(G_ema=G, classes=[str(i) for i in range(70)])
    args = wgan_gp.parse_args(["--size", "16", "--z-dim", "8"])
    assert wgan_gp.sample_grid(state, args).shape == (3, 2 * (2 + 64 * 18), 2 * (2 + 8 * 18))


def test_curves_are_drawn_after_epochs_5_and_10_and_the_last(out, monkeypatch):
    drawn = []
    monkeypatch.setattr(wgan_gp, "draw_curves", lambda log, path: drawn.append(len(log)))
    monkeypatch.setattr(wgan_gp, "find_spec", lambda name: True)
    resume(out, "--epochs", 11)
    assert drawn == [5, 10, 11]


def test_a_matplotlib_that_fails_costs_the_curves_alone(out, monkeypatch, capsys):
    (out / "loss.png").unlink()
    monkeypatch.setattr(wgan_gp, "find_spec", lambda name: True)
    resume(out, "--epochs", 4)  # which cannot import it
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: my run: the curves are not drawn (import of matplotlib")
    assert (out / "snapshots/epoch_0004.pt").exists()
    assert not (out / "loss.png").exists()


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.fstat(fd).st_size))
    monkeypatch.setattr(os, "replace", lambda source, target: calls.append(target.name))
    with wgan_gp.atomic(tmp_path / "sub" / "file") as file:
        file.write(b"12345")
    assert calls == [5, "file"]


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_leaves_the_last_checkpoint_and_a_log_not_written_is_a_warning(out, capsys):
    """A limit on the size of files stands for the full disk: writes fail in mid-file."""
    import resource

    (out / "log.csv").unlink()
    (out / "log.csv").mkdir()
    before = (out / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        message = one_line_of(resume, out, "--epochs", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: my run: the log or the sample grid is not written ([Errno")
    assert message.startswith("my run/checkpoint.pt: not written; what was there is intact (")
    assert "intact ([Errno 27] File too large" in message
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not list(out.rglob("*.tmp"))


# ---- Going on with a run -------------------------------------------------------------------------


def assert_same_run(one, other):
    """Equal to the bit, but for times and flags."""
    first, second = load(f"{one}/checkpoint.pt"), load(f"{other}/checkpoint.pt")
    assert first.keys() == second.keys()
    for saved in (first, second):
        for row in saved["log"]:
            del row["seconds"]
        for name in saved.keys() & {"opt_G", "opt_D", "opt_critic"}:
            saved[name] = saved[name]["state"]
    for name in first.keys() - {"script", "generator", "args", "classes", "seconds"}:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    for path in Path(one, "samples").iterdir():
        assert path.read_bytes() == Path(other, "samples", path.name).read_bytes()


@pytest.mark.parametrize("trainer, name, flags", [
    (dcgan, "SIGINT", ["--d-norm", "spectral", "--batch-size", "16"]),
    (wgan, "SIGTERM", ["--constraint", "stable-rank", "--n-critic", "2"]),
    (wgan_gp, "SIGHUP", ["--n-critic", "2", "--precision", "bf16"]),
])  # fmt: skip
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    data, tmp_path, monkeypatch, capsys, trainer, name, flags
):
    """Though it is stopped after every step, and has parameters that are not trained."""

    class Edited(trainer.Generator):
        def __init__(self, *options):
            super().__init__(*options)
            self.main[0].requires_grad_(False)
            self.unused = torch.nn.Parameter(torch.zeros(3))

    monkeypatch.setattr(trainer, "Generator", Edited)
    monkeypatch.chdir(tmp_path)
    number = getattr(signal, name, signal.SIGINT)
    flags = [*data[:-2], *flags, "--epochs", 2, "--seed", 7, "--conditional", "--hflip"]
    run(*flags, "--lr-decay", "--out", "whole", trainer=trainer)
    train_step = trainer.train_step

    def interrupted(**rest):
        signal.raise_signal(number)
        return train_step(**rest)

    monkeypatch.setattr(trainer, "train_step", interrupted)
    flags += ["--lr-decay", "--out", "my parts"]
    for step in range(1, 2 * PER_EPOCH + 1):
        with pytest.raises(SystemExit) as stop:
            run(*flags, trainer=trainer)
        assert stop.value.code == 128 + number
        assert load("my parts/checkpoint.pt")["step"] == step
        flags = ["--out", "my parts", "--resume"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f'stopped; go on with python {trainer.SCRIPT} --out "my parts" --resume'
    resume("my parts", trainer=trainer)  # what is left is the end of the second epoch
    assert_same_run("whole", "my parts")


def test_more_epochs_later_and_another_memory_layout_make_the_same_run(data, finished, tmp_path):
    """As a run that was begun on MPS has it: fused Adam walks the memory of both side by side."""
    run(*data, "--epochs", 1, "--out", tmp_path)
    saved = load(tmp_path / "checkpoint.pt")
    moments = saved["opt_critic"]["state"][2]
    assert not moments["exp_avg"].is_contiguous()
    moments["exp_avg"] = moments["exp_avg"].contiguous()
    torch.save(saved, tmp_path / "checkpoint.pt")
    resume(tmp_path, "--epochs", 3)
    assert_same_run(finished, tmp_path)


def test_a_second_signal_acts_at_once_and_one_that_is_ignored_stays_so():
    of_interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does with SIGHUP
    before = signal.getsignal(signal.SIGTERM)
    with wgan_gp.catch_signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == before  # in an interpreter that lives on
    signal.signal(signal.SIGINT, of_interrupts)


@pytest.mark.parametrize("seconds, steps", [(301, [0, 0, 2, 2, 4]), (1, [0] * 15 + [15])])
def test_a_checkpoint_is_written_every_ten_minutes_and_not_after_each_short_epoch(
    data, tmp_path, monkeypatch, capsys, seconds, steps
):
    """By a clock on which a step takes so many seconds; in the end the power fails."""
    saved = []

    def failing(**rest):
        saved.append(load(tmp_path / "checkpoint.pt")["step"])
        if len(saved) == len(steps):
            raise KeyboardInterrupt
        return torch.zeros(5)

    monkeypatch.setattr(wgan_gp, "train_step", failing)
    monkeypatch.setattr(wgan_gp.time, "perf_counter", lambda: float(seconds * len(saved)))
    with pytest.raises(KeyboardInterrupt):
        run(*data, "--epochs", 9, "--out", tmp_path)
    assert saved == steps
    printed = capsys.readouterr().out  # of 80 images in 5 seconds, the first of nine epochs
    assert ("  16 images/s  0:40 left\n" in printed) == (seconds == 1)


def test_resume_takes_a_new_rate_adds_to_the_seconds_and_names_the_next_command(out, capsys):
    torch.save(load(out / "checkpoint.pt") | {"seconds": 1000.0}, out / "checkpoint.pt")
    free = (
        "--betas 0.3 0.8 --snapshot-every 1 --cache kept --precision fp32 --device cpu --no-graph"
    )
    resume(out, "--epochs", 4, "--lr", 0.03, *free.split())
    saved = load(out / "checkpoint.pt")
    assert float(saved["opt_G"]["param_groups"][0]["lr"]) == pytest.approx(0.03)
    assert saved["opt_G"]["param_groups"][0]["betas"] == (0.3, 0.8)
    assert saved["log"][3]["seconds"] >= 1000
    words = capsys.readouterr().out.split("; next: python interpolate.py ")[1]
    assert Path(interpolate.parse_args(shlex.split(words)).checkpoint) == out


def test_a_path_is_no_name_of_a_set_and_files_of_others_stay(data, tmp_path):
    args = wgan_gp.parse_args(["--data", "./sprites"])
    assert (args.data, args.g_width) == (os.path.abspath("sprites"), 128)
    (tmp_path / "other").mkdir()
    for name in (".log.csv.7.tmp", "other/.log.csv.7.tmp"):
        (tmp_path / name).write_bytes(b"")
    run(*data, "--epochs", 1, "--out", tmp_path)
    assert [path.parent.name for path in tmp_path.rglob(".*.tmp")] == ["other"]


def test_a_finished_run_says_how_to_go_on_and_stays_as_it_is(out, capsys):
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    resume(out, "--lr", 1)
    assert capsys.readouterr().out.endswith("\nfinished at epoch 3; to go on, add --epochs 43\n")
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_other_epochs_under_lr_decay_say_that_the_rate_jumps(data, out, capsys):
    run(*data, "--lr-decay", "--epochs", 1, "--out", "falling")
    resume("falling")
    resume(out, "--epochs", 4)
    assert "will jump" not in capsys.readouterr().out
    resume("falling", "--epochs", 2)
    assert "--epochs has changed, so the learning rate will jump" in capsys.readouterr().out


# ---- Refused -------------------------------------------------------------------------------------


def test_an_out_folder_that_cannot_be_used_is_refused(out, data):
    message = one_line_of(run, *data, "--out", out)
    assert message == "--out my run: holds a run; name another folder, or add --resume"
    (out / "checkpoint.pt").rename(out / "elsewhere.pt")
    assert one_line_of(run, *data, "--out", out) == message
    (out / "elsewhere.pt").rename(out / "checkpoint.pt")
    message = one_line_of(run, *data, "--out", out / "log.csv" / "run")
    assert message.startswith("--out my run/log.csv/run: cannot be written to (")


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM is POSIX")
def test_a_process_holds_its_folder_until_a_signal_ends_it(data, tmp_path, monkeypatch):
    """Its data has a name with letters that its output lacks."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(data[1], "bilder-\u4e2d.npz")
    command = [sys.executable, wgan_gp.__file__, *data, "--out", "my run"]
    command += ["--data", "bilder-\u4e2d.npz", "--epochs", "1000000"]
    env = os.environ | {"PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=env) as process:
        assert b"bilder-?.npz" in process.stdout.readline()
        while not process.stdout.readline().startswith(b"epoch "):
            assert process.poll() is None
        assert "another process trains in it" in one_line_of(resume, "my run")
        process.terminate()
        _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (128 + signal.SIGTERM, b"")
    step = load("my run/checkpoint.pt")["step"]
    resume("my run", "--epochs", step // PER_EPOCH + 1)
    assert load("my run/checkpoint.pt")["step"] > step


def test_resume_refuses_flags_that_would_make_it_another_run(out, capsys):
    for flags in ("--size 32", "--seed 3", "--batch-size 16", "--hflip", "--classes 0 1"):
        with pytest.raises(SystemExit, match="2"):
            resume(out, "--epochs", 4, *flags.split())
        flag = flags.split()[0]
        assert f"error: {flag}: the run in my run has " in capsys.readouterr().err


def test_resume_refuses_another_number_of_images_and_other_classes(data, out):
    images = np.load(data[1])["images"]
    np.savez("fewer.npz", images=images[1:])
    message = one_line_of(resume, out, "--data", "fewer.npz")
    assert message.endswith("does not fit this run (images: 83 before, 82 now)")
    run(*data, "--conditional", "--epochs", 1, "--out", "apart")
    np.savez("other.npz", images=images, labels=np.arange(83) % 2)
    message = one_line_of(resume, "apart", "--data", "other.npz")
    assert message.endswith("(classes: ['0', '1', '2'] before, ['0', '1'] now)")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-code-ran",)


FOREIGN = [{"script": "wgan.py"}, {"format": 99}, {"args": Hostile()}, {"args": None}]
FOREIGN += [{"args": {"size": "16"}}, {"G": {}}, {"log": None}]
FOREIGN += [{"opt_G": {"state": {0: {"exp_avg": torch.zeros(3)}}}}]


def test_resume_refuses_a_foreign_checkpoint_in_one_line(out):
    path = out / "checkpoint.pt"
    half, saved = path.read_bytes()[:60_000], load(path)
    for changes in FOREIGN:
        torch.save(saved | changes, path)
        before = path.read_bytes()
        assert one_line_of(resume, out, "--epochs", 4).startswith("my run/checkpoint.pt: ")
        assert path.read_bytes() == before
    for content in (half, b"", b"hello", pickle.dumps(Hostile()), pickle.dumps([1])):
        path.write_bytes(content)
        assert "no checkpoint of wgan_gp.py to go on from" in one_line_of(resume, out)
    assert not Path("hostile-code-ran").exists()
    assert "no checkpoint of wgan_gp.py to go on from" in one_line_of(resume, "typo")
    shutil.copy(out / "snapshots/epoch_0003.pt", path)
    assert "checkpoint.pt: does not fit this run ('images')" in one_line_of(resume, out)


@pytest.mark.parametrize("what, step", [("loss", 18), ("weight", 20)])
def test_what_is_not_finite_stops_the_run_before_its_checkpoint(out, monkeypatch, what, step):
    before = (out / "checkpoint.pt").read_bytes()
    train_step, steps = wgan_gp.train_step, [*range(15)]

    def breaking(G, **rest):
        steps.append(train_step(G=G, **rest))
        if len(steps) == step and what == "loss":
            return steps[-1] / 0
        if len(steps) == step:
            G.main[0].weight.data[0] = float("inf")
        return steps[-1]

    monkeypatch.setattr(wgan_gp, "train_step", breaking)
    message = one_line_of(resume, out, "--epochs", 5)
    advice = "my run/checkpoint.pt is from before: try --resume with a lower --lr"
    assert message == f"step {step}: a loss or a weight is not finite; {advice}"
    assert (out / "checkpoint.pt").read_bytes() == before


# ---- Flags, notebooks, copies --------------------------------------------------------------------

WRONG = {
    "--size 50": "--size 50 is not 4, 5, 6 or 7 times a power of two, 16 to 256",
    "--epochs 0": "--epochs 0: must be above 0",
    "--batch-size x": "--batch-size: invalid int value: 'x'",
    "--lr nan": "--lr nan: must be above 0",
    "--seed -1": "--seed -1: must be 0 or more",
    "--seed 99999999999999999999": "--seed 99999999999999999999: must be",
    "--ema 1": "--ema and --betas: must be in [0, 1)",
    "--betas 0.5 1.5": "--ema and --betas: must be in [0, 1)",
    "--epoch 3": "unrecognized arguments: --epoch 3",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_end_in_one_line_and_exit_2(capsys, flags):
    with pytest.raises(SystemExit) as stop:
        wgan_gp.parse_args(flags.split())
    assert stop.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: wgan_gp.py [flags]; --help lists them"
    assert WRONG[flags] in error


def test_sprites_take_settings_of_their_own_and_say_which(capsys):
    zeros = "--betas 0 0 --seed 0 --snapshot-every 0 --ema 0 --gp-weight 0"
    args = wgan_gp.parse_args(["--lr", "1e-3", *zeros.split()])
    assert (args.g_width, args.batch_size, args.lr, args.ema) == (16, 16, 1e-3, 0)
    wgan_gp.describe(2048, args, "cpu")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("a short demonstration, with {'g_width': 16, ")
    assert "'lr': 0.001" in last


def test_a_tilde_in_a_path_is_the_home_folder_and_no_path_the_working_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home")
    monkeypatch.setenv("USERPROFILE", "/home")
    args = wgan_gp.parse_args(["--out=~/a/", "--cache=~/b", "--data=~/c"])
    paths = [Path(args.out), Path(args.cache), Path(args.data)]
    assert paths == [Path("/home/a"), Path("/home/b"), Path("/home/c")]
    assert wgan_gp.parse_args(["--out", ""]).out == "."


@pytest.mark.parametrize("trainer", [dcgan, wgan, wgan_gp])
@pytest.mark.parametrize("images", [1, 300, 2_000_000])
def test_few_steps_are_named_with_flags_that_make_more(capsys, trainer, images):
    flags = ["--data", "photos", "--batch-size", "4096", "--epochs", "1", "--out", "a b/"]
    args = trainer.parse_args(flags)
    trainer.describe(images, args, "cpu")
    last = capsys.readouterr().out.splitlines()[-1]
    more = shlex.split(last.removeprefix("that is few; to the same command add "))
    longer = trainer.parse_args(flags + more)
    assert longer.out == "a b-longer"
    trainer.describe(images, longer, "cpu")
    last = capsys.readouterr().out.splitlines()[-1]
    steps = last.split(" train steps an epoch, ")[1].removesuffix(" in all")
    assert int(steps.replace(",", "")) >= 4900


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_a_script_runs_from_a_pipe_in_a_notebook_and_without_a_console(out, monkeypatch, stream):
    (out / "wgan_gp.py").unlink()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "argv", ["-", "--out", "my run", "--resume", "--epochs", "4"])
    script = Path(wgan_gp.__file__).read_text(encoding="utf-8")
    exec(script, {"__name__": "__main__", "__file__": "<stdin>"})
    assert load(out / "checkpoint.pt")["epoch"] == 4
    assert not list(out.glob("*.py"))  # there was none to copy
    sys.argv[-1] = "5"
    runpy.run_path(wgan_gp.__file__, run_name="__main__")
    assert load(out / "checkpoint.pt")["epoch"] == 5
    monkeypatch.setattr(sys, "argv", ["/usr/ipykernel_launcher.py", "-f", "/tmp/kernel.json"])
    assert wgan_gp.parse_args() == wgan_gp.parse_args([])


def test_what_no_memory_holds_is_one_line(data, tmp_path, monkeypatch):
    flags = [*data, "--out", str(tmp_path), "--batch-size", str(10**12)]
    monkeypatch.setattr(sys, "argv", ["wgan_gp.py", *flags])
    monkeypatch.setattr(sys, "stdout", None)
    message = one_line_of(lambda: runpy.run_path(wgan_gp.__file__, run_name="__main__"))
    assert message.startswith("out of memory: try a smaller --batch-size")


def test_a_renamed_copy_speaks_of_itself_and_its_checkpoints_of_the_model(
    data, tmp_path, monkeypatch, capsys
):
    shutil.copy(wgan_gp.__file__, tmp_path / "mine_gp.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("mine_gp").main([*data, "--epochs", "1"])
    printed = capsys.readouterr().out
    assert printed.startswith("mine_gp.py: 83 images of ")
    assert 'next: python interpolate.py "runs/mine_gp"' in printed
    assert Path("runs/mine_gp/mine_gp.py").exists()
    assert load("runs/mine_gp/checkpoint.pt")["script"] == "wgan_gp.py"
    resume("runs/mine_gp")
