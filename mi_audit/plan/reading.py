"""What an audit's body works with: a reading, whose quantities are worth claiming something of.

The same class serves the run, where `evaluate` returns estimates, and the trace, where it returns stand-ins without values.
"""

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, cast, get_args

from mi_audit.errors import PlanError, SuiteError
from mi_audit.plan.latents import LatentSpec
from mi_audit.plan.measurements import NEEDS_LABELS, NEEDS_THRESHOLD, AttributionSpec, Baseline, EstimateSpec, Measured, Method, Quantity, ReadSpec
from mi_audit.stats.checks import Floats
from mi_audit.stats.estimate import Estimate

Evaluate = Callable[[Measured], Estimate]
Attribute = Callable[[AttributionSpec], Sequence["Attributed"]]


class Attributed(Protocol):
    """A prompt whose score was attributed to its tokens."""

    @property
    def prompt(self) -> str:
        """Its id."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What each of its L tokens adds to its text."""

    @property
    def attributions(self) -> Floats:
        """What each token has to do with the number, [L] in its units."""

    @property
    def value(self) -> float:
        """The number that is attributed; `baseline` is where the path starts."""

    @property
    def baseline(self) -> float:
        """The number where the path starts."""

    @property
    def residual(self) -> float:
        """What the attributions leave over: their sum less value and baseline's difference."""


class Reading:
    """A detector's scores on a suite. Each method returns an `Estimate`; compare it with a number to make a claim.

    All intervals are cluster-robust: n is counted in groups (templates, entities, pairs).
    """

    def __init__(self, spec: ReadSpec, evaluate: Evaluate, attribute: Attribute) -> None:
        self.spec = spec
        self._evaluate = evaluate
        self._attribute = attribute

    def auroc(self) -> Estimate:
        """Area under the ROC curve: the probability that a positive prompt scores above a negative one (ties count one half)."""
        return self._estimate("auroc")

    def recall(self) -> Estimate:
        """Share of the positive prompts that score above the detector's frozen threshold."""
        return self._estimate("recall")

    def rate(self) -> Estimate:
        """Share of all prompts, whatever their label, that score above the detector's frozen threshold."""
        return self._estimate("rate")

    def accuracy(self) -> Estimate:
        """Share of the prompts that the frozen threshold puts on the side of their label."""
        return self._estimate("accuracy")

    def mean(self) -> Estimate:
        """Mean score, on the detector's own scale."""
        return self._estimate("mean")

    def mean_difference(self) -> Estimate:
        """Mean score of the positive prompts minus that of the negative ones, on the detector's own scale."""
        return self._estimate("mean_difference")

    def paired_difference(self, pairs: str = "pair") -> Estimate:
        """Mean over pairs of positive minus negative score. `pairs` names the suite's field that holds the pair's name."""
        for prompt in self.spec.suite:
            prompt.field(pairs)
        return self._estimate("paired_difference", pairs)

    def effect_size(self) -> Estimate:
        """Standardised mean difference between the classes, Hedges' g (Hedges 1981)."""
        return self._estimate("effect_size")

    def attribute(self, method: str = "integrated_gradients", *, baseline: str = "space") -> Sequence["Attributed"]:
        """Attribute the scores of the prompts that score highest to their tokens, for the report: which tokens drive the detector.

        What is attributed is the score of a probe or direction, and of latents their pre-activation, since gradients don't go through the gates of activation
        functions. Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365): from a baseline to the prompt the gradient at the token embeddings is
        summed by the midpoint rule, in as many steps as leave over at most 1 % of the difference, or 2 187; what is left over is in the evidence.

        Args:
            method: "integrated_gradients".
            baseline: where the path starts: every token of the content replaced by a "space", by the "mean" embedding of the vocabulary, or by "zeros". The
                content is the text, or a chat's last message and its response; the chat template's tokens, earlier messages and special tokens stay.

        Returns:
            the prompts, the one that scores highest first.

        Raises:
            PlanError: an unknown method or baseline, or latents of an architecture that has no pre-activation.
        """
        if method not in get_args(Method):
            raise PlanError(f"attribute(method={method!r}): known are {', '.join(get_args(Method))}")
        if baseline not in get_args(Baseline):
            raise PlanError(f"attribute(baseline={baseline!r}): known are {', '.join(get_args(Baseline))}")
        if self.spec.detector.point == "embed":
            raise PlanError(f"attribute() of {self.spec}: it reads the embedding itself, where every token has to do with its own number alone")
        detector = self.spec.detector
        if isinstance(detector, LatentSpec) and detector.sae.config.is_whole:
            architecture = detector.sae.config.architecture
            raise PlanError(f"attribute() of {self.spec}: latents of the architecture {architecture!r} have no pre-activation; attribute a probe there")
        return self._attribute(AttributionSpec(self.spec, cast(Method, method), cast(Baseline, baseline)))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise PlanError(f"a reading has no {name!r}; claim something of {', '.join(f'{quantity}()' for quantity in get_args(Quantity))}")

    def _estimate(self, quantity: Quantity, pairs: str | None = None) -> Estimate:
        detector, suite = self.spec.detector, self.spec.suite
        if quantity in NEEDS_THRESHOLD and detector.threshold is None:
            raise PlanError(f"{quantity}() of {detector.name}: the detector has no threshold; declare it with threshold=mi.false_positive_rate(rate, on=suite)")
        if quantity in NEEDS_LABELS:
            try:
                one_class = len(set(suite.labels())) < 2
            except SuiteError as error:
                raise PlanError(f"{quantity}() of {self.spec}: {error}") from error
            if one_class and quantity != "recall":
                raise PlanError(f"{quantity}() of {self.spec}: the suite has only one class; it takes positive and negative prompts to tell them apart")
            if not any(suite.labels()):
                raise PlanError(f"{quantity}() of {self.spec}: the suite has no positive prompts to recall")
        return self._evaluate(EstimateSpec(self.spec, quantity, pairs))
