"""Where the shipped audits and report templates lie: inside an installed wheel, or at the top of the repository."""

from pathlib import Path

from mi_audit.errors import SuiteError

_PACKAGE = Path(__file__).resolve().parent


def audits_dir() -> Path:
    """The folder of the shipped audits. Raises SuiteError when this installation has none."""
    return _shipped("audits")


def reports_dir() -> Path:
    """The folder of the report templates, control catalogues and schemas. Raises SuiteError when this installation has none."""
    return _shipped("reports")


def shipped_suites() -> dict[str, Path]:
    """The shipped suites by name (the file's stem), in the order of the names. Raises SuiteError when two files claim one name."""
    root = audits_dir()
    suites: dict[str, Path] = {}
    for path in sorted([*root.glob("suites/*.jsonl"), *root.glob("*/suites/*.jsonl")], key=lambda path: (path.stem, path)):
        if path.stem in suites:
            raise SuiteError(
                f"two shipped suites are called {path.stem!r}: {suites[path.stem].relative_to(root.parent)} and {path.relative_to(root.parent)}; rename one"
            )
        suites[path.stem] = path
    return suites


def shipped_saes() -> dict[str, Path]:
    """The folders of the shipped SAEs by name, in the order of the names. Raises SuiteError when this installation has none of the shipped audits."""
    return {path.name: path for path in sorted((audits_dir() / "saes").glob("*")) if path.is_dir()}


def shipped_audits() -> list[Path]:
    """The shipped audit files, `audit_*.py`, sorted."""
    return sorted(audits_dir().rglob("audit_*.py"))


def _shipped(folder: str) -> Path:
    installed = _PACKAGE / "_shipped" / folder
    if installed.is_dir():
        return installed
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / folder).is_dir():
        return checkout / folder
    raise SuiteError(f"this installation of mi-audit holds no shipped {folder}/; install the wheel again, or run from a checkout of the repository")
