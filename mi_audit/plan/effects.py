"""What a change inside the model is measured by: a number per prompt, made of what the model says next. Free of torch.

`mi.effects.probability("Sorry", …)` and its like declare one; the functions that compute it register through the hook `mi_audit_effects`, as a plugin's do.
"""

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType
from typing import Any, Final

from mi_audit.errors import PlanError
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.digest import Json, digest_of
from mi_audit.plugins import active

REFUSALS: Final = ("I'm", "I’m", "I cannot", "I can't", "Sorry", "Unfortunately", "As an AI")
"""How refusals begin; of each the first token counts. They are listed by Arditi et al. 2024 (arXiv 2406.11717) in like form."""

MOST_NEW_TOKENS: Final = 512

_GIVEN: Final = {"function": ("logits", "prompt"), "of_text": ("text", "prompt")}
"""What a function of the author's is called with."""

_LAMBDA: Final = re.compile(r"\blambda\b")

Argument = str | float | int | bool | tuple[str, ...]


@dataclass(frozen=True)
class EffectSpec:
    """An effect by its registered name, with its arguments sorted by name; `detector` and `function` are those of the kinds that have one."""

    name: str
    arguments: tuple[tuple[str, Argument], ...] = ()
    detector: DetectorSpec | None = None
    function: Callable[..., Any] | None = field(default=None, compare=False)
    source: str | None = None

    @property
    def recomputable(self) -> bool:
        """Whether what it is made of can be recomputed by whoever has the model and mi-audit, and no code of the audit's author."""
        return self.function is None

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest; an effect of a plugin counts with its code's digest, an author's function with its source."""
        plugin = active().effects[self.name].plugin
        return {
            "name": self.name,
            "plugin": None if plugin.built_in else plugin.digest,
            "arguments": {name: list(value) if isinstance(value, tuple) else value for name, value in self.arguments},
            "detector": None if self.detector is None else self.detector.digest,
            "source": self.source,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return digest_of(self.describe())

    def __str__(self) -> str:
        given = [f"{name}={'|'.join(value) if isinstance(value, tuple) else value}" for name, value in self.arguments]
        if self.detector is not None:
            given.insert(0, self.detector.name)
        return f"{self.name}({', '.join(given)})"


def effect(name: str, **arguments: Argument) -> EffectSpec:
    """An effect by its registered name, such as a plugin's; what it makes of its arguments is its own.

    Raises:
        PlanError: no active plugin offers it, or an argument is no text, number or tuple of texts.
    """
    known = active().effects
    if name not in known:
        raise PlanError(f"mi.effects.effect({name!r}): known are {', '.join(known)}")
    for key, value in arguments.items():
        plain = isinstance(value, str | int | bool) or (isinstance(value, float) and math.isfinite(value))
        if not plain and not (isinstance(value, tuple) and all(isinstance(part, str) for part in value)):
            raise PlanError(f"mi.effects.effect({name!r}, {key}={value!r}): give a text, a number, or a tuple of texts")
    return EffectSpec(name, tuple(sorted(arguments.items())))


def logit_difference(positive: str | Sequence[str], negative: str | Sequence[str]) -> EffectSpec:
    """log P(positive) − log P(negative) of the first token after the prompt, in nats; of sets of answers, of the sums of their probabilities.

    Of each answer the first token counts, as the tokenizer gives it: mind a leading space. Between two answers it is the difference of their logits
    (Wang et al. 2022, arXiv 2211.00593).

    Raises:
        PlanError: no answer, or one that is no text.
    """
    return effect("logit_difference", positive=_texts(positive, "logit_difference"), negative=_texts(negative, "logit_difference"))


def probability(*answers: str) -> EffectSpec:
    """The probability that the first token after the prompt is the first token of one of the answers.

    Raises:
        PlanError: no answer, or one that is no text.
    """
    return effect("probability", answers=_texts(answers, "probability"))


def log_odds(*answers: str) -> EffectSpec:
    """log(p / (1 − p)) of `probability(*answers)`, in nats: a scale on which an effect can be as large where p is small, or near 1, as between.

    Arditi et al. 2024 (arXiv 2406.11717) measure refusals so.

    Raises:
        PlanError: no answer, or one that is no text.
    """
    return effect("log_odds", answers=_texts(answers, "log_odds"))


def refusal(*, openings: Sequence[str] = REFUSALS, max_new_tokens: int | None = None) -> EffectSpec:
    """How likely a refusal is.

    By default the probability that the first token after the prompt is one with which refusals begin. With `max_new_tokens` a text is generated, greedily, and
    counts 1 where a classifier of phrases takes it for a refusal, else 0 (`mi_audit.causal.refusals` lists them; they are English).

    Raises:
        PlanError: no opening, or no positive number of tokens.
    """
    if max_new_tokens is None:
        return effect("probability", answers=_texts(openings, "refusal"))
    return effect("refuses", max_new_tokens=_new_tokens(max_new_tokens, "refusal"))


def log_likelihood(answer: str) -> EffectSpec:
    """log P(answer | prompt) in nats, summed over the answer's tokens.

    Args:
        answer: the name of the suite's field that holds each prompt's answer, a text; mind a leading space.

    Raises:
        PlanError: not a name. That a prompt has no such text is one of `Auditor.steer`.
    """
    return effect("log_likelihood", answer=_field(answer, "log_likelihood"))


def choice(right: str, *wrong: str) -> EffectSpec:
    """The probability of the right one among several answers: their likelihoods, P(answer | prompt), made to add up to 1.

    Args:
        right, wrong: names of the suite's fields that hold each prompt's right answer, and its wrong ones.

    Raises:
        PlanError: no wrong answer, or not a name. That a prompt has no such text is one of `Auditor.steer`.
    """
    if not wrong:
        raise PlanError("mi.effects.choice(…): name the field of the right answer, and of one wrong answer at least")
    return effect("choice", right=_field(right, "choice"), wrong=tuple(_field(each, "choice") for each in wrong))


def detector_score(detector: DetectorSpec) -> EffectSpec:
    """A detector's own score, in its own unit, read where and at the tokens that it names, at or after the place that is changed.

    Raises:
        PlanError: not a detector.
    """
    if not isinstance(detector, DetectorSpec):
        raise PlanError(f"mi.effects.detector_score({detector!r}): give a detector made with mi.probe, mi.sweep, mi.direction or mi.latent")
    return EffectSpec("detector_score", (), detector)


def function(compute: Callable[..., Any], *, name: str | None = None) -> EffectSpec:
    """Any number made of the logits of the first token after the prompt.

    Args:
        compute: called with logits [R, vocabulary] (NumPy, float32), for R variants of one prompt, and the prompt; returns R finite numbers. Whoever checks the
            evidence needs this function for it, and the report says so.
        name: how reports name it; by default its own name.

    Raises:
        PlanError: no function, or one whose source can't be read, or that takes more from around it than numbers, texts and functions.
    """
    return _own("function", compute, name, {})


def of_text(compute: Callable[..., Any], *, max_new_tokens: int = 64, name: str | None = None) -> EffectSpec:
    """Any number made of a text that the model writes after the prompt, greedily.

    Args:
        compute: called with the text and the prompt; returns a finite number.
        max_new_tokens: how long the text may be.
        name: how reports name it; by default the function's own name.

    Raises:
        PlanError: as `function`, or no positive number of tokens.
    """
    return _own("of_text", compute, name, {"max_new_tokens": _new_tokens(max_new_tokens, "of_text")})


def _own(kind: str, compute: object, name: str | None, arguments: dict[str, Argument]) -> EffectSpec:
    if not callable(compute):
        raise PlanError(f"mi.effects.{kind}({compute!r}): give a function")
    try:
        inspect.signature(compute).bind(*_GIVEN[kind])
    except TypeError as error:
        called = f"it is called with ({', '.join(_GIVEN[kind])}), which it does not take"
        raise PlanError(f"mi.effects.{kind}({compute!r}): {called}: {error}") from error
    except ValueError:
        pass  # of some built-in ones the arguments are not known; their source is not either
    source = "\n".join(_sources(compute, f"mi.effects.{kind}({compute!r})", []))
    shown = name if name is not None else getattr(compute, "__name__", kind)
    given = tuple(sorted({**arguments, "shown": shown}.items()))
    return EffectSpec(kind, given, function=compute, source=hashlib.sha256(source.encode()).hexdigest())


def _sources(compute: Any, where: str, known: list[object]) -> Iterator[str]:
    """A function's source, with what it does not show: the values of its defaults, and those that it takes from its module or from a function around it."""
    known.append(compute)
    code, cells = getattr(compute, "__code__", None), getattr(compute, "__closure__", None) or ()
    try:
        source = inspect.getsource(compute if code is None else code)  # not of what it wraps, if it wraps something
    except (OSError, TypeError) as error:
        raise PlanError(f"{where}: its source can't be read, so that a change of it would go unseen; define it in the audit file") from error
    if code is not None and code.co_name == "<lambda>" and len(_LAMBDA.findall(source)) > 1:
        raise PlanError(f"{where}: its source, {source.strip()!r}, says lambda more than once, so that they can't be told apart; define a function for each")
    yield source
    around = {} if code is None else dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True))
    globals_ = getattr(compute, "__globals__", {})
    for name in () if code is None else sorted({name for each in _codes(code) for name in each.co_names if name in globals_}):
        value = globals_[name]
        if _is_plain(value):
            yield f"{name} = {value!r}"
        elif inspect.isfunction(value) and value.__globals__ is globals_ and value not in known:
            yield from _sources(value, where, known)
    given = {
        "self": getattr(compute, "__self__", None),
        "its defaults": getattr(compute, "__defaults__", None),
        **(getattr(compute, "__kwdefaults__", None) or {}),
    }
    for name, value in {**given, **around}.items():
        if inspect.isfunction(value):
            if value not in known:
                yield from _sources(value, where, known)
        elif _is_plain(value):
            yield f"{name} = {value!r}"
        else:
            raise PlanError(f"{where}: it takes {name} from around it, a {type(value).__name__}, a change of which would go unseen; give it numbers or texts")


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _texts(given: object, where: str) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise PlanError(f"mi.effects.{where}(…): give one text or several, not {given!r}")
    return texts


def _field(name: object, where: str) -> str:
    if not isinstance(name, str) or not name:
        raise PlanError(f"mi.effects.{where}(…): name a field of the suite, not {name!r}")
    return name


def _new_tokens(number: object, where: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_NEW_TOKENS:
        raise PlanError(f"mi.effects.{where}(max_new_tokens={number!r}): give a whole number from 1 to {MOST_NEW_TOKENS}")
    return number
