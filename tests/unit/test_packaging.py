"""The wheel: it holds everything that the program needs, and runs outside the checkout."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("bot", "adapters", "engine", "migrations")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", re.split(r"[\s<>=;\[]", name)[0]).lower()


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == [], "exact pins and nothing else"
    return {canonical(name): pin for name, pin in (line.split("==") for line in lines)}


def imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.partition(".")[0] for name in plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom)} if name
    }


def test_every_library_that_is_imported_is_a_declared_dependency():
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py")]
    names = set.union(*map(imported, files)) - set(sys.stdlib_module_names) - set(PACKAGES)
    optional = [each for group in PROJECT["optional-dependencies"].values() for each in group]
    declared = {canonical(each) for each in [*PROJECT["dependencies"], *optional]}
    seldom_installed = {"llama_cpp": ["llama-cpp-python"], "gguf": ["gguf"]}
    distributions = {**seldom_installed, **packages_distributions()}
    missing = {name for name in names if not declared & {canonical(each) for each in distributions.get(name, [])}}
    assert missing == set()


def test_every_declared_dependency_is_pinned():
    optional = [each for group in PROJECT["optional-dependencies"].values() for each in group]
    assert {canonical(each) for each in [*PROJECT["dependencies"], *optional]} - set(locked()) == set()


def test_what_is_installed_is_what_the_lock_pins():
    different = {}
    for name, pin in locked().items():
        try:
            installed = version(name).partition("+")[0]  # torch's CPU build calls itself 2.13.0+cpu
        except PackageNotFoundError:  # pinned for another platform
            continue
        if installed != pin:
            different[name] = installed
    assert different == {}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=100)
    return next((source / "dist").glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path):
    files = {path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


@pytest.mark.parametrize(
    "name",
    [
        "migrations/versions/0001_first_schema.py",
        "engine/bundled/model.safetensors",
        "engine/bundled/tokenizer.json",
        "bot/catalogue/zh.toml",
        "adapters/slack_manifest.yaml",
    ],
)
def test_the_wheel_holds_the_data_that_no_import_would_miss(wheel: Path, name: str):
    assert name in ZipFile(wheel).namelist()


@pytest.mark.slow
def test_an_installed_wheel_runs_the_demo_outside_the_checkout(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # The dependencies are borrowed from the venv that runs the tests; without its .pth files, so not the checkout.
    (libraries,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (libraries / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    install = [python, "-m", "pip", "install", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=100)
    demo = [tmp_path / "venv" / "bin" / "frontdesk", "demo", "--once"]
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 5 messages were answered" in done.stdout
