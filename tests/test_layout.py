"""The house rule as a test: rooms import only rooms below them, no circle, no file outgrows its page."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    ["gmoe.options", "gmoe.kernels"],
    ["gmoe.gguf"],
    ["gmoe.tokenizer", "gmoe.experts", "gmoe.library"],
    ["gmoe.layers"],
    ["gmoe.models"],
    ["gmoe.engine"],
    ["gmoe.loadable", "gmoe.machine", "gmoe.text"],
    ["gmoe.llm", "gmoe.passes"],
    ["gmoe.server"],
    ["gmoe.cli"],
    ["tools"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ONLY = {"gmoe.models": {"gmoe.layers"}, "gmoe.kernels": set(), "gmoe.options": set(), "gmoe.gguf": {"gmoe.kernels"}}
LONG_POLICY = 100
LONG_ARCHITECTURE = {"default": 60, "llama4.py": 80}
LONG = 400
WIDTH = 120


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("gmoe", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] != "gmoe" else ".".join(parts[:2])


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


FILES = sorted(p for folder in ("gmoe", "kernels", "tools") for p in (ROOT / folder).rglob("*.py"))
MODULES = {module_of(p): p for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down(path: Path) -> None:
    here = room_of(module_of(path))
    for module in imported(path):
        there = room_of(module)
        if there == here or there not in FLOOR or here not in FLOOR:
            continue
        assert FLOOR[there] < FLOOR[here], f"{here} must not import {module}"
        assert there in ONLY.get(here, {there}), f"{here} must not import {module}"


def test_no_circles() -> None:
    graph = {name: {m for m in imported(path) if m in MODULES and m != name} for name, path in MODULES.items()}
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for there in sorted(graph[name]):
                walk(there, [*trail, name])
            done.add(name)

    for name in graph:
        walk(name, [])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_outgrows_its_page(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    limit = LONG
    if path.parent.name in ("evict", "prefetch", "route", "working_set", "miss"):
        limit = LONG_POLICY
    if path.parent.name == "models" and path.name not in ("decoder.py", "__init__.py"):
        limit = LONG_ARCHITECTURE.get(path.name, LONG_ARCHITECTURE["default"])
    assert lines <= limit, f"{path.name} has {lines} lines, the limit is {limit}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{path.name} has no docstring"


def test_sources_in_cpp_keep_to_the_width_of_the_others() -> None:
    sources = [*(ROOT / "kernels" / "cpu").glob("*.h"), *(ROOT / "kernels" / "cpu").glob("*.cpp")]
    lines = [(path.name, n, line) for path in sources for n, line in enumerate(path.read_text().splitlines(), 1)]
    assert len(lines) > 5000
    assert not [f"{name}:{n}" for name, n, line in lines if len(line) > WIDTH]


def test_no_drawers_without_a_name() -> None:
    assert not [p for p in FILES if p.stem in ("utils", "common", "helpers", "misc")]
