"""CONVENTIONS.md, held: shared code, headers, flags, commands, and scripts that stand alone.

A script's copy of shared code is put right with

    python tests/test_conventions.py NAME dcgan.py

which copies NAME, a top-level function, class or constant, from dcgan.py over its other copies.
"""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
TRAINERS = ["dcgan.py", "wgan.py", "wgan_gp.py"]
PAGES = ["README.md", "CONVENTIONS.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]

# Top-level names that differ on purpose from script to script, and why.
DIFFER = {
    "MODEL": "the model's own name, in its checkpoints",
    "COLUMNS": "what a paper's train step reports",
    "DEMO": "what a model needs to learn the sprites in a minute",
    "Critic": "WGAN's has batch norm; WGAN-GP's must not couple the samples of a batch",
    "generator_loss": "cross entropy or critic score",
    "train_step": "the paper's algorithm",
    "build": "the paper's networks and optimizers",
    "build_parser": "the script's own flags and defaults",
    "parse_args": "each script checks its own flags",
    "main": "each kind of script does its own work",
}
# Flags whose default or help differs from script to script because the papers do.
OWN_FLAGS = {"--lr", "--betas", "--epochs", "--batch-size", "--out", "--d-width", "--norm"}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def definitions(text):
    """Top-level functions, classes and constants: name -> (first line, last line), 0-based."""
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        else:
            continue
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        while lines[first - 1].startswith("#") and not lines[first - 1].startswith("# ----"):
            first -= 1
        for name in names:
            found[name] = (first, node.end_lineno)
    return found


def source(script, name):
    text = read(script)
    first, last = definitions(text)[name]
    return "\n".join(text.splitlines()[first:last])


def holders():
    """name -> the scripts that define it at top level, for names in two scripts or more."""
    table = {}
    for script in SCRIPTS:
        for name in definitions(read(script)):
            table.setdefault(name, []).append(script)
    return {name: scripts for name, scripts in table.items() if len(scripts) > 1}


def copy_over(name, origin):
    """Copy the definition of `name` in `origin` over the one in every other script."""
    right = source(origin, name).splitlines()
    for script in holders().get(name, []):
        text = read(script)
        first, last = definitions(text)[name]
        lines = text.splitlines()
        lines[first:last] = right
        (ROOT / script).write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- Shared code --------------------------------------------------------------------------------


def test_copies_are_identical_to_the_byte():
    wrong = []
    for name, scripts in holders().items():
        if name not in DIFFER and len({source(script, name) for script in scripts}) > 1:
            wrong.append(f"python tests/test_conventions.py {name} {scripts[0]}")
    assert not wrong, "copies differ; from the script that is right run:\n" + "\n".join(wrong)


def test_every_exception_is_still_one():
    shared = holders()
    for name in DIFFER:
        assert name in shared, f"{name} stands in one script alone: take it out of DIFFER"
        texts = {source(script, name) for script in shared[name]}
        assert len(texts) > 1, f"{name} is the same everywhere: take it out of DIFFER"


def test_the_copier_finds_decorators_and_leading_comments():
    text = "import a\n\n# why\n@deco\ndef f():\n    pass\n\n\nX = 1\nclass C:\n    y = 2\n"
    assert definitions(text) == {"f": (2, 6), "X": (8, 9), "C": (9, 11)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_another(script):
    assert not imports(script) & {Path(other).stem for other in SCRIPTS}


# ---- Headers, sections, loads -------------------------------------------------------------------


def imports(script):
    """First names of all modules that a script imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(read(script))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_header_lists_what_the_script_imports(script):
    header = re.match(r"# /// script\n((?:# .*\n)+)# ///\n", read(script)).group(1)
    assert 'requires-python = ">=3.10"' in header
    packages = set(re.findall(r'"([a-z]+[^"]*)"', header.split("dependencies", 1)[1]))
    modules = {re.match("[a-z]+", package)[0] for package in packages}
    modules = {"PIL" if module == "pillow" else module for module in modules}
    needed = imports(script) - set(sys.stdlib_module_names)
    assert modules == needed - {"lmdb"}  # for LSUN alone; its absence is one line
    wanted = {line.split(" ")[0] for line in read("requirements.txt").splitlines()}
    assert packages <= wanted


@pytest.mark.parametrize("script", SCRIPTS)
def test_section_marks_are_ruled_to_column_100(script):
    marks = re.findall(r"^# ----.*", read(script), re.MULTILINE)
    assert {len(mark) for mark in marks} == {100}
    titles = re.findall(r"^# ---- ([\w ,.]+?) (?:\(.*\) )?-+$", read(script), re.MULTILINE)
    assert len(titles) == len(marks)
    if script in TRAINERS:
        order = "Networks, Objective, Training, Training loop, Run folder, Data, Options, main"
        assert titles == order.split(", ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_loads_run_no_code(script):
    for node in ast.walk(ast.parse(read(script))):
        if isinstance(node, ast.Call):
            call = ast.unparse(node)
            assert not re.match(r"(pickle\.loads?|eval|exec)\(", call)
            assert "allow_pickle=True" not in call  # np.load's default is the safe one
            if call.startswith("torch.load("):
                assert "weights_only=True" in call


# ---- Flags --------------------------------------------------------------------------------------


def flags(script):
    """flag -> (type, default, ..., help) of a script's parser."""
    parser = importlib.import_module(Path(script).stem).build_parser()
    table = {}
    for a in parser._actions:
        kind = getattr(a.type, "__name__", a.type)
        for flag in a.option_strings:
            table[flag] = (kind, a.default, a.nargs, a.choices, a.metavar, a.help)
    return table


def test_the_same_flag_means_the_same_everywhere():
    first = {}
    for script in TRAINERS:
        for flag, meaning in flags(script).items():
            if flag not in OWN_FLAGS:
                assert meaning == first.setdefault(flag, meaning), f"{flag} differs in {script}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_a_help_that_says_more_than_its_name(script):
    for flag, (*_, text) in flags(script).items():
        assert len(text.split()) >= 4, f"{script} {flag}: {text}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_on_a_screen_and_a_half(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = importlib.import_module(Path(script).stem).build_parser()
    assert not parser.allow_abbrev  # --seed is not --seeds
    text = parser.format_help()
    assert all(flag in text for flag in flags(script))
    assert len(text.splitlines()) <= 75


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_flag_ends_in_its_error_and_names_help(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(Path(script).stem).main(["--nonsense", "3"])
    assert stopped.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert "--help" in usage
    assert "error: " in error


# ---- Pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_readme_counts_the_lines_of_a_script_and_of_its_paper(script):
    text = read(script)
    counts = f"{len(text.splitlines()):,}"
    if script in TRAINERS:
        paper = text.partition("# ---- Training loop")[0]
        counts = f"{len(paper.splitlines()):,}, {counts}"
    assert re.search(rf"^\| \[{script}\].* \| {counts} \|", read("README.md"), re.MULTILINE)


def test_the_readme_is_short_and_ci_runs_its_commands():
    readme = read("README.md")
    assert len(readme.splitlines()) <= 170
    test = "pip install -r tests/requirements.txt && pytest"
    assert test in readme
    assert test in read(".ci/run")
    assert "pip install -r requirements.txt && python dcgan.py" in readme
    assert f"with {importlib.import_module('dcgan').DEMO}" in readme
    assert read("tests/requirements.txt").startswith("-r ../requirements.txt\n")


def test_the_conventions_are_short_and_name_tests_that_exist():
    text = read("CONVENTIONS.md")
    assert len(text.splitlines()) <= 90
    named = re.findall(r"`(test_\w+)`", text)
    there = "\n".join(read(path) for path in (ROOT / "tests").glob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in there]


def test_pages_link_to_files_that_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", read(page)):
            there = (ROOT / page).parent / target
            assert target.startswith("http") or there.exists(), f"{page}: {target}"


def test_nothing_else_at_top_level():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True)
    allowed = """
        README.md CONVENTIONS.md LICENSE requirements.txt pyproject.toml .gitignore .ci tests docs
        dcgan.py wgan.py wgan_gp.py fid.py interpolate.py scrape_spirits.py
    """
    assert {name.split("/")[0] for name in listed.splitlines()} <= set(allowed.split())


# ---- Scripts that stand alone -------------------------------------------------------------------

BARE = (  # without the two optional packages
    "import sys, runpy; sys.modules['tqdm'] = sys.modules['matplotlib'] = None;"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def python(*args, cwd):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, env=env, timeout=300
    )


@pytest.mark.parametrize("script", TRAINERS)
def test_a_script_runs_alone_without_tqdm_and_matplotlib(script, tmp_path):
    shutil.copy(ROOT / script, tmp_path)
    small = "--epochs 1 --size 16 --g-width 2 --d-width 2 --z-dim 4 --batch-size 256".split()
    strict = ("-W", "error", "-W", "ignore:Implicitly")  # torch 2.6 forgets a temporary folder
    done = python(*strict, "-c", BARE, script, *small, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "runs" / Path(script).stem
    assert json.loads((out / "args.json").read_text())["script"] == script
    assert (out / "samples" / "epoch_0001.png").exists()
    assert not (out / "loss.png").exists()
    assert re.search(r"epoch   1/1 .* images/s", done.stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_importing_a_script_does_nothing(script, tmp_path):
    shutil.copy(ROOT / script, tmp_path)
    code = (
        "import signal, torch; s = signal.getsignal(signal.SIGINT); r = torch.get_rng_state();"
        f"import {Path(script).stem};"
        "assert signal.getsignal(signal.SIGINT) is s and torch.equal(r, torch.get_rng_state())"
    )
    done = python("-B", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == [script]


if __name__ == "__main__":
    copy_over(*sys.argv[1:])
