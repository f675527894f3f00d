"""The one contract for plugins: a hook for each kind of thing that can be added, and the types of what is added.

A plugin is a module that an installed distribution names in its entry-point group `mi_audit`. Each hook that it implements returns a mapping from names to
what they stand for. The hooks are called once, when the first audit is collected or a command needs them, so the functions in the mappings import what is
heavy inside themselves. What is built in registers through the same hooks. `plugins/README.md` has an example of each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import pluggy

if TYPE_CHECKING:
    from mi_audit.causal.effect import Effect, Tokenize
    from mi_audit.detectors.linear import Fitter
    from mi_audit.model.progress import Steps
    from mi_audit.plan.effects import EffectSpec
    from mi_audit.stats.checks import Bools, Floats
    from mi_audit.suites.problems import Report
    from mi_audit.suites.rows import Rows

__all__ = ["GROUP", "EffectMaker", "ModelFiles", "ModelSource", "ProbeMethod", "Renderer", "SuiteFormat", "hookimpl", "hookspec"]

GROUP: Final = "mi_audit"
"""The entry-point group, and the project's name for pluggy."""

REPORT_FILE: Final = r"report[A-Za-z0-9_-]{0,40}(\.[a-z0-9]{1,10}){1,3}"
"""What a renderer may call its file: nothing that evidence is, or may come to be, called."""

hookspec: Final = pluggy.HookspecMarker(GROUP)
hookimpl: Final = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a source put a model. None of it is trusted: the files are inspected, digested and self-checked like those of any folder.

    `path` is a folder with config.json, safetensors and a tokenizer, or a .gguf file, which is converted once; links in the folder may not leave
    `contained_in`, by default the folder itself. `revision` and `licence` are what the source says of them. `source_sha256` belongs to a folder that mi-audit
    itself converted.
    """

    path: Path
    revision: str | None = None
    licence: str | None = None
    contained_in: Path | None = None
    source_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Renderer:
    """From a folder of evidence to one file in it: `file` is its name, `report…` with a suffix; `render(folder)` gives its bytes, from the evidence alone."""

    file: str
    render: Callable[[Path], bytes]


ModelSource: TypeAlias = "Callable[[str, Steps], ModelFiles]"
"""(what follows `name:` in the reference, progress to report) → the model's files. Raises ModelError when there is no such model."""

SuiteFormat: TypeAlias = "Callable[[str, bytes, frozenset[str], Report], Rows]"
"""(how the file is shown, its bytes, columns to leave out, where errors go) → its rows, each numbered by its line or row, so that messages can name it."""

ProbeMethod: TypeAlias = "Callable[[Floats, Bools, tuple[str, ...]], Fitter]"
"""(activations [n, d] in float64, labels [n], groups [n]) → a `Fitter`, which is fitted to the labels and, for the null, to many shuffled ones.

The same inputs must give the same fitter. Raises DetectorError when there is nothing to fit."""


EffectMaker: TypeAlias = "Callable[[EffectSpec, Tokenize], Effect]"
"""(the effect as it was declared, how its model's tokenizer splits a text) → an `OfLogits` or an `OfText` of `mi_audit.causal.effect`.

Raises DetectorError when it can't be measured on this model."""


@hookspec
def mi_audit_model_sources() -> Mapping[str, ModelSource]:  # type: ignore[empty-body]
    """Where models come from: `--audit-model NAME:REST` asks the source NAME for REST. A name is lower-case letters, digits and `-`, at least two of them."""


@hookspec
def mi_audit_suite_formats() -> Mapping[str, SuiteFormat]:  # type: ignore[empty-body]
    """Readers of suite files by suffix: lower-case, with the dot (`.tsv`)."""


@hookspec
def mi_audit_probe_methods() -> Mapping[str, ProbeMethod]:  # type: ignore[empty-body]
    """Methods of fitting a linear probe: `mi.probe(…, method=NAME)`. A name is lower-case letters, digits and `_`."""


@hookspec
def mi_audit_effects() -> Mapping[str, EffectMaker]:  # type: ignore[empty-body]
    """What a change inside the model is measured by: `mi.effects.effect(NAME, …)`. A name is lower-case letters, digits and `_`."""


@hookspec
def mi_audit_renderers() -> Mapping[str, Renderer]:  # type: ignore[empty-body]
    """Renderers of evidence: `--audit-format NAME`. They run without torch. A name is lower-case letters, digits and `-`; `none` is taken."""
