"""No claim is tested on what its detector has seen: prompts and groups used to fit or to calibrate may not come back in a reading."""

from mi_audit.plan.detectors import DetectorSpec, FalsePositiveRate, ProbeSpec
from mi_audit.plan.measurements import ReadSpec
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite


def leak_in(reading: ReadSpec) -> str | None:
    """What the reading's suite shares with what its detector was made from, in words; None when they are apart."""
    for use, seen in _seen_by(reading.detector):
        shared = _shared(seen, reading.suite)
        if shared:
            return (
                f"{reading.detector.name} is tested on {reading.suite.name}, but {shared} in {seen.name}, which {use}; test on other groups, e.g. another split"
            )
    return None


def repeat_in(suite: Suite) -> str | None:
    """Two prompts of one content in different groups, in words; counted apart they would make n larger than it is."""
    first: dict[str, Prompt] = {}
    for prompt in suite:
        other = first.setdefault(prompt.digest, prompt)
        if other.group != prompt.group:
            return f"the prompts {other.id!r} and {prompt.id!r} of {suite.name} have the same content and different groups; give them one group, or remove one"
    return None


def turned_round(reading: ReadSpec) -> str | None:
    """A probe read on a suite whose positive class is the probe's negative one, in words: every claim would mean its opposite."""
    if not isinstance(reading.detector, ProbeSpec):
        return None
    fitted, tested = reading.detector.fit.positive, reading.suite.positive
    if fitted is None or tested is None or fitted == tested or fitted not in {prompt.label for prompt in reading.suite}:
        return None
    return f"{reading.detector.name} is fitted with {fitted!r} as positive, but {reading.suite.name} calls {tested!r} so; use the same positive= for both"


def leak_inside(detector: DetectorSpec) -> str | None:
    """What the calibration suite shares with the fit suite, in words; a threshold calibrated on fitted prompts is too low or too high."""
    if isinstance(detector, ProbeSpec) and isinstance(detector.threshold, FalsePositiveRate):
        shared = _shared(detector.fit, detector.threshold.on)
        if shared:
            return f"{detector.name} is calibrated on {detector.threshold.on.name}, but {shared} in {detector.fit.name}, its fit; calibrate on other groups"
    return None


def _seen_by(detector: DetectorSpec) -> list[tuple[str, Suite]]:
    seen = []
    if isinstance(detector, ProbeSpec):
        seen.append(("it is fitted on", detector.fit))
    if isinstance(detector.threshold, FalsePositiveRate):
        seen.append(("its threshold is calibrated on", detector.threshold.on))
    return seen


def _shared(seen: Suite, tested: Suite) -> str | None:
    digests = {prompt.digest: prompt.id for prompt in seen}
    twice = next((prompt for prompt in tested if prompt.digest in digests), None)
    if twice is not None:
        return f"its prompt {twice.id!r} also stands (as {digests[twice.digest]!r})"
    groups = set(seen.groups()) & set(tested.groups())
    if groups and _one_source(seen, tested):
        return f"its group {min(groups)!r} also stands"
    return None


def _one_source(one: Suite, other: Suite) -> bool:
    """Whether both were cut from suites with prompts in common, so that a group's name means the same in both."""
    return not {prompt.digest for prompt in _root(one)}.isdisjoint(prompt.digest for prompt in _root(other))


def _root(suite: Suite) -> Suite:
    while suite.origin is not None:
        suite = suite.origin
    return suite
