"""The rooms of the engine: who imports whom, read from the source without running it."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "engine" / "fmengine"
PACKAGES = {
    "fmengine": ENGINE,
    "fmengine_train": ROOT / "train" / "fmengine_train",
    "fmengine_export": ROOT / "export" / "fmengine_export",
    "fmengine_bench": ROOT / "benchmarks" / "fmengine_bench",
}
GPU = "fmengine.gpu"


def imports(tree: ast.Module, package: str, *, nested: bool = True) -> Iterator[str]:
    """Yield the full names of all that a module imports, also under TYPE_CHECKING; `nested`, also in functions.

    What `from a import b` imports is given as `a` and as `a.b`, whichever of them is a module.
    """
    for node in ast.walk(tree) if nested else _walk_outside_functions(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _walk_outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _walk_outside_functions(child)


def modules() -> Iterator[tuple[str, str, Path]]:
    """Yield every module's name, its package, and its file."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ".".join(parts[:-1]), path


@cache
def graph(*, nested: bool) -> dict[str, set[str]]:
    """Return which modules each module imports."""
    known = {name for name, _, _ in modules()}
    found = {}
    for name, package, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[name] = {target for target in imports(tree, package, nested=nested) if target in known} - {name}
    return found


def room_of(module: str) -> str:
    """Return `gpu` for `fmengine.gpu.driver`, and the module's own name for one outside every room."""
    parts = module.split(".")
    in_room = parts[0] == "fmengine" and len(parts) > 1 and (ENGINE / parts[1]).is_dir()
    return parts[1] if in_room else module


def is_in_gpu(module: str) -> bool:
    return module == GPU or module.startswith(f"{GPU}.")


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Return a circle in a graph, or an empty list."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def room_edges(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for module, targets in edges.items():
        if module.startswith("fmengine.") and (room := room_of(module)) != module:
            rooms.setdefault(room, set()).update(_rooms(targets) - {room})
    return rooms


def _rooms(modules: Iterable[str]) -> set[str]:
    return {room_of(module) for module in modules} - set(modules)


def test_every_package_is_read() -> None:
    edges = graph(nested=True)
    assert edges["fmengine.gpu.backend"] >= {
        "fmengine.gpu.pool",
        "fmengine.backend.protocol",
        "fmengine.check.gate",
    }
    assert edges["fmengine_export.tensorrt"] >= {"fmengine.trt.build"}
    assert "fmengine.backend.select" in edges["fmengine.backend.registry"]  # within a function
    assert room_edges(edges)["gpu"] >= {"backend", "check", "trt"}


def test_nothing_outside_gpu_imports_from_it() -> None:
    """Its backends, its proofs and its driver are reached by name: a machine without a GPU imports none of it."""
    wrong = [
        f"{module} imports {target}"
        for module, targets in graph(nested=True).items()
        if not is_in_gpu(module)
        for target in targets
        if is_in_gpu(target)
    ]
    assert not wrong


def test_what_is_reached_by_name_exists() -> None:
    """Every text such as `fmengine.gpu.driver:describe_gpu` names something."""
    files = {name: path for name, _, path in modules()}
    named = []
    for path in files.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.startswith("fmengine")
            ):
                module, colon, attribute = node.value.partition(":")
                if colon and attribute.isidentifier():
                    named.append((module, attribute))
    assert len([module for module, _ in named if is_in_gpu(module)]) >= 6
    for module, attribute in named:
        body = ast.parse(files[module].read_text(encoding="utf-8")).body
        assert attribute in {getattr(node, "name", None) for node in body}, f"{module}:{attribute}"


def test_rooms_import_in_no_circle() -> None:
    assert circle(room_edges(graph(nested=True))) == []


def test_modules_import_in_no_circle() -> None:
    """The engine's, as they are imported; what a function imports later is left out."""
    edges = graph(nested=False)
    assert circle({name: edges[name] for name in edges if name.split(".")[0] == "fmengine"}) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import fmengine.gpu.pool", {"fmengine.gpu.pool"}),
        ("from ..gpu import pool", {"fmengine.gpu", "fmengine.gpu.pool"}),
        ("from . import registry", {"fmengine.backend", "fmengine.backend.registry"}),
        ("if TYPE_CHECKING:\n    from ..gpu.pool import Pool", {"fmengine.gpu.pool", "fmengine.gpu.pool.Pool"}),
        ("def f():\n    from ..gpu.pool import Pool", {"fmengine.gpu.pool", "fmengine.gpu.pool.Pool"}),
    ],
)
def test_imports_of_every_form_are_found(text: str, expected: set[str]) -> None:
    assert set(imports(ast.parse(text), "fmengine.backend")) == expected


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
