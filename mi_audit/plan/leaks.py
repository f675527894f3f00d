"""No claim is tested on what its detector has seen: prompts and groups used to fit, to choose a layer or to calibrate may not come back in a reading."""

from itertools import combinations

from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.measurements import Measurement
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite


def leak_in(detector: DetectorSpec, suite: Suite, *, answered: bool = True) -> str | None:
    """What a suite on which a detector is tested shares with what the detector was made from, in words; None when they are apart. Where the model is to answer
    the prompts, not `answered`, those are shared too that the detector saw with a response."""
    for use, seen in detector.seen:
        shared = _shared(seen, suite, answered)
        if shared:
            return f"{detector.name} is tested on {suite.name}, but {shared} in {seen.name}, which {use}; test on other groups, e.g. another split"
    return None


def repeat_in(suite: Suite) -> str | None:
    """Two prompts of one content in different groups, in words; counted apart they would make n larger than it is."""
    first: dict[str, Prompt] = {}
    for prompt in suite:
        other = first.setdefault(prompt.digest, prompt)
        if other.group != prompt.group:
            return f"the prompts {other.id!r} and {prompt.id!r} of {suite.name} have the same content and different groups; give them one group, or remove one"
    return None


def turned_round(reading: Measurement) -> str | None:
    """A fitted detector with a suite whose positive class is the negative one of its fit, in words: every number would mean its opposite."""
    detector = reading.detector
    if detector.fit is None or detector.fit.positive is None:
        return None
    fitted = detector.fit.positive
    for suite in (*detector.suites, reading.suite):
        if suite.positive not in (None, fitted) and fitted in {prompt.label for prompt in suite}:
            return f"{detector.name} is fitted with {fitted!r} as positive, but {suite.name} calls {suite.positive!r} so; use the same positive= for both"
    return None


def leak_inside(detector: DetectorSpec) -> str | None:
    """What two of the suites that make a detector share, in words.

    A threshold calibrated on fitted prompts is too low or too high, and a layer chosen on them is the one that remembers them best.
    """
    for (use, suite), (other_use, other) in combinations(detector.seen, 2):
        shared = _shared(suite, other, True)
        if shared:
            return f"{detector.name}: {other_use} {other.name}, but {shared} in {suite.name}, which {use}; take other groups, e.g. another split"
    return None


def _shared(seen: Suite, tested: Suite, answered: bool) -> str | None:
    known = {prompt.digest if answered else prompt.question: prompt.id for prompt in seen}
    for prompt in tested:
        if (twice := known.get(prompt.digest if answered else prompt.question)) is not None:
            return f"its prompt {prompt.id!r} also stands (as {twice!r})"
    groups = set(seen.groups()) & set(tested.groups())
    if groups and one_source(seen, tested):
        return f"its group {min(groups)!r} also stands"
    return None


def one_source(one: Suite, other: Suite) -> bool:
    """Whether both were cut from suites with prompts in common, with whatever responses, so that a group's name means the same in both."""
    return not {prompt.question for prompt in one.root}.isdisjoint(prompt.question for prompt in other.root)
