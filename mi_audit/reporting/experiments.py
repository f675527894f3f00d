"""What the report shows of an experiment: its charts, what was done in words, and what the model wrote."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mi_audit.evidence.experiments import ExperimentRecord, GenerationRecord
from mi_audit.evidence.records import ClaimRecord
from mi_audit.reporting.charts_dose import DoseChart, ProfileChart, SidePlot, dose_chart, profile_chart, side_plot
from mi_audit.reporting.text import number

_DONE: Final = {"add": ("steered along", ""), "clamp": ("with latents of", "clamped"), "project_out": ("with", "taken out")}
_ACTIONS: Final = {
    "add": "the strength times the direction is added to the activations",
    "clamp": "the latents are set to the strength times their highest value; what their autoencoder does not rebuild is left as it is",
    "project_out": "the strength is the share of the component along the direction that is taken out of the activations",
}
_UNITS: Final = {
    "vector": "lengths of the detector's own vector",
    "norm": "lengths of each token's own activation",
    "sd": "standard deviations of the detector's scores within its classes",
    "max": "multiples of the latents' highest value",
}
_TOKENS: Final = {
    "generated": "the prompt's last token, and each token that is generated",
    "prompt": "the prompt's tokens, attention sinks left out",
    "all": "the prompt's tokens, attention sinks left out, and each token that is generated",
}


@dataclass(frozen=True)
class Written:
    """What the model wrote after one prompt, one text for each column; None where there is none."""

    prompt: str
    texts: tuple[GenerationRecord | None, ...]


@dataclass(frozen=True)
class ExperimentView:
    """An experiment. `done` stands before and after the detector's name; `columns` of what was written are strengths, None for the model as it is; `left_out`
    more prompts are in `evidence.json`; `redacted`: a text is missing."""

    number: int
    record: ExperimentRecord
    done: tuple[str, str]
    action: str
    place: str
    tokens: str
    unit: str
    chart: DoseChart
    sides: tuple[SidePlot, ...]
    profile: ProfileChart | None
    columns: tuple[float | None, ...]
    written: tuple[Written, ...]
    left_out: int
    redacted: bool


def experiment_view(place: int, experiment: ExperimentRecord, claims: Iterable[ClaimRecord], texts: int) -> ExperimentView:
    """An experiment with the bounds that `claims` set for its side effects; what was written after at most `texts` prompts."""
    columns, written = _written(experiment.generations)
    claims = tuple(claims)
    return ExperimentView(
        number=place,
        record=experiment,
        done=_DONE[experiment.action],
        action=_ACTIONS[experiment.action],
        place=_place(experiment),
        tokens=_TOKENS.get(experiment.tokens, experiment.tokens),
        unit=_unit(experiment),
        chart=dose_chart(experiment),
        sides=tuple(side_plot(experiment, curve, claims) for curve in experiment.side_effects),
        profile=profile_chart(experiment),
        columns=columns,
        written=written[:texts],
        left_out=max(len(written) - texts, 0),
        redacted=any(each.text is None for each in experiment.generations),
    )


def _place(experiment: ExperimentRecord) -> str:
    if experiment.hook_point == "everywhere":
        return "everywhere that the residual stream is written"
    return experiment.hook_point if experiment.layer is None else f"{experiment.hook_point} {experiment.layer}"


def _unit(experiment: ExperimentRecord) -> str:
    """What a strength of 1 is, as it follows the word on an axis: `in lengths of the detector's own vector (1 adds a length of 7.3)`."""
    if experiment.action == "project_out":
        return "the share of the component that is taken out"
    named = _UNITS.get(experiment.unit, experiment.unit)
    corpus = f" on {experiment.corpus}" if experiment.corpus is not None else ""
    if experiment.length is None:
        return f"in {named}{corpus}"
    length = number(experiment.length)
    return f"in {named}{corpus} ({f'1 is {length}, added up' if experiment.action == 'clamp' else f'1 adds a length of {length}'})"


def _written(generations: Sequence[GenerationRecord]) -> tuple[tuple[float | None, ...], tuple[Written, ...]]:
    """Columns and rows: the lowest strength, the model as it is, the highest strength."""
    strengths = sorted({each.strength for each in generations if each.strength is not None})
    columns = (strengths[0], None, strengths[-1]) if len(strengths) > 1 else (None, *strengths)
    found = {(each.prompt, each.strength): each for each in generations}
    prompts = dict.fromkeys(each.prompt for each in generations)
    return columns, tuple(Written(prompt, tuple(found.get((prompt, column)) for column in columns)) for prompt in prompts)
