"""What the READMEs say is true: their code runs, their links lead somewhere, their tables are complete."""

import doctest
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from PIL import Image

import fmengine
from fmengine.cli import COMMANDS, cli

ROOT = Path(__file__).parent.parent
READMES = sorted([ROOT / "README.md", *ROOT.glob("[a-z]*/README.md")])
PAGES = sorted({*READMES, *ROOT.glob("*.md"), *ROOT.glob("engine/*.md")})
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
CODE = {
    "engine": "fmengine",
    "train": "fmengine_train",
    "export": "fmengine_export",
    "benchmarks": "fmengine_bench",
}

# The README's `fmengine train` takes 100 epochs; the test appends `--recipe` with this one, which
# is small and yet learns the cartoons: of a network that has learned nothing, rounding turns labels.
QUICK = """
size = 40
epochs = 8
batch_size = 16
warmup = 1.0
augment = 0.1
dropout = 0.1
ema = 0.9
"""
# Threads wait for each other longer than so small a network computes.


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(readme: Path) -> str:
    return readme.read_text(encoding="utf-8")


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(readme), re.MULTILINE | re.DOTALL)


def shell_lines(readme: Path) -> list[str]:
    """The commands of a README's sh blocks, and of its indented ones."""
    lines = [line for block in blocks(readme, "sh") for line in block.splitlines() if line.strip()]
    return lines + re.findall(
        r"^    (\S.*)$", re.sub(r"^```.*?^```$", "", text_of(readme), flags=re.M | re.S), re.M
    )


def execute(line: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run one `fmengine …` line as a shell would."""
    name, *words = shlex.split(line, comments=True)
    assert name == "fmengine"
    arguments: list[str] = []
    for word in words:
        matches = sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else [word]
        assert matches, f"`{line}`: nothing matches {word}"
        arguments += matches
    done = subprocess.run(
        [sys.executable, "-m", "fmengine", *arguments, *more],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"`{line}` exits with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def face(portrait: Path, tmp_path: Path) -> Path:
    """A folder that holds the portrait as `face.jpg`."""
    with Image.open(portrait) as image:
        image.convert("RGB").save(tmp_path / "face.jpg", quality=95)
    return tmp_path


# The blocks


def run_python(block: str, folder: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.timeout(60)
def test_the_readme_embeds_it(face: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    answer, *results = run_python(block, face)
    assert re.fullmatch(r"happy (0\.\d+|1\.0) \{'happy': .*, 'sad': .*\}", answer)
    assert results[:2] == ["happy", "not_found"]
    assert re.fullmatch(r"\((\d+\.\d+(, )?){4}\) happy", results[2])


@pytest.mark.timeout(60)
def test_the_engines_readme_embeds_it(face: Path) -> None:
    first, camera = blocks(ROOT / "engine/README.md", "python")
    told, shape, error, *answers = run_python(f"{first}\n{camera}", face)
    assert re.fullmatch(r"(happy|sad) \('happy', 'sad'\) \(32, 1, (\d+), \2\)", told)
    assert shape == "(2, 2)"
    assert error.startswith("not_an_image ")
    assert answers == ["[]"] * 3  # black frames


@pytest.mark.timeout(60)
def test_the_page_of_embeddings_holds(face: Path) -> None:
    (block,) = blocks(ROOT / "engine/EMBEDDINGS.md", "python")
    (printed,) = run_python(block, face)
    shape, cosine, kind = re.fullmatch(r"(\(\d+,\)) (\S+) (\S+)", printed).groups()  # type: ignore[union-attr]
    assert (shape, kind) == ("(256,)", "not_found")
    assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_no_other_readme_holds_python() -> None:
    held = {readme.parent for readme in READMES if blocks(readme, "python")}
    assert held == {ROOT, ROOT / "engine"}


@pytest.mark.timeout(60)
def test_the_packages_own_example(face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(face)
    assert fmengine.__doc__ is not None
    example = doctest.DocTestParser().get_doctest(fmengine.__doc__, {}, "fmengine", None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_readmes_commands_run_one_after_the_other(face: Path, drawn_faces: Path) -> None:
    (face / "face.jpg").rename(face / "photo.jpg")
    shutil.copytree(drawn_faces / "train", face / "faces")  # a folder for each label
    (face / "holiday").mkdir()
    shutil.copy(face / "photo.jpg", face / "holiday")
    (face / "quick.toml").write_text(QUICK, encoding="utf-8")
    quick = ("--recipe", "quick.toml")
    lines = [line for line in shell_lines(ROOT / "README.md") if line.startswith("fmengine ")]
    printed = {line: execute(line, face, *(quick if " train " in line else ())).stdout for line in lines}
    assert {line.split()[1] for line in lines} == {"infer", "train", "export", "parity"}
    assert re.fullmatch(r"photo\.jpg  happy  [01]\.\d{3}\n", printed["fmengine infer photo.jpg"])
    assert len((face / "rows.jsonl").read_text(encoding="utf-8").splitlines()) == 128
    assert (face / "sheet.html").is_file()
    assert {path.name for path in (face / "models").iterdir()} == {
        "mine.fp32.onnx",
        "mine.fp16.onnx",
        "mine.int8.onnx",
    }
    assert printed[lines[-1]].startswith("holiday/photo.jpg  ")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_rooms_commands_run_one_after_the_other(tiny_run: Path, drawn_faces: Path, tmp_path: Path) -> None:
    (tmp_path / "faces").symlink_to(drawn_faces)  # `train` and `val`
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(tiny_run)
    (export,) = shell_lines(ROOT / "export/README.md")
    execute(export, tmp_path)
    assert len(list((tmp_path / "models").iterdir())) == 3
    for path in (tmp_path / "models").iterdir():  # the benchmarks' README calls the family `mine`
        path.rename(path.with_name(path.name.replace("alexnet-slim", "mine")))
    # `bench` is run by tests/benchmarks/test_bench.py, with less effort; its peers would be downloaded.
    parity, evaluate, *benches = shell_lines(ROOT / "benchmarks/README.md")
    assert all(line.startswith("fmengine bench ") for line in benches)
    assert "parity holds" in execute(parity, tmp_path).stdout
    assert "faces/val: 32 pictures" in execute(evaluate, tmp_path).stdout


# What is not run is at least there


def make_targets() -> set[str]:
    rules = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return {target for rule in rules for target in rule.split()}


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.parent.name)
def test_every_shell_line_is_one_that_is_checked(readme: Path) -> None:
    for line in shell_lines(readme):
        match shlex.split(line, comments=True):
            case ["fmengine", command, *_]:
                assert command in COMMANDS
            case ["torchrun", *_, "--", "fmengine", "train", "DATA...", "--run", _, "--batch-size", _]:
                pass  # tests/train/test_distributed.py
            case ["make", target, *_]:
                assert target in make_targets()
            case ["pip", "install", _]:
                pass  # below, with those in the text
            case _:
                pytest.fail(f"{readme}: no test knows what to do with `{line}`")


@pytest.mark.parametrize("readme", PAGES, ids=page_name)
def test_extras_and_make_targets_exist(readme: Path) -> None:
    for extras in re.findall(r"pip install '\.\[([^]]*)\]'", text_of(readme)):
        assert set(extras.split(",")) <= EXTRAS.keys()
    for target in re.findall(r"`make ([\w-]+)", text_of(readme)):
        assert target in make_targets()


@pytest.mark.parametrize("readme", PAGES, ids=page_name)
def test_options_exist(readme: Path) -> None:
    context = click.Context(cli)
    for mention in re.findall(r"`(fmengine [^`]*)`", text_of(readme)) + shell_lines(readme):
        words = re.findall(r"--?\w[\w-]*|\w+", mention.split("#")[0])
        if words[0] != "fmengine":
            continue
        command = cli if words[1].startswith("-") else cli.get_command(context, words[1])
        assert command is not None, mention
        if isinstance(command, click.Group) and len(words) > 2 and words[2] in command.commands:
            command = command.commands[words[2]]
        known = {name for option in command.get_params(context) for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, mention


@pytest.mark.parametrize("readme", PAGES, ids=page_name)
def test_links_lead_somewhere(readme: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(readme)):
        if not re.match(r"https?://", target):
            assert (readme.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.parent.name)
def test_a_rooms_readme_is_one_page(readme: Path) -> None:
    assert readme.parent == ROOT or len(text_of(readme).splitlines()) <= 40


def first_cells(text: str) -> str:
    return "\n".join(re.findall(r"^\| (.*?) \|", text, re.MULTILINE))


def test_the_table_of_commands_is_complete() -> None:
    section = text_of(ROOT / "README.md").split("\n## Commands\n")[1].split("\n## ")[0]
    assert re.findall(r"`fmengine (\w+)", first_cells(section)) == list(COMMANDS)


@pytest.mark.parametrize("room", CODE)
def test_tables_of_files_are_complete(room: str) -> None:
    """Each file and folder of code is named, once, and what is named exists."""
    folder = ROOT / room / CODE[room]
    named = re.findall(r"`([\w.]+\.py|\w+/)`", first_cells(text_of(ROOT / room / "README.md")))
    there = [path.name for path in folder.glob("*.py") if not path.name.startswith("__")]
    there += [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    others = [name for name in named if name.endswith("/") and name not in there]
    assert sorted(set(named) - set(others)) == sorted(there)
    assert len(named) == len(set(named))
    assert all((folder / name).is_dir() or (ROOT / room / name).is_dir() for name in others), others


CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def test_the_map_of_contributing_shows_every_room() -> None:
    section = text_of(CONTRIBUTING).split("\n## The map\n")[1].split("\n## ")[0]
    named = re.findall(r"`([\w.]+\.py|\w+/)`", first_cells(section))
    engine = ROOT / "engine/fmengine"
    assert {f"{path.parent.name}/" for path in engine.glob("*/__init__.py")} == {n for n in named if n[-1] == "/"}
    assert all((engine / name).exists() for name in named)


def test_the_files_that_contributing_names_exist() -> None:
    text = text_of(CONTRIBUTING)
    assert len(text.splitlines()) <= 120
    folders = (ROOT, ROOT / "engine/fmengine")
    for name in re.findall(r"`((?:\w+/)+[\w.]*|\w+\.(?:py|toml|txt))`", text):
        assert any((folder / name).exists() for folder in folders), name


def test_what_contributing_asks_for_is_there() -> None:
    """The names that its recipes lean on."""
    from fmengine.backend.protocol import Backend
    from fmengine.backend.registry import BACKENDS, CPU_BACKENDS
    from fmengine.image.decode import decode
    from fmengine.jobs.formats import Format
    from fmengine.jobs.journal import Journal
    from fmengine.jobs.output import FORMATS, open_output
    from fmengine.pipeline.executor import Executor
    from fmengine.pipeline.stages import Stages
    from fmengine.types import Source

    assert set(CPU_BACKENDS) < set(BACKENDS)
    assert len(FORMATS) == 3
    assert {"open", "run", "describe", "close"} <= vars(Backend).keys()
    assert {"header", "encode", "decode"} <= vars(Format).keys() | Format.__annotations__.keys()
    assert "observe" in vars(Stages)
    assert all([Executor, Journal, Source, decode, open_output])


def test_checks_before_a_commit_are_those_of_make() -> None:
    hooks = re.findall(r"entry: \.venv/bin/(.*)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = [line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in lint.splitlines()]
    assert [hook.removesuffix(" --force-exclude") for hook in hooks] == commands


def test_the_workflow_runs_what_ci_runs_on_every_python() -> None:
    text = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^ +python: \[(.*)\]$", text, re.MULTILINE)
    assert listed == '"3.11", "3.12", "3.13", "3.14"'
    ran = [f"make PYTHON=python${{{{ matrix.python }}}} {target}" for target in ("test", "integration")]
    assert re.findall(r"^ +- run: (.*)$", text, re.MULTILINE) == ran
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").endswith("\nmake test\nexec make integration\n")


@pytest.mark.parametrize("name", [".pre-commit-config.yaml", ".github/workflows/test.yml"])
def test_yaml_is_indented_by_spaces_and_its_keys_are_told_apart(name: str) -> None:
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        assert "\t" not in line
        assert line == line.rstrip()
        if not line.lstrip().startswith("#"):
            assert re.fullmatch(r"(  )*(- )?[\w-]+:( \S.*)?|(  )*- \S+|(  )*[\w.]+(/[\w.]+)*|", line), line


def test_the_kinds_of_failure_are_listed() -> None:
    (listed,) = re.findall(r"Kinds of failure: (.*)\.", text_of(ROOT / "engine/README.md"))
    assert re.findall(r"`(\w+)`", listed) == [kind.value for kind in fmengine.Kind]
