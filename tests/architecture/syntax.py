# SPDX-License-Identifier: Apache-2.0
"""What a source file says of itself, read from its syntax tree without running it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "src"
LICENSE_LINE = "# SPDX-License-Identifier: Apache-2.0"

# Reading with these can run code that a file's author chose.
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"} | {
    "pandas.read_pickle",
    "pd.read_pickle",
}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE_KEYWORDS = {
    ("trust_remote_code", True),
    ("allow_pickle", True),
    ("weights_only", False),
    ("use_safetensors", False),
    ("shell", True),
}
# Spelled in two pieces: the word whole would find itself here.
UNSTABLE_PACKAGE = ".".join(("trl", "experimental"))


@dataclass(frozen=True, slots=True)
class Finding:
    """One place of one file that breaks a rule."""

    line: int
    what: str


def source_files(*folders: str) -> list[Path]:
    """The Python files under these folders of the repository, sorted."""
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name of a file under `src`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def declared_names(tree: ast.Module) -> list[str] | None:
    """The value of `__all__`; None where there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if "__all__" in names and node.value is not None:
                return list(ast.literal_eval(node.value))
    return None


def defined_names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """(functions and classes, assigned names) at the top of a module, without underscores."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    definitions = {node.name for node in tree.body if isinstance(node, kinds)}
    assigned = {
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    return (
        {name for name in definitions if not name.startswith("_")},
        {name for name in assigned if not name.startswith("_")},
    )


def gathered_names(path: Path) -> set[str]:
    """What the `__init__` of a package takes from its own modules, to be imported from it."""
    if path.name != "__init__.py":
        return set()
    package = module_name(path)
    return {
        alias.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}.")
        for alias in node.names
    }


def code_lines(text: str) -> int:
    """How many lines hold code: not blank, not a comment, not a docstring."""
    tree = ast.parse(text)
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(
        number not in prose and bool(line.strip()) and not line.lstrip().startswith("#")
        for number, line in lines
    )


def sort_key(name: str) -> tuple[int, str]:
    """The order of `__all__`, as ruff's RUF022 has it: CONSTANTS, Classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of each `from metarm... import name`, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "metarm":
            for alias in node.names:
                yield node.lineno, node.module or "", alias.name


def unsafe_places(tree: ast.Module) -> list[Finding]:
    """Where a file loads data in a way that could run code, or imports what does."""
    findings = [
        Finding(line, f"import of {module}")
        for line, module in _imported_modules(tree)
        if module.split(".")[0] in UNSAFE_MODULES or module in UNSAFE_CALLS
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in UNSAFE_BUILTINS | UNSAFE_CALLS:
            findings.append(Finding(node.lineno, f"call of {called}"))
        findings += [
            Finding(node.lineno, f"{keyword.arg}={keyword.value.value!r}")
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant)
            and (keyword.arg, keyword.value.value) in UNSAFE_KEYWORDS
        ]
    return findings


def unstable_places(tree: ast.Module) -> list[Finding]:
    """Where a file reaches for the part of TRL that may change in any release."""
    reached = [(line, module) for line, module in _imported_modules(tree)]
    reached += [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    reached += [
        (node.lineno, ast.unparse(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    ]
    return [
        Finding(line, text)
        for line, text in reached
        if text == UNSTABLE_PACKAGE or text.startswith(f"{UNSTABLE_PACKAGE}.")
    ]


def _imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
