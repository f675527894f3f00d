"""Collect audit files: find them, run them with rewritten asserts, and digest exactly the bytes that were run."""

import ast
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from _pytest.assertion.rewrite import rewrite_asserts

from mi_audit.errors import MiAuditError, PluginError
from mi_audit.plan.audit import is_marked
from mi_audit.plan.tracing import line_of
from mi_audit.plugins import active


def is_audit_file(path: Path) -> bool:
    """Whether the file is named `audit_*.py` and imports mi_audit, itself or by a module beside it; files that are merely named so are left alone."""
    if not (path.name.startswith("audit_") and path.suffix == ".py"):
        return False
    try:
        source = path.read_bytes()
    except OSError:
        return False
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return b"mi_audit" in source
    imported = {name for node in ast.walk(tree) for name in _imported(node)}
    return "mi_audit" in imported or (_holds_audits(tree) and any(_imports_mi_audit(path.with_name(f"{name}.py")) for name in imported))


def _imported(node: ast.AST) -> Iterable[str]:
    """The top-level modules that a statement imports; `from . import x` may mean a module x."""
    match node:
        case ast.Import(names=names):
            return [alias.name.split(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module)):
            return [module.split(".")[0]]
        case ast.ImportFrom(names=names):
            return [alias.name for alias in names]
    return []


def _holds_audits(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name.startswith("audit_") and _takes_model(node) for node in tree.body)


def _imports_mi_audit(path: Path) -> bool:
    try:
        return any("mi_audit" in _imported(node) for node in ast.walk(ast.parse(path.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return False


class AuditModule(pytest.Module):
    """An audit file. Its functions named `audit_*`, or decorated with `@mi.audit(…)`, are the audits; nothing else in it is collected."""

    source_digest: str

    def _getobj(self) -> ModuleType:
        _refuse_dropped_asserts(self.config)
        try:
            active()
        except PluginError as error:
            raise self.CollectError(str(error)) from error
        source = self.path.read_bytes()
        self.source_digest = hashlib.sha256(source).hexdigest()
        try:
            tree = ast.parse(source, filename=str(self.path))
        except SyntaxError as error:
            raise self.CollectError(f"{self.path.name}:{error.lineno}: {error.msg}") from error
        # Compiled here rather than imported, so that neither a module already imported nor a .pyc of the same second can stand in for the digested bytes.
        rewrite_asserts(tree, source, str(self.path), self.config)
        self._refuse_what_would_vanish(tree)
        module = ModuleType(f"{self.path.stem}_{hashlib.sha256(str(self.path).encode()).hexdigest()[:8]}")
        module.__file__ = str(self.path)
        sys.modules[module.__name__] = module
        try:
            exec(compile(tree, str(self.path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 — the audit file is the user's program
        except MiAuditError as error:
            raise self.CollectError(f"{self.path.name}:{line_of(error, self.path)}: {error}") from error
        return module

    def _refuse_what_would_vanish(self, tree: ast.Module) -> None:
        """An audit that is silently not run is worse than an error."""
        seen: dict[str, int] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in seen:
                raise self.CollectError(f"{self.path.name}:{node.lineno}: {node.name} is defined in line {seen[node.name]} too, which is lost; rename one")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                seen[node.name] = node.lineno
            if isinstance(node, ast.ClassDef) and any(_takes_model(method) for method in node.body):
                raise self.CollectError(f"{self.path.name}:{node.lineno}: audits are functions; move those of the class {node.name} to the module")
            if _takes_model(node) and isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                raise self.CollectError(
                    f"{self.path.name}:{node.lineno}: {node.name} takes `model` but is no audit; name it audit_{node.name.removeprefix('test_')}"
                )
        if any(isinstance(node, ast.Name) and node.id == "__test__" for node in ast.walk(tree)):
            raise self.CollectError(f"{self.path.name}: __test__ hides audits from pytest; remove it")

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """The audits. A file that has none is an error."""
        audits = list(super().collect())
        if not audits:
            raise self.CollectError(f"{self.path.name}: imports mi_audit but holds no audit; write def audit_…(model):")
        return audits

    def istestfunction(self, obj: object, name: str) -> bool:
        """Audits are functions by name or by decorator; fixtures are not."""
        return (name.startswith("audit_") or is_marked(obj)) and callable(obj) and not isinstance(obj, type) and not hasattr(obj, "_fixture_function_marker")

    def istestclass(self, obj: object, name: str) -> bool:
        """Audits are functions; classes are never collected."""
        return False


def _takes_model(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(argument.arg == "model" for argument in [*node.args.args, *node.args.kwonlyargs])


def _refuse_dropped_asserts(config: pytest.Config) -> None:
    if sys.flags.optimize:
        raise pytest.Collector.CollectError(
            "python -O removes every assert, so that an audit would claim nothing; run python without -O and unset PYTHONOPTIMIZE"
        )
    if config.getoption("assertmode") == "plain":
        raise pytest.Collector.CollectError("--assert=plain leaves a failing claim without its explanation in the evidence; run without it")
