"""What is installed is `penstock/` and nothing beside it: built as users get it, sdist first, the wheel from that."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from ..support.procs import run

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cache", "gateway", "workers", "loadtests")
FILES = ("pyproject.toml", "README.md", "LICENSE")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel made from it, built in a copy so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, source / file)
    status, output = run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)], timeout_s=100
    )
    assert status == 0, output
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment of its own with the wheel in it; dependencies are borrowed from this one, but not Penstock."""
    home = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=100)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    status, output = run([*pip, "install", "-q", "--no-deps", "--no-index", str(built[1])], timeout_s=100)
    assert status == 0, output
    site = next(home.glob("lib/python*/site-packages"))
    ours = next(p for p in sys.path if p.endswith("site-packages") and (Path(p) / "msgspec").is_dir())
    # A folder named in a .pth is searched, but its own .pth files are not run: the editable install stays out.
    (site / "borrowed.pth").write_text(ours + "\n")
    return home


def python_files(folder):
    return {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.py")}


def test_the_package_list_is_the_folders_on_disk():
    on_disk = {
        "penstock." + str(path.parent.relative_to(ROOT)).replace(os.sep, ".")
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    setuptools = PROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == on_disk
    assert setuptools["package-dir"] == {
        name: name.removeprefix("penstock.").replace(".", "/") for name in setuptools["packages"]
    }


def test_every_package_folder_has_an_init_file():
    assert not [
        p
        for p in PROJECT["tool"]["setuptools"]["package-dir"].values()
        if not (ROOT / p / "__init__.py").exists()
    ]


def test_the_sdist_holds_every_module(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set().union(*map(python_files, FOLDERS)) <= names
    assert set(FILES) <= names


def test_every_installed_file_lies_under_penstock(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"penstock", f"penstock-{PROJECT['project']['version']}.dist-info"}
    modules = {name.removeprefix("penstock/") for name in names if name.endswith(".py")}
    assert modules == set().union(*map(python_files, FOLDERS))


def test_a_fresh_installation_adds_nothing_else_to_site_packages(installed):
    site = next(installed.glob("lib/python*/site-packages"))
    tops = {path.name for path in site.iterdir()} - {"borrowed.pth", "__pycache__"}
    assert tops == {"penstock", f"penstock-{PROJECT['project']['version']}.dist-info"}


def test_every_module_of_the_installation_can_be_imported(installed, tmp_path):
    program = (
        "import importlib, pkgutil, sys, penstock\n"
        "names = [m.name for m in pkgutil.walk_packages(penstock.__path__, 'penstock.')]\n"
        "for name in names:\n"
        "    if not name.endswith(('__main__', '.locustfile')): importlib.import_module(name)\n"
        "print(len(names), *penstock.__path__)\n"
    )
    (tmp_path / "walk.py").write_text(program)
    status, output = run([str(installed / "bin" / "python"), "-I", str(tmp_path / "walk.py")])
    assert status == 0, output
    count, place = output.split()
    assert int(count) > len(PROJECT["tool"]["setuptools"]["packages"])
    assert place.startswith(str(installed))


def test_the_command_of_a_fresh_installation_says_its_version(installed):
    status, output = run([str(installed / "bin" / "penstock"), "--version"])
    assert status == 0, output
    assert output.split() == ["penstock", PROJECT["project"]["version"]]
