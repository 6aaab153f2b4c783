"""What is handed out: the wheel, its extras, and who imports whom."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fmengine
from fmengine.cli import COMMANDS
from tests.page import Page

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BASE = PROJECT["project"]["dependencies"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PACKAGES = {
    "fmengine": ROOT / "engine",
    "fmengine_train": ROOT / "train",
    "fmengine_export": ROOT / "export",
    "fmengine_bench": ROOT / "benchmarks",
}
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}  # they overwrite each other's files
MEGABYTE = 10**6

pytestmark = pytest.mark.xdist_group("packaging")  # one wheel, and one environment that it is installed in


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, encoding="utf-8")


# The wheel


def build(target: str, folder: Path, source: Path = ROOT) -> Path:
    made = run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    assert made.returncode == 0, made.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.timeout(60)
def test_the_wheel_holds_what_the_runtime_reads(wheel: Path) -> None:
    names = contents(wheel)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {
        "fmengine/pages/templates/base.html",
        "fmengine/pages/templates/style.css",
        "fmengine/model/shipped/training.json",
    } <= names
    models = {
        f"fmengine/model/shipped/{path.name}" for path in (ROOT / "engine/fmengine/model/shipped").glob("*.onnx")
    }
    assert (
        {"fmengine/model/shipped/alexnet-slim.fp16.onnx", "fmengine/model/shipped/alexnet-slim.int8.onnx"}
        <= models
        <= names
    )
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(".dist-info/licenses/" in name and name.endswith("/LICENSE.yunet") for name in names)


@pytest.mark.timeout(60)
def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    files = {
        path.relative_to(folder).as_posix()
        for package, folder in PACKAGES.items()
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == {name for name in contents(wheel) if ".dist-info/" not in name}


@pytest.mark.timeout(60)
def test_the_wheel_holds_neither_tests_nor_pictures(wheel: Path) -> None:
    names = contents(wheel)
    dist_info = f"fmengine_faces-{fmengine.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, dist_info}
    assert not [name for name in names if Path(name).name.startswith(("test_", "conftest"))]
    pictures = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".svg"}
    # The one that every new engine is checked with is NASA's, in the public domain.
    assert [name for name in names if Path(name).suffix.lower() in pictures] == ["fmengine/check/portrait.png"]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_the_source_archive_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        # Python has the filter from 3.11.4 on; the archive is our own.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert contents(build("wheel", tmp_path / "wheel", source)) == contents(wheel)


# The wheel, installed where nothing else is


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The `bin` of a new environment that holds the wheel and its `[cpu]`. pip asks the package index."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder)
    made = run(
        *(sys.executable, "-m", "pip", "--python", folder / "bin/python", "--disable-pip-version-check"),
        # What is imported is compiled then.
        *("install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt"),
        f"fmengine-faces[cpu] @ {wheel.as_uri()}",
    )
    if "Failed to establish a new connection" in made.stderr:
        pytest.skip("no package index can be reached")
    assert made.returncode == 0, made.stderr
    yield folder / "bin"
    shutil.rmtree(folder)  # more than all other tests leave until the end


def isolated(empty: Path, code: str, cwd: Path) -> str:
    """What the code prints in the new environment, which sees neither the checkout nor PYTHONPATH."""
    done = run(empty / "python", "-I", "-c", code, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestInstalled:
    def test_it_is_the_wheel_that_is_imported(self, empty: Path, tmp_path: Path) -> None:
        path = Path(isolated(empty, "import fmengine; print(fmengine.__file__)", tmp_path))
        assert path.is_relative_to(empty.parent)
        assert path.parent.parent.name == "site-packages"

    def test_it_brings_no_pytorch(self, empty: Path, tmp_path: Path) -> None:
        code = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'matplotlib') if u.find_spec(n)])"
        assert isolated(empty, code, tmp_path) == "[]"

    def test_it_tells_its_version(self, empty: Path, tmp_path: Path) -> None:
        done = run(empty / "fmengine", "--version", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"fmengine, version {fmengine.__version__}\n")
        code = "from importlib.metadata import version; print(version('fmengine-faces'))"
        assert isolated(empty, code, tmp_path) == fmengine.__version__

    def test_it_labels_a_face(self, empty: Path, portrait: Path, tmp_path: Path) -> None:
        (tmp_path / "face.png").write_bytes(portrait.read_bytes())
        for command in ([empty / "fmengine"], [empty / "python", "-I", "-m", "fmengine"]):
            done = run(*command, "infer", "face.png", "--json", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            row = json.loads(done.stdout)
            assert (row["path"], row["label"], row["error"]) == ("face.png", "happy", None)

    def test_it_scores_a_model(self, empty: Path, drawn_faces: Path, tmp_path: Path) -> None:
        options = ["--json", "--html", "page.html", "--svg", "plots.svg"]
        done = run(empty / "fmengine", "eval", "alexnet-slim", drawn_faces / "val", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["count"] == 32
        assert len(Page(tmp_path / "page.html").thumbnails) == 32
        assert (tmp_path / "plots.svg").is_file()

    @pytest.mark.parametrize(
        ("arguments", "extras"),
        [
            (["train", "faces"], "train"),
            (["export", "runs/mine", "--precision", "fp32"], "export,cpu"),
            (["parity", "runs/mine", "mine.fp32.onnx", "--pictures", "faces"], "bench,cpu"),
        ],
        ids=["train", "export", "parity"],
    )
    def test_a_command_that_needs_more_says_which_extra(
        self, empty: Path, tmp_path: Path, arguments: list[str], extras: str
    ) -> None:
        done = run(empty / "fmengine", *arguments, cwd=tmp_path)
        assert done.returncode == 4
        assert f"pip install '.[{extras}]' in a checkout of fmengine" in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


# Extras and pins


def test_no_hint_names_somebody_elses_package() -> None:
    """`fmengine` on the package index is another project's: nothing of ours may tell anyone to install it."""
    rooms = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    texts = [path for room in rooms for pattern in ("*.py", "*.md") for path in room.rglob(pattern)]
    texts += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "pyproject.toml"]
    wrong = re.compile(r"pip install\s+(-\S+\s+)*['\"]?fmengine\b(?!-faces)")
    assert [path for path in texts if wrong.search(path.read_text(encoding="utf-8"))] == []


def requirements(*groups: str) -> list[Requirement]:
    """What `pip install '.[group,…]'` asks for."""
    return [Requirement(text) for text in [*BASE, *(text for group in groups for text in EXTRAS[group])]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("pair", list(combinations(EXTRAS, 2)), ids="+".join)
def test_every_pair_of_extras_resolves_together(pair: tuple[str, str]) -> None:
    """One version of each library, the pinned one, suits whoever asks for it.

    This reads the project's own requirements; `make test` installs them together for real, and pip resolves
    what they need in turn.
    """
    pinned = pins()
    for requirement in requirements(*pair):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)
    if set(pair) != {"cpu", "gpu"}:  # the one pair that is told not to be installed together
        names = {canonicalize_name(requirement.name) for requirement in requirements(*pair)}
        assert not names >= RUNTIMES


def test_only_cpu_and_gpu_carry_an_onnx_runtime() -> None:
    carriers = {
        name: {canonicalize_name(Requirement(text).name) for text in texts} & RUNTIMES
        for name, texts in EXTRAS.items()
    }
    allowed = {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}
    assert {name: found for name, found in carriers.items() if found} == {
        name: found for name, found in allowed.items() if name in EXTRAS
    }
    assert not {canonicalize_name(requirement.name) for requirement in requirements()} & RUNTIMES


def test_commands_name_extras_that_exist() -> None:
    named = {extra for entry in COMMANDS.values() for extra in entry.extras.split(",") if extra}
    assert named <= EXTRAS.keys()


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "tests/requirements.txt").read_text(encoding="utf-8").splitlines()
    tools = [Requirement(line) for line in lines if line and not line.startswith("#")]
    builders = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    pinned = pins()
    for requirement in [*requirements(*EXTRAS), *tools, *builders]:
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} stands in no line of constraints.txt"
        assert requirement.specifier.contains(pinned[name]), str(requirement)


# Imports point one way


def imports(folder: Path) -> Iterator[tuple[str, str]]:
    """Every module that a folder's code imports, anywhere in it, with the place."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    modules = [alias.name for alias in names]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case ast.Call(
                    func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                    args=[ast.Constant(value=str(module)), *_],
                ):
                    modules = [module]
                case _:
                    continue
            for module in modules:
                yield module.split(".")[0], f"{path.relative_to(ROOT)}:{node.lineno}"


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        (
            "fmengine",
            {"torch", "onnx", "safetensors", "matplotlib", "fmengine_train", "fmengine_export", "fmengine_bench"},
        ),
        ("fmengine_train", {"onnxruntime", "fmengine_export", "fmengine_bench"}),
        ("fmengine_export", {"fmengine_bench"}),
    ],
)
def test_imports_point_one_way(package: str, forbidden: set[str]) -> None:
    found = list(imports(PACKAGES[package] / package))
    assert "numpy" in {root for root, _ in found}
    assert [f"{place} imports {root}" for root, place in found if root in forbidden] == []


def loaded_by(code: str) -> set[str]:
    done = run(sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stderr.splitlines()[-1].split()}


@pytest.mark.timeout(60)
def test_importing_fmengine_is_light() -> None:
    loaded = loaded_by("import fmengine")
    assert "fmengine" in loaded
    heavy = {"torch", "onnx", "onnxruntime", "matplotlib", "safetensors", "click", "tqdm", "jinja2"}
    assert not loaded & heavy


@pytest.mark.timeout(60)
def test_infer_never_touches_what_trains(portrait: Path) -> None:
    loaded = loaded_by(
        "from fmengine.cli import main\n"
        f"sys.argv = ['fmengine', 'infer', {os.fspath(portrait)!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code"
    )
    assert "onnxruntime" in loaded
    heavy = {"torch", "onnx", "matplotlib", "safetensors", "jinja2", "fmengine_train", "fmengine_export"}
    heavy.add("fmengine_bench")
    assert not loaded & heavy


# The repository


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Every file of the repository, as far as it is there."""
    listed = run("git", "ls-files", "-z")
    if listed.returncode:
        pytest.skip("no git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_every_folder_says_briefly_what_it_is(tracked: list[Path]) -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in tracked if path.parent != ROOT}
    rooms = sorted(name for name in folders if not name.startswith("."))
    assert {"train", "export", "engine", "benchmarks", "tests", "demo"} <= set(rooms)
    for room in rooms:
        lines = (ROOT / room / "README.md").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 40, f"{room}/README.md has {len(lines)} lines"


def test_the_repository_is_small(tracked: list[Path]) -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked}
    assert [name for name, size in sizes.items() if size > 10 * MEGABYTE] == []
    assert sum(sizes.values()) < 30 * MEGABYTE
