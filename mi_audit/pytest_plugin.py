"""The pytest plugin: options, the `model` fixture, collection of audit files, verdicts as outcomes, exit codes, the summary.

pytest loads it in every run of every project, so it imports nothing heavy, and does nothing where no audit file is collected.
"""

import atexit
import gc
from collections.abc import Generator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from datetime import UTC, datetime
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from mi_audit.config import OPTIONS, Settings, third_party
from mi_audit.distribution import MAX_DEATHS, Controller, share_of
from mi_audit.errors import EvidenceError, InconclusiveError, MiAuditError, PluginError
from mi_audit.evidence.outcome import FAILED, INCONCLUSIVE, NOT_RUN, PARTIAL, PASSED
from mi_audit.items import holds_audits, is_audit, partial_reasons, plan_item, properties, uses_our_model

if TYPE_CHECKING:
    from mi_audit.auditor import Auditor
    from mi_audit.evidence.parts import Parts
    from mi_audit.finishing import Finished, Line
    from mi_audit.judging.results import AuditResult
    from mi_audit.plan.plan import PlannedAudit
    from mi_audit.recording import Recorder
    from mi_audit.session import Session

_VERDICT: Final = "mi_audit_verdict"
_UNWRITTEN: Final = "mi_audit_unwritten"

_run: "pytest.StashKey[AuditRun]" = pytest.StashKey()
_place: "pytest.StashKey[int]" = pytest.StashKey()
_planned: "pytest.StashKey[PlannedAudit]" = pytest.StashKey()
_result: "pytest.StashKey[AuditResult]" = pytest.StashKey()
_unrun: "pytest.StashKey[AuditResult]" = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--audit-…` on the command line, `audit_…` in the ini file."""
    group = parser.getgroup("mi-audit", "audits of a language model's internals (mi-audit)")
    for option in OPTIONS:
        default = f" (default {option.default})" if option.default else ""
        group.addoption(f"--audit-{option.name}", metavar=option.metavar, default=None, help=option.help + default)
        parser.addini(f"audit_{option.name}", f"{option.help} (as --audit-{option.name})", type="string", default=option.default)
    group.addoption("--audit-no-cache", action="store_true", help="load and check the model and pass every prompt through it, also where this is on disk")
    parser.addini("audit_no_cache", "load the model and pass every prompt through it (as --audit-no-cache)", type="bool", default=False)
    group.addoption("--audit-no-plugins", action="store_true", help="leave out the plugins of other distributions (mi-audit plugins lists them)")
    parser.addini("audit_no_plugins", "leave out the plugins of other distributions (as --audit-no-plugins)", type="bool", default=False)
    group.addoption("--audit-plan", action="store_true", help="print the plan of the audits and stop; no model is loaded")


def pytest_configure(config: pytest.Config) -> None:
    """One `AuditRun` holds the state of this pytest run."""
    stack = ExitStack()
    stack.enter_context(third_party(allowed=not (config.option.audit_no_plugins or config.getini("audit_no_plugins"))))
    stack.callback(gc.unfreeze)
    config.add_cleanup(stack.close)
    if config.option.audit_plan and hasattr(config.option, "dist"):
        config.option.dist = "no"  # planning takes no workers
    config.stash[_run] = run = AuditRun(config)
    config.pluginmanager.register(run, "mi_audit_run")
    if run.share is not None and not run.share.worker:
        config.pluginmanager.register(Controller(config, run.share), "mi_audit_controller")


@pytest.fixture(scope="session")
def model(pytestconfig: pytest.Config) -> "Auditor":
    """The model under audit: `model.read(detector, suite)` gives readings to claim something of."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture is not None else nullcontext():  # progress is for the person who waits, not for the log
        auditor = pytestconfig.stash[_run].session.open_model()
    gc.freeze()  # what was imported and loaded stays to the end: collecting garbage need not look through it each time
    atexit.unregister(_leave)
    atexit.register(_leave)
    return auditor


def _leave() -> None:
    """As the process ends, collect what is garbage and let Python not look through all that is left time and again; unless somebody's file is still open, of
    which the end would be written only then."""
    gc.collect()
    # some objects of torch warn when asked for their class, so their type is asked
    if not any(issubclass(type(each), FileIO) and not each.closed and each.writable() and each.fileno() > 2 for each in gc.get_objects()):
        gc.freeze()


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
    """The audits of one pytest run: planned when collection ends, judged one by one, assembled as evidence at the end.

    Under pytest-xdist each worker plans and judges, and the controller assembles; otherwise one process does both.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.share = share_of(config, lambda: self.settings)
        self._started = self.share.started if self.share is not None else datetime.now(UTC)
        self._session: Session | None = None
        self._recorder: Recorder | None = None
        self._broken: list[str] = []
        self._unwritten: str | None = None
        self._judged = False
        self._collected = 0
        self._deselected = 0
        self._closing: tuple[Line, ...] = ()

    @cached_property
    def settings(self) -> Settings:
        """What options and ini keys say."""
        values = {option.name: self._config.getoption(f"audit_{option.name}") for option in OPTIONS}
        given = {name: value if value is not None else self._config.getini(f"audit_{name}") for name, value in values.items()}
        _refuse_unknown_keys(self._config)
        try:
            return Settings.of(given, no_cache=self._config.option.audit_no_cache or self._config.getini("audit_no_cache"))
        except MiAuditError as error:
            raise pytest.UsageError(str(error)) from error

    @property
    def session(self) -> "Session":
        """What this process does of the run, apart from pytest; made when first needed."""
        if self._session is None:
            from mi_audit.session import Session

            self._session = Session(self.settings)
        return self._session

    @property
    def results(self) -> Path:
        """Where the evidence goes."""
        return self.share.results if self.share is not None else self.settings.directory(self._started)

    @cached_property
    def parts(self) -> "Parts":
        """Where the parts of the run meet."""
        if self.share is not None:
            return self.share.folder
        from mi_audit.evidence.parts import GatheredParts

        return GatheredParts()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note audit files that could not be collected: nothing can be said of them."""
        if not report.passed and (Path(report.nodeid).name.startswith("audit_") or holds_audits(self._config.rootpath / report.nodeid)):
            self._broken.append(report.nodeid)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Count audits, so that one that is dropped later is missed."""
        self._collected += is_audit(item)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note that an audit ran, perhaps in a worker, and whether its process could not leave its part."""
        told = properties(report)
        self._judged |= _VERDICT in told
        self._unwritten = self._unwritten or told.get(_UNWRITTEN)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Count audits left out by -k, -m and the like."""
        self._deselected += sum(1 for item in items if is_audit(item))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Audits of instruments run before audits of the model, whose verdicts rest on them; the order is otherwise kept."""
        places = [place for place, item in enumerate(items) if is_audit(item)]
        if not places:
            return
        from mi_audit.plan.audit import mark_of

        audits = sorted((items[place] for place in places), key=lambda item: mark_of(getattr(item, "function", None)).about != "instrument")
        for place, item in zip(places, audits, strict=True):
            items[place] = item

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Plan every audit before anything is measured."""
        audits = [item for item in session.items if isinstance(item, pytest.Function) and is_audit(item)]
        dropped = self._collected - self._deselected - len(audits)
        if (not audits and dropped <= 0) or (self._config.option.collectonly and not self._config.option.audit_plan):
            return
        from mi_audit.evidence.store import check_target
        from mi_audit.recording import Recorder, outline_of

        plan = self.session.fix_plan([plan_item(item) for item in audits])
        for place, (item, planned) in enumerate(zip(audits, plan.audits, strict=True)):
            item.stash[_place], item.stash[_planned] = place, planned
        reasons = [*self.session.partial, *partial_reasons(self._config, self._deselected)]
        if dropped > 0:
            reasons.append(f"{dropped} collected audits were dropped before the run")
        self._recorder = Recorder(self.session, plan)
        try:
            check_target(self.results)
            self.parts.fix_plan(outline_of(self.session, plan, [item.nodeid for item in audits], reasons, tuple(self._broken)))
        except (EvidenceError, PluginError) as error:
            self._unwritten = str(error)

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
        if planned is not None and self._unwritten:
            raise EvidenceError(self._unwritten)
        if planned is not None and planned.faults:
            raise AuditError("\n".join(planned.faults))
        if planned is not None and self.parts.begin(item.stash[_place]) >= MAX_DEATHS:
            raise AuditError(f"{MAX_DEATHS} workers died while they ran this audit")
        if planned is None and isinstance(item, pytest.Function) and uses_our_model(item):
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
        try:
            result, raised = self.session.judge.audit(planned, lambda: pyfuncitem.obj(**arguments))
        except KeyboardInterrupt:
            self._break_off(pyfuncitem, planned)
            raise
        pyfuncitem.stash[_result] = result
        doubt = self.session.judge.doubt(planned) if result.verdict is Verdict.PASS else None
        pyfuncitem.user_properties.extend([(_VERDICT, str(Verdict.INCONCLUSIVE if doubt else result.verdict)), ("mi_audit_id", planned.id)])
        if result.verdict is Verdict.FAIL:
            raise raised if isinstance(raised, AssertionError) else AuditFailedError(explain_result(result, self.session))
        if doubt or result.verdict is Verdict.INCONCLUSIVE:
            raise AuditInconclusiveError(doubt or explain_result(result, self.session))
        return True

    def _break_off(self, item: pytest.Item, planned: "PlannedAudit") -> None:
        """Leave what was measured of an audit that the user broke off; no report of it will come."""
        if self.share is None and self._recorder is not None and not self._unwritten:
            self._judged = True
            with suppress(EvidenceError):
                self.parts.add(self._recorder.part(item.stash[_place], self.session.judge.fail_to_run(planned, "it was interrupted")))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """A tool error surfaces as pytest's error, not as a failure of the model; fixtures are torn down first."""
        yield
        result = item.stash.get(_result, None)
        if result is not None and result.error is not None:
            raise AuditError(result.error)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """INCONCLUSIVE is an outcome of its own; an audit that could not start is an error; one that is over leaves its part."""
        report = yield
        planned = item.stash.get(_planned, None)
        if planned is None:
            return report
        if call.excinfo is not None:
            self._sort_out(item, planned, call.excinfo, report)
        result = item.stash.get(_unrun, None) or item.stash.get(_result, None)
        if report.when == "teardown" and result is not None and self._recorder is not None and not self._unwritten:
            try:
                self.parts.add(self._recorder.part(item.stash[_place], result))
            except EvidenceError as error:
                self._unwritten = str(error)
        if self._unwritten:
            report.user_properties.append((_UNWRITTEN, self._unwritten))
        return report

    def _sort_out(self, item: pytest.Item, planned: "PlannedAudit", raised: pytest.ExceptionInfo[BaseException], report: pytest.TestReport) -> None:
        """Say in the report what kind of trouble it was, and keep as a result what kept the audit from running."""
        if isinstance(raised.value, AuditInconclusiveError):
            report.outcome = "skipped"
            report.longrepr = (planned.file.name, item.location[1] or 0, f"INCONCLUSIVE: {raised.value}")
        elif isinstance(raised.value, AuditFailedError | MiAuditError):
            report.longrepr = f"{raised.typename}: {raised.value}"
        if report.failed and (report.when == "setup" or (report.when == "teardown" and not isinstance(raised.value, AuditError))):
            item.stash[_unrun] = self.session.judge.fail_to_run(planned, str(raised.value))
            item.user_properties.append((_VERDICT, "ERROR"))

    def pytest_assertrepr_compare(self, op: str, left: object, right: object) -> list[str] | None:
        """A failing claim explains itself."""
        if self._recorder is None:
            return None
        from mi_audit.plan.measurements import ClaimSpec, EstimateSpec, is_op
        from mi_audit.plan.steering import DoseSpec
        from mi_audit.stats.estimate import Estimate, NullLevel

        if not isinstance(left, Estimate) or not is_op(op) or not isinstance(right, int | float | NullLevel):
            return None
        estimate, threshold = (right.beaten_by(left), 0.0) if isinstance(right, NullLevel) else (left, float(right))
        if not isinstance(estimate.spec, EstimateSpec | DoseSpec):
            return None
        from mi_audit.explaining import explain
        from mi_audit.stats.claim import decide

        return explain(decide(estimate, op, threshold), self.session.worst_prompts(ClaimSpec(estimate.spec, op, threshold)))

    def pytest_report_teststatus(self, report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, object] | None:
        """INCONCLUSIVE and a death of a worker have their own letters, words and colours; an ERROR shows once, at teardown."""
        if not isinstance(report, pytest.TestReport) or report.when != "call":
            return None
        match properties(report).get(_VERDICT):
            case "INCONCLUSIVE" if report.skipped:
                return "inconclusive", "I", ("INCONCLUSIVE", {"yellow": True})
            case "RERUN":
                return "rerun", "R", ("RERUN", {"yellow": True})
            case "ERROR":
                return "", "", ""
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the evidence and set the exit code, in the process that assembles."""
        if self.share is not None and self.share.worker:
            return
        if self._config.option.audit_plan:
            if self._has_plan():
                session.exitstatus = NOT_RUN if self._broken or any(audit.faults for audit in self.session.judge.plan.audits) else pytest.ExitCode.OK
            elif self._broken:
                session.exitstatus = NOT_RUN
            return
        finished = self._finished(session, exitstatus)
        if finished is not None:
            self._closing = finished.lines
            ordinary_failed = session.testsfailed and finished.exit_code in (PASSED, INCONCLUSIVE, PARTIAL)
            if exitstatus != pytest.ExitCode.INTERRUPTED or self.share is not None:
                session.exitstatus = FAILED if ordinary_failed else finished.exit_code
        elif self._broken or self._has_plan():
            from mi_audit.finishing import earlier_evidence

            self._closing = tuple(earlier_evidence(self.results))
            session.exitstatus = NOT_RUN if self._broken else exitstatus

    def _finished(self, session: pytest.Session, exitstatus: int) -> "Finished | None":
        """The end of the run as evidence has it; None where nothing was planned or the run was broken off."""
        # The controller of pytest-xdist is interrupted where a single process stops because enough has failed.
        stopped = self.share is not None and exitstatus == pytest.ExitCode.INTERRUPTED and session.shouldfail
        interrupted = self.share is None and exitstatus == pytest.ExitCode.INTERRUPTED and self._judged
        if not self._has_plan() or not (
            stopped or interrupted or exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        ):
            return None
        from mi_audit.finishing import finish

        broken = tuple(dict.fromkeys(self._broken))
        return finish(self.parts, self.settings, self.results, self._started, broken=broken, unwritten=self._unwritten, interrupted=interrupted)

    def _has_plan(self) -> bool:
        """Whether audits were planned, here or in a worker."""
        if self.share is not None:
            return self._judged or self._unwritten is not None or self.share.scratch.parts.is_dir()
        return self._recorder is not None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Verdicts, and where the evidence is."""
        if not self._closing:
            return
        terminalreporter.section("mi-audit")
        for colour, line in self._closing:
            terminalreporter.write_line(line, **({colour: True} if colour else {}))


def _refuse_unknown_keys(config: pytest.Config) -> None:
    """A misspelt key would leave a setting of the gate at its default; pytest only warns of it."""
    for key in sorted(config._get_unknown_ini_keys()):
        if key.startswith("audit_"):
            known = sorted(["audit_no_cache", "audit_no_plugins", *(f"audit_{option.name}" for option in OPTIONS)])
            raise pytest.UsageError(f"{config.inipath}: there is no setting {key}; known are {', '.join(known)}")


class AuditError(MiAuditError):
    """An audit could not be planned, run or decided; it says nothing about the model."""


class AuditFailedError(AssertionError):
    """A claim failed, though the audit's body let it pass."""


class AuditInconclusiveError(InconclusiveError):
    """An audit in which no claim failed and not every claim passed."""
