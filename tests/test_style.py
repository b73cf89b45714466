"""The house rules, held over the syntax tree: who imports whom, and how large a thing may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted([*(ROOT / "gptjax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])

# Rooms from the lowest up; a room imports itself and those below it.
ORDER = [
    {"ops", "parallel"},
    {"models"},
    {"objectives"},
    {"training"},
    {"evaluation", "tuning", "interop"},
    {"sweeps"},
]
HEAVY = {"tensorflow_datasets", "orbax", "tyro", "matplotlib", "torch", "rich", "grain",
         "sentencepiece", "tokenizers", "tensorboardX", "cattrs", "array_record", "scipy",
         "plotly"}  # fmt: skip


TOP = {
    "runs",
    "population",
    "run_folder",
    "plan",
    "planned_kernels",
    "trained",
    "samples",
    "memory",
    "registry",
    "command_line",
    "experiment",
}  # above all rooms


def level(room: str) -> int | None:
    return next((i for i, rooms in enumerate(ORDER) if room in rooms), None)


def imports(tree: ast.AST, top_only: bool = False):
    """(module, line) of every import; at module level only if asked."""
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if len(parts) > 2 else ""


def test_rooms_import_downwards():
    wrong = []
    for path in (p for p in MODULES if p.is_relative_to(ROOT / "gptjax")):
        room, here = room_of(path), path.relative_to(ROOT)
        for module, line in imports(parsed(path)):
            parts = module.split(".")
            if parts[0] == "experiments":
                wrong.append(f"{here}:{line} imports experiments")
            if parts[0] == "jax" and room == "data":
                wrong.append(f"{here}:{line}: data imports jax")
            if parts[0] != "gptjax" or len(parts) < 2:
                continue
            theirs = parts[1]
            mine, other = level(room), level(theirs)
            if mine is not None and other is not None and other > mine:
                wrong.append(f"{here}:{line}: {room} imports {theirs}")
            if room == "scaling" and theirs not in ("scaling", "models", "ops", "errors"):
                wrong.append(f"{here}:{line}: scaling imports {theirs}")
            if room == "objectives" and theirs == "models":
                wrong.append(f"{here}:{line}: objectives import models")
            if room == "sweeps" and theirs in TOP - {"registry", "command_line"}:
                continue  # a sweep is made of whole runs
            if room and theirs in TOP:
                wrong.append(f"{here}:{line}: {room} imports {theirs}")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_where_they_are_used():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module} on import"
        for path in MODULES
        for module, line in imports(parsed(path), top_only=True)
        if module.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_budgets():
    """400 lines a module, 25 fields a dataclass."""
    wrong = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            wrong.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                if len(fields) > 25:
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name} has {len(fields)} fields")
    assert not wrong, "\n".join(wrong)


def test_public_functions_have_docstrings():
    wrong = []
    for path in (p for p in MODULES if p.name != "__init__.py"):
        tree = parsed(path)
        if not ast.get_docstring(tree):
            wrong.append(f"{path.relative_to(ROOT)} has no docstring")
        for node in tree.body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef)
            small = public and len(node.body) <= 3
            if public and not small and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not wrong, "\n".join(wrong)


def test_linen_is_kept_small():
    allowed = {"Module", "compact", "scan", "remat", "broadcast", "meta", "with_partitioning",
               "PARTITION_NAME"}  # fmt: skip
    wrong = []
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "nn" and node.attr not in allowed:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} nn.{node.attr}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("heavy", ["jax", "tensorflow_datasets", "matplotlib", "orbax", "tyro"])
def test_import_gptjax_is_light(heavy):
    code = f"import sys, gptjax; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
