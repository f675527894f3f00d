"""What is known after a run, as plain frozen data: the two sections of `evidence.json`.

Everything in `RunRecord` is equal for equal inputs (same plan, model, seed and versions); what differs from run to run (times, host, cache hits) is in
`VolatileRecord`. Numbers are finite and integers within ±(2^53 − 1), so that canonical JSON (RFC 8785) carries them exactly.
"""

from typing import Final, Literal

from pydantic import Field

from mi_audit.evidence.experiments import ExperimentRecord
from mi_audit.evidence.fields import About, Count, Digest, Flag, Integer, Name, Number, Op, Record, ReportFile, Text
from mi_audit.evidence.ladder import LadderRecord
from mi_audit.evidence.saes import SaeRecord
from mi_audit.stats.verdict import Verdict

SCHEMA_VERSION: Final = "1.0"


class FileRecord(Record):
    """A file that the model was loaded from."""

    name: Name
    """Name relative to the model's folder."""
    sha256: Digest
    """SHA-256 of its bytes."""
    bytes: Count
    """Its size."""


class CheckRecord(Record):
    """One identity of the self-check at load, judged on its worst token."""

    name: Name
    """What was checked, in words."""
    passed: Flag
    """Whether the worst relative difference is within the tolerance."""
    worst: Number | None
    """Largest relative difference found; absent where the check could not be made."""
    tolerance: Number
    """Largest relative difference allowed."""
    detail: Text
    """Where the worst was found, or why nothing was checked."""


class RefusedRecord(Record):
    """A hook point that failed its self-check, so that nothing is read there."""

    hook_point: Name
    """Standard name of the hook point."""
    layer: Count | None
    """Layer; absent where it concerns all of them."""
    reason: Text
    """Why it is refused."""


class ModelRecord(Record):
    """The model under audit, identified by the digests of what was loaded."""

    ref: Name
    """The reference that was given."""
    root: Digest
    """SHA-256 over the sorted digests of all files: the model's identity."""
    architecture: Name
    """Class of the model."""
    parameters: Count
    """Number of parameters."""
    n_layers: Count
    """Number of blocks."""
    d_model: Count
    """Width of the residual stream."""
    source: Name
    """Where the files came from."""
    revision: Name | None
    """Pinned revision at the source."""
    files: tuple[FileRecord, ...]
    """Every file loaded."""
    tokenizer_digest: Digest
    """SHA-256 of the tokenizer."""
    chat_template_digest: Digest | None
    """SHA-256 of the chat template; absent where there is none."""
    dtype: Name
    """Number format of the weights in memory."""
    device: Name
    """Where it ran."""
    attention: Name
    """Attention implementation."""
    batching: Text
    """How prompts pass together: packed where that was measured to be exact, else padded, with the reason."""
    versions: dict[Name, Text]
    """Versions of the libraries that compute."""
    licence: Text | None
    """Licence as stated by the source."""
    self_check: tuple[CheckRecord, ...]
    """The self-check at load."""
    refused: tuple[RefusedRecord, ...]
    """Hook points that failed it."""


class SuiteRecord(Record):
    """A prompt suite, or a split of one, as it was used."""

    name: Name
    """Name, with the split in it."""
    digest: Digest
    """SHA-256 over its rows."""
    source: Text
    """Where its rows came from."""
    n: Count
    """Number of prompts."""
    groups: Count
    """Number of groups (templates, entities, pairs)."""
    positives: Count | None
    """Prompts of the positive class; absent without labels."""
    negatives: Count | None
    """Prompts of the negative class; absent without labels."""
    origin: Digest | None = None
    """Digest of the suite that it was cut from in the first place; its own where it was not."""
    matched: Flag = False
    """Whether each group of that suite holds both classes, as a topic with its benign counterparts does."""


class CurvePoint(Record):
    """One layer of a sweep, scored on the validation prompts."""

    layer: Count
    """Block, counted from 0."""
    auroc: Number | None
    """AUROC on the validation prompts; absent where the method can't be fitted."""
    low: Number | None
    """Lower bound of its interval, one-sided at the plan's alpha."""
    high: Number | None
    """Upper bound of its interval."""
    n: Count
    """Number of validation prompts."""
    groups: Count
    """Number of groups that they come in."""
    picked: Flag
    """Whether the detector reads here."""
    caveats: tuple[Text, ...]
    """Why nothing could be decided on this interval, or why there is none."""


class DetectorRecord(Record):
    """A detector as it was fitted or loaded."""

    name: Name
    """Name given in the audit file."""
    digest: Digest
    """Digest of its spec."""
    kind: Literal["probe", "direction", "sweep", "latent"]
    """Fitted here at a declared place, found elsewhere, fitted here at the layer that reads best on validation prompts, or latents of an SAE."""
    method: Name | None
    """How it was fitted; absent for a direction."""
    hook_point: Name
    """Where it reads, by standard name."""
    layer: Count | None
    """Block, counted from 0; absent for the embedding."""
    tokens: Name
    """Which tokens it reads."""
    fit_suite: Name | None
    """Suite it was fitted on."""
    fit_n: Count | None
    """Number of prompts it was fitted on."""
    fit_groups: Count | None
    """Number of groups it was fitted on."""
    seen: tuple[Digest, ...] = ()
    """Digests of the suites that it was made from: fitted, calibrated, chosen or found on."""
    validation_suite: Name | None
    """Suite on which a sweep chose the layer: never one that is claimed on, and possibly a part of the fit suite."""
    curve: tuple[CurvePoint, ...]
    """Every layer swept over, ascending; empty where the place was declared."""
    regularisation: Number | None
    """Strength chosen, where the method has one."""
    threshold: Number | None
    """Frozen threshold, on the detector's own scale."""
    threshold_rule: Text | None
    """How the threshold was set, in words."""
    file: Name | None
    """Its weights, relative to the bundle: `detectors/NAME`."""
    file_digest: Digest | None
    """SHA-256 of that file."""


class AttributedPrompt(Record):
    """A prompt whose number was attributed to its tokens; what each has to do with it is in `tokens.parquet`."""

    prompt: Name
    """Its id."""
    value: Number
    """The number that is attributed: the prompt's score, or of latents their pre-activation."""
    baseline: Number
    """The number at the start of the path."""
    steps: Count
    """Steps of the midpoint rule."""
    residual: Number
    """The sum of the attributions less the difference of value and baseline: what the rule leaves over."""


class AttributionRecord(Record):
    """How the prompts of a reading that score highest were attributed to their tokens. It illustrates; no claim is computed from it."""

    method: Name
    """`integrated_gradients` (Sundararajan et al. 2017, arXiv 1703.01365)."""
    baseline: Name
    """Where the path starts: every token of the content replaced by a `space`, the `mean` embedding of the vocabulary, or `zeros`."""
    prompts: tuple[AttributedPrompt, ...]
    """The prompts in the order of `tokens.parquet`."""


class ReadingRecord(Record):
    """A detector read on a suite: what `samples.parquet` calls a measurement."""

    id: Digest
    """SHA-256 of its spec."""
    detector: Name
    """Name of the detector."""
    detector_digest: Digest
    """Digest of the detector's spec."""
    suite: Name
    """Name of the suite."""
    suite_digest: Digest
    """Digest of the suite."""
    n: Count
    """Number of prompts."""
    groups: Count
    """Number of groups."""
    n_positive: Count | None
    """Prompts of the positive class; absent without labels."""
    threshold: Number | None
    """The detector's frozen threshold."""
    excluded_tokens: Count
    """Attention sinks left out of pooled readings."""
    spread: Number | None
    """Largest difference between its scores and those in float32, on a random sample of its prompts; absent for a model in float32."""
    spread_n: Count | None
    """Prompts in that sample; `n` where it is all of them."""
    controls: Flag
    """Whether controls were run beside it."""
    sae: SaeRecord | None
    """The sparse autoencoder whose latents the detector is made of; absent for any other."""
    attribution: AttributionRecord | None
    """How its highest prompts were attributed to their tokens; absent where no audit asks for it."""
    tokens_error: Text | None
    """Why its highest prompts are not in `tokens.parquet`; absent where they are. Nothing that was claimed depends on it."""


class NullRecord(Record):
    """The claimed quantity where there is nothing to find. A null is a rank: p = (k + 1)/(B + 1) (Phipson & Smyth 2010, arXiv 1603.05766)."""

    name: Name
    """What was destroyed, e.g. `shuffled labels`."""
    draws: Count
    """B, the number of draws."""
    k: Count
    """Draws that reach the observed value."""
    p: Number
    """(k + 1)/(B + 1)."""
    passed: Flag
    """Whether p ≤ alpha."""
    median: Number
    """Median of the draws."""
    high: Number
    """Quantile 1 − alpha of the draws."""
    observed: Number
    """The value held against the draws."""
    decides: Flag
    """Whether a claim must beat it to pass; the others are shown for comparison."""
    downward: Flag = False
    """Whether the claim is of a fall, so that draws count that are as low as the observed value or lower; `high` is then the quantile alpha."""


class BaselineRecord(Record):
    """The claimed quantity of a classifier that sees no internals, on the same prompts."""

    name: Name
    """What it sees: `length`, `bag of words`, `embedding`."""
    value: Number
    """Its value."""
    low: Number
    """Lower bound of its interval."""
    high: Number
    """Upper bound of its interval."""
    difference: Number
    """The detector's value less this one's, paired by prompt."""
    difference_low: Number
    """Lower bound of the difference."""
    difference_high: Number
    """Upper bound of the difference."""


class ClaimRecord(Record):
    """One claim of one audit, decided."""

    id: Name
    """`<audit id>#<index>`."""
    audit: Name
    """The audit's id."""
    index: Count
    """Place among the audit's claims, from 0."""
    line: Count | None
    """Line of the audit file."""
    about: About
    """Whether it speaks of the model or of the instrument."""
    reading: Digest
    """Id of the reading, or the experiment, that it was estimated from."""
    detector: Name
    """Name of the detector."""
    detector_digest: Digest
    """Digest of the detector's spec."""
    suite: Name
    """Name of the suite."""
    suite_digest: Digest
    """Digest of the suite."""
    quantity: Name
    """What was estimated: `auroc`, `recall`, `rate`, …"""
    pairs: Name | None
    """Field that pairs prompts, for a paired quantity."""
    strength: Number | None = None
    """Of an experiment: the strength that it is of; absent for a quantity of all strengths."""
    over_null: Flag = False
    """Whether the quantity is the experiment's excess over the mean of its null's draws."""
    apart: Flag = False
    """Whether the suite has no source in common with any that the detector was made from."""
    on: Name | None = None
    """The suite on which a side effect of an experiment was measured."""
    effect: Text | None = None
    """Of an experiment: the effect that the quantity is of, in words; absent for a side effect."""
    op: Op
    """The comparison claimed."""
    threshold: Number
    """The number claimed."""
    text: Text
    """The claim in words."""
    verdict: Verdict
    """What was decided."""
    reasons: tuple[Text, ...]
    """Why it is not PASS, or what capped it."""
    value: Number | None
    """Point estimate; absent where the quantity is undefined."""
    low: Number | None
    """Lower bound, one-sided at alpha."""
    high: Number | None
    """Upper bound, one-sided at alpha."""
    alpha: Number
    """Probability, at most, that the bound errs."""
    n: Count
    """Number of prompts."""
    n_positive: Count | None
    """Prompts of the positive class; absent without labels."""
    groups: Count
    """Number of groups: what n really counts."""
    method: Text
    """How the interval was computed."""
    needed_n: Count | None
    """Prompts that would decide it, if the estimate is right."""
    needed_groups: Count | None
    """Groups that would decide it, if the estimate is right."""
    nulls: tuple[NullRecord, ...]
    """Where there is nothing to find."""
    baselines: tuple[BaselineRecord, ...]
    """Without looking inside."""
    selectivity: Number | None
    """Accuracy less that on random labels (Hewitt & Liang 2019, arXiv 1909.03368)."""
    worst: tuple[Name, ...]
    """Ids of the prompts that speak most against the claim, at most three."""


class AuditHead(Record):
    """What is known of an audit before it runs."""

    id: Name
    """`folder/file.py::function[parameters]`."""
    file: Name
    """The audit file, relative to the folder that was audited."""
    function: Name
    """Name of the function."""
    title: Text
    """Short title."""
    doc: Text
    """Docstring."""
    about: About
    """Whether its claims speak of the model or of the instrument."""
    severity: Name | None
    """Severity, as declared."""
    controls: tuple[Name, ...]
    """Slugs of the controls that it supports."""
    source_digest: Digest
    """SHA-256 of the audit file."""
    unplanned: Text | None
    """Why it could not be traced before the run; absent if it was planned."""


class AuditRecord(AuditHead):
    """One audit: a function of an audit file."""

    verdict: Verdict
    """Never better than the worst of its claims."""
    error: Text | None
    """What went wrong, if the verdict is ERROR."""
    claims: tuple[Name, ...]
    """Ids of its claims, in order."""


class PlanRecord(Record):
    """What was fixed before the model was loaded."""

    digest: Digest
    """SHA-256 over every claim, threshold, spec, suite and audit source."""
    alpha: Number
    """One-sided level of every claim."""
    seed: Integer
    """Seed of every random choice."""
    limit: Count | None
    """Prompts taken of each suite; absent if all were."""
    audits: Count
    """Number of audits planned."""
    claims: Count
    """Number of claims planned."""


class PluginRecord(Record):
    """A plugin of another distribution that was active: its code ran in the process that made the evidence."""

    name: Name
    """Name of its entry point."""
    distribution: Name
    """The installed distribution that it is from."""
    version: Name
    """That distribution's version."""
    digest: Digest
    """SHA-256 over the digests of its source files."""
    kinds: tuple[Name, ...]
    """The kinds of things that it offers."""


class TableRecord(Record):
    """A Parquet table of the bundle."""

    rows: Count
    """Number of rows."""
    digest: Digest
    """Logical digest of the rows: independent of the Parquet writer."""
    sha256: Digest
    """SHA-256 of the file: the same rows in other bytes are another file."""


class RunRecord(Record):
    """The `evidence` section: equal for equal inputs."""

    schema_version: Name = SCHEMA_VERSION
    """Version of this schema."""
    plan: PlanRecord
    """The plan."""
    model: ModelRecord | None
    """The model; absent if it could not be loaded."""
    plugins: tuple[PluginRecord, ...]
    """Third-party plugins that were active, whether or not anything of theirs was used."""
    suites: tuple[SuiteRecord, ...]
    """The suites used."""
    detectors: tuple[DetectorRecord, ...]
    """The detectors used."""
    readings: tuple[ReadingRecord, ...]
    """The readings taken."""
    experiments: tuple[ExperimentRecord, ...] = ()
    """The experiments made: what was steered or ablated, and what came of it."""
    ladders: tuple[LadderRecord, ...] = ()
    """How far each detector got on the evidence ladder, computed from the claims."""
    audits: tuple[AuditRecord, ...]
    """The audits, in the order of the plan."""
    claims: tuple[ClaimRecord, ...]
    """Their claims, in the same order."""
    verdict: Verdict
    """Overall: never better than the worst of the audits; ERROR too where an audit file could not be collected."""
    partial: tuple[Text, ...]
    """Why this run can't gate; empty if it can."""
    exit_code: Count
    """Exit code of the run: follows from the verdicts and from `partial`."""
    texts_shown: Flag
    """Whether `tokens.parquet` holds the texts of tokens; they are redacted otherwise."""
    tables: dict[Name, TableRecord] = Field(default_factory=dict)
    """The Parquet tables by file name; filled in by the store."""


class VolatileRecord(Record):
    """The `volatile` section: what differs between two equal runs."""

    run_id: Name
    """Random id of the run."""
    started: Name
    """Start, UTC, ISO 8601."""
    ended: Name
    """End, UTC, ISO 8601."""
    host: dict[Name, Text]
    """Facts about the machine, by allow-list."""
    command: tuple[Text, ...]
    """Arguments, home paths scrubbed."""
    seconds: dict[Name, Number]
    """Seconds per phase."""
    cache: dict[Name, Count]
    """Prompts that passed through the model, and that were found in the cache; processes that loaded its weights; and those that say of its checks what an
    earlier run found on the same files, with the same software and processor."""
    reports: dict[Name, ReportFile]
    """The file in the bundle that each renderer writes."""
