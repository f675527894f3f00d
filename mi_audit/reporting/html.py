"""The HTML report: one file, no script, no request, a pure function of the evidence."""

import hashlib
from base64 import b64encode
from pathlib import Path
from typing import Any, Final

import jinja2

from mi_audit.errors import EvidenceError
from mi_audit.evidence import store
from mi_audit.reporting import text
from mi_audit.reporting.readings import Scores
from mi_audit.reporting.view import DETAILS, page
from mi_audit.shipped import reports_dir

MAX_BYTES: Final = 2 * 10**6
_STYLE: Final = "style.css"


def render(bundle_dir: Path) -> str:
    """The report on the bundle in `bundle_dir`. The same evidence gives the same text, wherever it lies.

    What does not fit into 2 MB is left to the Parquet: charts and cards of what passed first, and every omission is counted in the report.

    Raises:
        EvidenceError: the bundle can't be read or trusted, or a template is missing or malformed.
    """
    bundle, reports = store.read(bundle_dir), reports_dir()
    templates = environment(reports)
    scores = Scores(bundle)
    try:
        policy = policy_of(templates.get_template(_STYLE).render())
        for detail in DETAILS:
            html = templates.get_template("report.html.j2").render(page=page(bundle, scores, reports, detail), policy=policy)
            if len(html.encode("utf-8")) <= MAX_BYTES:
                return html
    except jinja2.TemplateSyntaxError as error:
        raise EvidenceError(f"{error.filename}:{error.lineno}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise EvidenceError(f"{reports / 'html'}: {error}; a template is missing, or names what the evidence does not have") from error
    raise EvidenceError(f"{bundle_dir}: the report would take more than {MAX_BYTES} bytes; query the Parquet instead")


def environment(reports: Path) -> jinja2.Environment:
    """The templates of the folder of reports, with the filters that they use; everything that is printed is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(reports / "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (
        text.number,
        text.lower,
        text.upper,
        text.count,
        text.plural,
        text.magnitude,
        text.size,
        text.quantity_name,
        text.operator,
        text.shortened,
    ):
        environment.filters[f"as_{function.__name__}"] = function
    return environment


def _finalize(value: Any) -> Any:
    """Make hidden characters visible in every string that is printed; what a macro made (markup) has been through it."""
    return text.visible(value) if type(value) is str else value


def policy_of(style: str) -> str:
    """Content policy: nothing may load or run; the one style sheet is allowed by its hash."""
    digest = b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
