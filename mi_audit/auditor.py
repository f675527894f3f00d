"""What the `model` fixture and `mi.load_model` hand out: a face over the rooms that measure, with no logic of its own."""

from typing import TYPE_CHECKING

from mi_audit.errors import PlanError
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.leaks import leak_in, leak_inside, repeat_in, turned_round
from mi_audit.plan.measurements import ReadSpec
from mi_audit.plan.reading import Attribute, Evaluate, Reading
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from mi_audit.model.identity import ModelIdentity


class Auditor:
    """The model under audit. `read` a detector on a suite, then claim something of the reading.

    The same object serves a run and the planning of it; while planning there is no model and estimates have no values.
    """

    def __init__(self, evaluate: Evaluate, attribute: Attribute, identity: "ModelIdentity | None" = None) -> None:
        self._evaluate, self._attribute = evaluate, attribute
        self._identity = identity

    @property
    def identity(self) -> "ModelIdentity":
        """What was loaded: digests of every file, architecture, versions. Not known while an audit is planned.

        Raises:
            PlanError: asked for in an audit's body, which runs before any model loads.
        """
        if self._identity is None:
            raise PlanError("model.identity is asked for while planning; an audit's body runs before any model loads and may only claim")
        return self._identity

    def read(self, detector: DetectorSpec, suite: Suite, *, controls: bool = True) -> Reading:
        """Read a detector on every prompt of a suite.

        Args:
            detector: from `mi.probe`, `mi.sweep`, `mi.direction`, `mi.latent` or `mi.latent_group`.
            suite: from `mi.suite`; it may share no prompt with what the detector was fitted or calibrated on or its layer chosen by, and no group with it
                where both were cut from one suite; groups of separately loaded suites are not compared, since the same name may mean different things.
            controls: whether nulls and baselines are computed; without them a claim that the detector tells classes apart is at best inconclusive.

        Raises:
            PlanError: an argument is of the wrong kind, the suite is empty, repeats a prompt across groups, turns the positive class round, or shares prompts
                or groups with what the detector has seen.
        """
        if not isinstance(detector, DetectorSpec):
            raise PlanError(f"model.read({detector!r}, …): the first argument is a detector made with mi.probe, mi.sweep, mi.direction or mi.latent")
        if not isinstance(suite, Suite):
            raise PlanError(f"model.read({detector.name}, {suite!r}): the second argument is a suite made with mi.suite(…)")
        if len(suite) == 0:
            raise PlanError(f"model.read({detector.name}, {suite.name}): the suite is empty; nothing is shown by no prompts")
        spec = ReadSpec(detector, suite, controls)
        flaw = leak_inside(detector) or leak_in(spec) or repeat_in(suite) or turned_round(spec)
        if flaw:
            raise PlanError(flaw)
        return Reading(spec, self._evaluate, self._attribute)

    def __repr__(self) -> str:
        return f"<Auditor of {self._identity.ref}>" if self._identity else "<Auditor, planning>"
