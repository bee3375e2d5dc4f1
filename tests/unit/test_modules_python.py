"""What runs on an application's hosts runs with the oldest Python that the preflight accepts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ansible.module_utils import basic

from plugins.modules import app_host

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "ansible/plugins"
OLDEST = (3, 9)
"""What app_host demands. PgBouncer's own modules run on Debian 12 and later, 3.11."""

MODULES = (
    *("app_login", "app_migration", "app_overtaken", "app_release", "app_venv", "app_ways"),
    *("app_build", "certificate_expiry", "host_files", "service_current"),
)
# This one says where the role pgbouncer does not support a distribution; the rest of its imports
# is not called there.
ALONE = ("modules/pgbouncer_host.py", "module_utils/pgbouncer_foreign.py")

OLDEST_OF_ANSIBLE = (3, 8)
"""Of Ansible's own modules: where a Python is older, no module can say that it is too old."""
# This one says so for the role app.
EVERYWHERE = (
    *("modules/app_host.py", "module_utils/unlogged_module.py"),
    "module_utils/virtual_environment.py",
)

LATER = {
    ("datetime", "UTC"): 3.11,
    ("typing", "Self"): 3.11,
    ("itertools", "pairwise"): 3.10,
    ("enum", "StrEnum"): 3.11,
    ("contextlib", "chdir"): 3.11,
    ("platform", "freedesktop_os_release"): 3.10,
}
"""Names that a module of the standard library has only since then."""

MODULES_LATER = ("tomllib",)
KEYWORDS_LATER = {"zip": ("strict",), "write_text": ("newline",), "dataclass": ("slots", "kw_only")}
METHODS_LATER = ("bit_count", "hardlink_to", "walk", "add_note")
METHODS_OF_3_9 = ("removeprefix", "removesuffix", "readlink", "is_relative_to", "with_stem")
MODULES_OF_3_9 = ("zoneinfo", "graphlib")


def imported(path: Path) -> list[Path]:
    """Return the files of ours that a source imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            found += [folder.with_suffix(".py"), *(folder / f"{a.name}.py" for a in node.names)]
    return [file for file in found if file.exists()]


def sources() -> list[Path]:
    """Return the modules and everything of module_utils that they import."""
    found = [PLUGINS / f"modules/{name}.py" for name in MODULES]
    for path in found:
        found += [other for other in imported(path) if other not in found]
    return found + [PLUGINS / name for name in ALONE]


def test_what_the_modules_import_was_found() -> None:
    assert {"locking", "text_files", "unlogged_module"} <= {path.stem for path in sources()}


def too_new(text: str, oldest: tuple[int, int] = OLDEST) -> list[str]:
    """Return what in a source needs a later Python."""
    tree = ast.parse(text, feature_version=oldest)
    first = oldest < (3, 9)
    methods = METHODS_LATER + (METHODS_OF_3_9 if first else ())
    modules = MODULES_LATER + (MODULES_OF_3_9 if first else ())
    found = []
    if "from __future__ import annotations" not in text:
        found.append("annotations are evaluated")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [
                f"{node.module}.{a.name}" for a in node.names if (node.module, a.name) in LATER
            ]
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            found += [name for name in names if name in modules]
        if isinstance(node, ast.Attribute):
            base = getattr(node.value, "id", "")
            found += [f"{base}.{node.attr}"] if (base, node.attr) in LATER else []
            found += [node.attr] if node.attr in methods and base != "os" else []
        if isinstance(node, ast.With) and "with (\n" in (ast.get_source_segment(text, node) or ""):
            found.append("with in parentheses")
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            found += [
                f"{name}({word.arg}=)"
                for word in node.keywords
                if word.arg in KEYWORDS_LATER.get(name, ())
            ]
            if name == "isinstance" and isinstance(node.args[1], ast.BinOp):
                found.append("isinstance with |")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.stem)
def test_module_runs_on_the_oldest_python(path: Path) -> None:
    assert too_new(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from datetime import UTC",
        "import tomllib",
        "zip(a, b, strict=True)",
        "isinstance(a, int | str)",
        "datetime.UTC",
        "with (\n    a as b,\n    c as d,\n):\n    pass",
    ],
)
def test_what_is_newer_is_found(line: str) -> None:
    assert too_new(f"from __future__ import annotations\n{line}\n")


def test_match_does_not_compile() -> None:
    with pytest.raises(SyntaxError):
        too_new("match a:\n    case 1:\n        pass\n")


@pytest.mark.parametrize("name", EVERYWHERE)
def test_refusal_of_a_python_runs_on_it(name: str) -> None:
    assert too_new((PLUGINS / name).read_text(), OLDEST_OF_ANSIBLE) == []


@pytest.mark.parametrize("line", ["'a'.removesuffix('a')", "path.readlink()", "import zoneinfo"])
def test_what_is_newer_than_ansibles_oldest_is_found(line: str) -> None:
    text = f"from __future__ import annotations\n{line}\n"
    assert too_new(text, OLDEST_OF_ANSIBLE)
    assert too_new(text) == []


def test_ansibles_oldest() -> None:
    assert basic._PY_MIN == OLDEST_OF_ANSIBLE


def test_preflight_refuses_an_older_one() -> None:
    assert app_host.OLDEST_PYTHON == OLDEST
    text = (PLUGINS / "modules/app_host.py").read_text()
    assert f"Python {OLDEST[0]}.{OLDEST[1]} or later" in text
