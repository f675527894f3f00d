"""Every error that mi-audit raises on purpose. Each docstring gives the cause and the remedy."""


class MiAuditError(Exception):
    """Base of all errors below: something is wrong with the input or the set-up, never with the model's behaviour."""


class SuiteError(MiAuditError):
    """A prompt suite can't be used as it is. The message names the file, line and field; mend that line."""


class PlanError(MiAuditError):
    """An audit can't be planned, or its run departed from its plan. The message names the audit's line; make the body a plain list of claims."""


class ModelError(MiAuditError):
    """The model under audit can't be found, trusted or loaded. The message names the reference and what to give instead."""


class HookPointError(MiAuditError):
    """A hook point does not exist on this architecture or failed its self-check, or an intervention does not fit it. The message says what there is."""


class PromptError(MiAuditError):
    """A prompt can't be turned into tokens for this model (no chat template, too long, empty selection). The message names the prompt's id."""


class DetectorError(MiAuditError):
    """A detector can't be fitted, calibrated, saved or loaded. The message names the detector and the fix."""


class NotFiniteError(DetectorError):
    """What an intervention puts in, or what a model makes of it, is not finite. `variant` is the number of the first row or variant of which that is so, None
    where it is the prompt as it is; weaken the strength there, or load the model in float32."""

    def __init__(self, message: str, variant: int | None = None) -> None:
        super().__init__(message)
        self.variant = variant


class StatisticsError(MiAuditError):
    """A quantity is undefined on the data given (one class only, too few groups). The message says what is missing."""


class EvidenceError(MiAuditError):
    """Evidence can't be written, read or trusted. The message names the file; nothing half-written is left behind."""


class RenderError(EvidenceError):
    """A report could not be made. The evidence beside it is whole; mend what the message names and render it again with `mi-audit report`."""


class PluginError(MiAuditError):
    """A plugin can't be used. The message names it and its distribution; mend it, uninstall it, or run with --audit-no-plugins."""


class MissingDependencyError(MiAuditError):
    """An optional dependency is absent. The message gives the install command."""


class InconclusiveError(MiAuditError):
    """The truth value of an inconclusive claim was asked for: the data decide neither way. Collect as many prompts as the message says."""


class ClaimComparisonError(MiAuditError, TypeError):
    """An estimate was compared in a way that is no claim (`==`, with another estimate, with a value that can't be decided)."""
