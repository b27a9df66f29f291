"""Shared fixtures of the tests. Tests on public data need $LORE_DATA or a data folder next to the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tests" / "demo"
DEMO_PATH = f"{DEMO}{os.pathsep}{ROOT}"  # sitecustomize.py imports lore before the working directory is on the path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests must not download anything
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

HEADER = 'lore: 1; from lore.run import main; main(__name__, __file__); r"""\n'
FOOTER = '# """\n'


@pytest.fixture(autouse=True)
def same_threads():
    """No test leaves PyTorch with another number of threads: the last bits of later tests would depend on it."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if torch and torch.get_num_threads() != before:
        after = torch.get_num_threads()
        torch.set_num_threads(before)
        raise AssertionError(f"the test changed PyTorch's threads from {before} to {after}")


@pytest.fixture
def root() -> Path:
    """The project's root."""
    return ROOT


@pytest.fixture
def public_data() -> Path:
    """The folder of real public data. Skips the test if there is none."""
    folder = Path(os.environ.get("LORE_DATA", ROOT / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}; set LORE_DATA")
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """An empty folder for run folders."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("LORE_RUNS", str(folder))
    return folder


@pytest.fixture
def demo(monkeypatch, runs) -> None:
    """Registers the stages of tests/demo in this process and in every Python process that it starts."""
    from lore.config.stages import STAGES

    monkeypatch.syspath_prepend(str(DEMO))
    monkeypatch.setenv("PYTHONPATH", DEMO_PATH)
    monkeypatch.setitem(STAGES, "demo", ("demo_stage:DemoRecipe", "demo_stage:run"))
    monkeypatch.setitem(STAGES, "train_demo", ("demo_stage:TrainDemoRecipe", "demo_stage:train"))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write_recipe(tmp_path):
    """Writes a recipe with the Python header and footer: write_recipe("a.yaml", "stage: demo\\nrun: a")."""

    def write(name: str, body: str, plain: bool = False) -> Path:
        path = tmp_path / "recipes" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body if plain else f"{HEADER}{body.rstrip()}\n{FOOTER}", encoding="utf-8")
        return path

    return write


def run_python(*arguments: object, timeout: float = 120, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Runs the interpreter of the tests in a new process. Captures the output as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **environment},
    )


@pytest.fixture
def interrupt_after(monkeypatch):
    """interrupt_after("a.txt") raises KeyboardInterrupt right after a file of this name is published for the first time."""
    replace = os.replace

    def arm(name: str) -> None:
        def interrupt(source, target):
            replace(source, target)
            if Path(target).name == name:
                monkeypatch.setattr(os, "replace", replace)
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)

    return arm


@pytest.fixture
def lore(monkeypatch, capsys):
    """Runs a `lore` command in this process: lore("check", "recipes") returns returncode, stdout and stderr."""
    from lore.cli.main import main

    def run(*arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["lore", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        return subprocess.CompletedProcess(sys.argv, done.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny shop and two tiny base models with random weights; see tests/tiny.py."""
    from tiny import make

    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def train(tiny, runs, tmp_path):
    """Runs an SFT recipe over the tiny shop: train("name", "train.lr=1e-3", model="text", steps=3)."""
    from lore.run.runner import run_recipe

    def run(name: str, *overrides: str, **options):
        path = tmp_path / f"{name}.yaml"
        path.write_text(tiny.recipe(name, **options))
        return run_recipe(path, overrides)

    return run


def needs_deepspeed() -> None:
    """Skips a test where DeepSpeed cannot run on the CPU."""
    pytest.importorskip("deepspeed")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("DeepSpeed on a CPU needs a C++ compiler")
