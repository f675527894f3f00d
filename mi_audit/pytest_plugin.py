"""The pytest plugin: options, the `model` fixture, collection of audit files, verdicts as outcomes, exit codes, the summary.

pytest loads it in every run of every project, so it imports nothing heavy, and does nothing where no audit file is collected.
"""

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mi_audit.config import OPTIONS, Settings
from mi_audit.errors import EvidenceError, InconclusiveError, MiAuditError

if TYPE_CHECKING:
    from mi_audit.auditor import Auditor
    from mi_audit.judging.results import AuditResult
    from mi_audit.plan.plan import PlannedAudit
    from mi_audit.session import Session

EVIDENCE_FAILED, NOT_RUN = 11, 12

_run: "pytest.StashKey[AuditRun]" = pytest.StashKey()
_planned: "pytest.StashKey[PlannedAudit]" = pytest.StashKey()
_result: "pytest.StashKey[AuditResult]" = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--audit-…` on the command line, `audit_…` in the ini file."""
    group = parser.getgroup("mi-audit", "audits of a language model's internals (mi-audit)")
    for option in OPTIONS:
        group.addoption(f"--audit-{option.name}", metavar=option.metavar, default=None, help=option.help)
        parser.addini(f"audit_{option.name}", f"{option.help} (as --audit-{option.name})", type="string", default=option.default)
    group.addoption("--audit-no-cache", action="store_true", help="pass every prompt through the model, also those whose activations are on disk")
    group.addoption("--audit-plan", action="store_true", help="print the plan of the audits and stop; no model is loaded")


def pytest_configure(config: pytest.Config) -> None:
    """One `AuditRun` holds the state of this pytest run."""
    config.stash[_run] = AuditRun(config)
    config.pluginmanager.register(config.stash[_run], "mi_audit_run")


@pytest.fixture(scope="session")
def model(pytestconfig: pytest.Config) -> "Auditor":
    """The model under audit: `model.read(detector, suite)` gives readings to claim something of."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture is not None else nullcontext():  # progress is for the person who waits, not for the log
        return pytestconfig.stash[_run].session.open_model()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Audit files have a collector of their own, also where the project's `python_files` would collect them."""
    if not module_path.name.startswith("audit_"):
        return None
    from mi_audit.collection import AuditModule, is_audit_file

    return AuditModule.from_parent(parent, path=module_path) if is_audit_file(module_path) else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect audit files that pytest itself would pass over."""
    if not file_path.name.startswith("audit_") or file_path.suffix != ".py":
        return None
    from _pytest.python import path_matches_patterns

    if parent.session.isinitpath(file_path) or path_matches_patterns(file_path, parent.config.getini("python_files")):
        return None
    return pytest_pycollect_makemodule(file_path, parent)


class AuditRun:
    """The audits of one pytest run: planned when collection ends, judged one by one, written as evidence at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._session: Session | None = None
        self._broken: list[str] = []
        self._collected = 0
        self._deselected = 0
        self._closing: list[tuple[str, str]] = []

    @property
    def session(self) -> "Session":
        """The run's state that knows nothing of pytest, made when first needed."""
        if self._session is None:
            from mi_audit.session import Session

            values = {option.name: self._config.getoption(f"audit_{option.name}") for option in OPTIONS}
            given = {name: value if value is not None else self._config.getini(f"audit_{name}") for name, value in values.items()}
            try:
                self._session = Session(Settings.of(given, no_cache=self._config.option.audit_no_cache))
            except MiAuditError as error:
                raise pytest.UsageError(str(error)) from error
        return self._session

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note audit files that could not be collected: nothing can be said of them."""
        if not report.passed and Path(report.nodeid).name.startswith("audit_"):
            self._broken.append(report.nodeid)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Count audits, so that one that is dropped later is missed."""
        self._collected += _is_audit(item)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Under pytest-xdist audits are refused in the workers; note it here, where the exit code is set."""
        if self._session is None and report.failed and Path(report.nodeid.split("::")[0]).name.startswith("audit_"):
            self._broken.append(report.nodeid)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Count audits left out by -k, -m and the like."""
        self._deselected += sum(1 for item in items if _is_audit(item))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Audits of instruments run before audits of the model, whose verdicts rest on them; the order is otherwise kept."""
        places = [place for place, item in enumerate(items) if _is_audit(item)]
        if not places:
            return
        from mi_audit.plan.audit import mark_of

        audits = sorted((items[place] for place in places), key=lambda item: mark_of(getattr(item, "function", None)).about != "instrument")
        for place, item in zip(places, audits, strict=True):
            items[place] = item

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Plan every audit before anything is measured."""
        audits = [item for item in session.items if isinstance(item, pytest.Function) and _is_audit(item)]
        if not audits or (self._config.option.collectonly and not self._config.option.audit_plan):
            return
        for item in audits:
            item.stash[_planned] = _plan(item)
            if hasattr(self._config, "workerinput"):
                item.stash[_planned] = replace(item.stash[_planned], faults=("audits don't run under pytest-xdist yet: run them without -n",))
        plan = self.session.fix_plan([item.stash[_planned] for item in audits])
        for item, planned in zip(audits, plan.audits, strict=True):
            item.stash[_planned] = planned
        self.session.partial.extend(_partial_reasons(self._config, self._deselected))
        dropped = self._collected - self._deselected - len(audits)
        if dropped > 0:
            self.session.partial.append(f"{dropped} collected audits were dropped before the run")
        self.session.partial.extend(f"{path} could not be collected" for path in self._broken)

    def pytest_report_collectionfinish(self) -> list[str]:
        """Print the plan at the start of every run."""
        if self._session is None or self._session.plan is None:
            return []
        from mi_audit.plan.printing import lines_of

        return list(lines_of(self._session.plan))

    def pytest_runtestloop(self) -> bool | None:
        """With --audit-plan nothing runs."""
        return True if self._config.option.audit_plan else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """An audit that can't be planned is an error before the model loads."""
        planned = item.stash.get(_planned, None)
        if planned is not None and planned.faults:
            raise AuditError("\n".join(planned.faults))
        if planned is None and isinstance(item, pytest.Function) and _uses_our_model(item):
            raise AuditError("`model` serves audits only, whose claims are planned and judged: move this to a file audit_*.py that imports mi_audit")

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Judge an audit: run its body, decide all its claims, turn the verdict into an outcome."""
        __tracebackhide__ = True
        planned = pyfuncitem.stash.get(_planned, None)
        if planned is None:
            return None
        from mi_audit.explaining import explain_result
        from mi_audit.stats.verdict import Verdict

        arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
        result, raised = self.session.judge.audit(planned, lambda: pyfuncitem.obj(**arguments))
        pyfuncitem.stash[_result] = result
        pyfuncitem.user_properties.extend([("mi_audit_verdict", str(result.verdict)), ("mi_audit_id", planned.id)])
        if result.verdict is Verdict.FAIL:
            raise raised if isinstance(raised, AssertionError) else AuditFailedError(explain_result(result, self.session))
        if result.verdict is Verdict.INCONCLUSIVE:
            raise AuditInconclusiveError(explain_result(result, self.session))
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """A tool error surfaces as pytest's error, not as a failure of the model; fixtures are torn down first."""
        yield
        result = item.stash.get(_result, None)
        if result is not None and result.error is not None:
            raise AuditError(result.error)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """INCONCLUSIVE is an outcome of its own; an audit that could not start is recorded as such."""
        report = yield
        planned = item.stash.get(_planned, None)
        if planned is None or call.excinfo is None:
            return report
        if isinstance(call.excinfo.value, AuditInconclusiveError):
            report.outcome = "skipped"
            report.longrepr = (planned.file.name, item.location[1] or 0, f"INCONCLUSIVE: {call.excinfo.value}")
        elif isinstance(call.excinfo.value, AuditFailedError | MiAuditError):
            report.longrepr = f"{call.excinfo.typename}: {call.excinfo.value}"
        if report.failed and (report.when == "setup" or (report.when == "teardown" and not isinstance(call.excinfo.value, AuditError))):
            self.session.judge.fail_to_run(planned, str(call.excinfo.value))
            item.user_properties.append(("mi_audit_verdict", "ERROR"))
        return report

    def pytest_assertrepr_compare(self, op: str, left: object, right: object) -> list[str] | None:
        """A failing claim explains itself."""
        from mi_audit.plan.measurements import ClaimSpec, EstimateSpec, is_op
        from mi_audit.stats.estimate import Estimate

        if not isinstance(left, Estimate) or not isinstance(left.spec, EstimateSpec) or not is_op(op) or not isinstance(right, int | float):
            return None
        from mi_audit.explaining import explain
        from mi_audit.stats.claim import decide

        return explain(decide(left, op, right), self.session.worst_prompts(ClaimSpec(left.spec, op, float(right))))

    def pytest_report_teststatus(self, report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, object] | None:
        """INCONCLUSIVE has its own letter, word and colour; an ERROR shows once, at teardown."""
        if not isinstance(report, pytest.TestReport) or report.when != "call":
            return None
        match dict(report.user_properties).get("mi_audit_verdict"):
            case "INCONCLUSIVE" if report.skipped:
                return "inconclusive", "I", ("INCONCLUSIVE", {"yellow": True})
            case "ERROR":
                return "", "", ""
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the evidence and set the exit code."""
        if hasattr(self._config, "workerinput"):
            return
        run, claim_failed = self._session, False
        completed = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        if run is not None and run.plan is not None and not self._config.option.audit_plan and completed:
            from mi_audit.explaining import closing_lines
            from mi_audit.recording import record
            from mi_audit.session import exit_code

            results = run.results()
            claim_failed = any(result.verdict == "FAIL" for result in results)
            others_failed = session.testsfailed > sum(1 for result in results if result.verdict in ("FAIL", "ERROR")) + len(self._broken)
            code = exit_code(results, run.partial)
            if self._broken and not claim_failed:
                code = NOT_RUN
            self._closing = closing_lines(results, run)
            try:
                written = record(run, results, code)
            except EvidenceError as error:
                code = EVIDENCE_FAILED
                self._closing.append(("red", f"EVIDENCE NOT WRITTEN: {error}"))
            else:
                self._closing.extend(("", line) for line in written)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED if others_failed and code in (0, 10, 13) else code
        elif run is not None and run.plan is not None and self._config.option.audit_plan:
            session.exitstatus = NOT_RUN if any(audit.faults for audit in run.plan.audits) else pytest.ExitCode.OK
        if (self._broken or self._was_emptied()) and not claim_failed and session.exitstatus != EVIDENCE_FAILED:
            session.exitstatus = NOT_RUN

    def _was_emptied(self) -> bool:
        """Whether audits were collected and none of them planned, though nobody deselected them."""
        planned = self._session is not None and self._session.plan is not None
        return self._collected > self._deselected and not planned and not self._config.option.collectonly

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Verdicts, and where the evidence is."""
        if not self._closing:
            return
        terminalreporter.section("mi-audit")
        for colour, line in self._closing:
            terminalreporter.write_line(line, **({colour: True} if colour else {}))


class AuditError(MiAuditError):
    """An audit could not be planned, run or decided; it says nothing about the model."""


class AuditFailedError(AssertionError):
    """A claim failed, though the audit's body let it pass."""


class AuditInconclusiveError(InconclusiveError):
    """An audit in which no claim failed and not every claim passed."""


def _is_audit(item: pytest.Item) -> bool:
    if not item.path.name.startswith("audit_"):
        return False
    from mi_audit.collection import AuditModule

    return isinstance(item.parent, AuditModule)


def _plan(item: pytest.Function) -> "PlannedAudit":
    from mi_audit.auditor import Auditor
    from mi_audit.collection import AuditModule
    from mi_audit.plan.planner import plan_audit

    module = item.getparent(AuditModule)
    assert module is not None
    parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    asked = [*item._fixtureinfo.argnames, *(name for mark in item.iter_markers("usefixtures") for name in mark.args)]
    foreign = [name for name in asked if name != "model" and name not in parameters]
    if "model" in item._fixtureinfo.argnames and not _uses_our_model(item):
        foreign.append("model (overridden by the project)")
    return plan_audit(
        item.function,
        file=item.path,
        root=item.config.rootpath,
        source_digest=module.source_digest,
        item_name=item.name,
        parameters={name: value for name, value in parameters.items() if name in item._fixtureinfo.argnames},
        takes_model="model" in item._fixtureinfo.argnames,
        foreign_fixtures=tuple(foreign),
        stand_in=Auditor,
    )


def _uses_our_model(item: pytest.Function) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.get("model", ())
    return bool(definitions) and getattr(definitions[-1].func, "__module__", None) == __name__


def _partial_reasons(config: pytest.Config, deselected: int) -> list[str]:
    """Options that leave audits out, whether or not they did so this time; such a run can't gate."""
    option = config.option
    named = {
        "-k": option.keyword,
        "-m": option.markexpr,
        "-x or --maxfail": option.maxfail,
        "--lf": getattr(option, "lf", False),
        "--sw": getattr(option, "stepwise", False),
        "--deselect": option.deselect,
        "--ignore": option.ignore or option.ignore_glob,
        "single audits were named": any("::" in argument for argument in config.args),
    }
    reasons = [name for name, value in named.items() if value]
    return reasons or ([f"{deselected} audits were deselected"] if deselected else [])
