"""What an SAE's cfg.json says of it, in sae-lens's format of version 6 and the flat one before it. Untrusted; no torch.

Facts of the format are those of sae-lens 6 (`sae_lens.saes`, `sae_lens.loading.pretrained_sae_loaders`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from mi_audit.errors import PlanError
from mi_audit.plan.digest import Json
from mi_audit.plan.sae_settings import SettingError, Settings, Whole, settings_of

Architecture = Literal["standard", "gated", "jumprelu", "topk", "abstopk", "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
"""Those whose encoder is one matrix product and an activation: read straight from their files."""

Normalisation = Literal["none", "layer_norm", "constant_norm_rescale", "constant_scalar_rescale"]

_LARGEST: Final = 2**24


@dataclass(frozen=True)
class SaeMetadata:
    """Where an SAE was trained, as far as its file says; None where it is silent.

    Attributes:
        model_name: as TransformerLens calls the model.
        hook_name: TransformerLens's name of the hook point that it encodes.
        hook_name_out: of the one that it reconstructs, where that is another (transcoders).
        hf_hook_name, hf_hook_name_out: transformers' names of both, where the file gives them.
        prepend_bos: whether each text of its training began with a BOS token.
        context_size: tokens of a text of its training.
        centred: whether it was trained on a residual stream whose mean over the width was taken out (`center_writing_weights`).
        neuronpedia_id: `model/sae`, where Neuronpedia shows its latents.
        quality: numbers that its maker published with it, by their own names.
    """

    model_name: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    hf_hook_name: str | None = None
    hf_hook_name_out: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    centred: bool = False
    neuronpedia_id: str | None = None
    quality: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class SaeConfig:
    """How an SAE encodes `d_in` numbers into `d_sae` latents and decodes them into `d_out`; `k` of them at most where only so many may fire."""

    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    k: int | None
    subtracts_decoder_bias: bool
    normalisation: Normalisation
    rescales_by_decoder_norm: bool
    metadata: SaeMetadata
    settings: Settings = ()

    @property
    def is_transcoder(self) -> bool:
        """Whether what it reconstructs is not what it encodes."""
        return self.architecture.endswith("transcoder")

    @property
    def is_whole(self) -> bool:
        """Whether sae-lens's own class encodes and decodes."""
        return self.architecture in get_args(Whole)

    @property
    def is_tied(self) -> bool:
        """Whether its encoder is its decoder, transposed, and its file holds the one alone."""
        return self.architecture == "matching_pursuit" or dict(self.settings).get("tied_weights") is True

    @property
    def is_contextual(self) -> bool:
        """Whether the latents of a token depend on the tokens before it in its prompt."""
        return self.architecture == "temporal"

    @property
    def factor(self) -> float:
        """What activations are multiplied with where they are rescaled by a constant."""
        value = dict(self.settings).get("activation_normalization_factor", 1.0)
        assert isinstance(value, float)
        return value

    @property
    def has_bypass(self) -> bool:
        """Whether what it reconstructs comes in part from what no latent stands for: a skip, a prediction from earlier tokens, or the activation's own mean or
        scale, which a normalisation takes out and gives back."""
        given_back = not self.is_transcoder and (self.normalisation not in ("none", "constant_scalar_rescale") or self.metadata.centred)
        return self.is_contextual or "skip" in self.architecture or given_back

    @property
    def selectable(self) -> bool:
        """Whether a latent's value needs no other latent, so that selected columns of the encoder give it exactly."""
        return self.architecture in get_args(Architecture) and self.k is None

    def describe(self) -> dict[str, Json]:
        """JSON-ready description."""
        shown = self.metadata
        described: dict[str, Json] = {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "d_out": self.d_out,
            "k": self.k,
            "subtracts_decoder_bias": self.subtracts_decoder_bias,
            "normalisation": self.normalisation,
            "rescales_by_decoder_norm": self.rescales_by_decoder_norm,
            "model_name": shown.model_name,
            "hook_name": shown.hook_name,
            "hook_name_out": shown.hook_name_out,
            "prepend_bos": shown.prepend_bos,
            "context_size": shown.context_size,
            "centred": shown.centred,
            "neuronpedia_id": shown.neuronpedia_id,
            "quality": dict(shown.quality),
        }
        return described | {"settings": dict(self.settings)} if self.settings else described


def parse(content: bytes, where: str) -> SaeConfig:
    """Read the bytes of a cfg.json; `where` names the file in messages.

    Raises:
        PlanError: it is no SAE's, of an architecture that is not known, or asks for what can't be computed from the weights beside it.
    """
    return _Reader(_object(content, where), where).config()


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise PlanError(f"{where} holds no JSON object; give the folder that sae-lens's save_model wrote")
    return value


class _Reader:
    """One cfg.json, field by field."""

    def __init__(self, given: Mapping[str, Any], where: str) -> None:
        metadata = given.get("metadata")
        self._flat = not isinstance(metadata, dict)
        self._given, self._where = given, where
        self._metadata: Mapping[str, Any] = metadata if isinstance(metadata, dict) else given

    def config(self) -> SaeConfig:
        architecture, k = self._architecture()
        if self._given.get("finetuning_scaling_factor"):
            raise self._flaw(
                "finetuning_scaling_factor", "its latents are scaled by factors that sae-lens 6 no longer reads; load it there once and save it again"
            )
        transcoder = architecture.endswith("transcoder")
        subtracts = self._flag("apply_b_dec_to_input", default=not transcoder)
        if transcoder and subtracts:
            raise self._flaw("apply_b_dec_to_input", "a transcoder's decoder bias belongs to another hook point and is not subtracted; set it to false")
        if self._text("reshape_activations", self._given) not in (None, "none", "hook_z"):
            raise self._flaw("reshape_activations", "known are 'none' and 'hook_z'")
        if self._metadata.get("hook_head_index") is not None:
            raise self._flaw("hook_head_index", "an SAE of a single attention head can't be read; only those of all heads of a layer can")
        d_in = self._count("d_in")
        d_sae = self._count("d_sae")
        if k is not None and k > d_sae:
            raise self._flaw("k", f"more than its {d_sae} latents")
        return SaeConfig(
            architecture=architecture,
            d_in=d_in,
            d_sae=d_sae,
            d_out=self._count("d_out") if transcoder else d_in,
            k=k,
            subtracts_decoder_bias=subtracts,
            normalisation=self._normalisation(architecture),
            rescales_by_decoder_norm=k is not None and self._flag("rescale_acts_by_decoder_norm", default=False),
            metadata=self._described(),
            settings=self._settings(architecture, d_sae),
        )

    def _settings(self, architecture: str, d_sae: int) -> Settings:
        try:
            return settings_of(architecture, self._given, d_sae)
        except SettingError as error:
            raise self._flaw(error.field, str(error)) from error

    def _architecture(self) -> tuple[str, int | None]:
        name = self._text("architecture", self._given)
        activation = self._given.get("activation_fn", self._given.get("activation_fn_str"))
        arguments = self._given.get("activation_fn_kwargs")
        if self._flat:
            name = name or "standard"
            if activation == "topk" and isinstance(arguments, dict) and arguments.get("k") is not None:
                return "topk", self._count("k", arguments)
            if activation not in (None, "relu"):
                raise self._flaw("activation_fn", f"{activation!r} is not known; known are 'relu' and 'topk'")
        if name in ("topk", "abstopk"):
            return name, self._count("k")
        if name not in (known := (*get_args(Architecture), *get_args(Whole))):
            raise self._flaw("architecture", f"{name!r} can't be read; what can is {', '.join(known)}")
        assert name is not None
        return name, None

    def _normalisation(self, architecture: str) -> Normalisation:
        given = self._given.get("normalize_activations")
        if given in (None, False):
            return "none"
        for known in get_args(Normalisation):
            if given == known and (known != "constant_scalar_rescale" or architecture == "temporal"):
                return known  # type: ignore[no-any-return]
        if given is True or given == "expected_average_only_in":
            raise self._flaw(
                "normalize_activations",
                "it was trained on activations scaled by a factor that its file does not hold; fold the factor into the weights"
                " (sae-lens: fold_activation_norm_scaling_factor) and save it again",
            )
        if given == "covariance_whitening":
            raise self._flaw(
                "normalize_activations",
                "it was trained on whitened activations and the matrix is not in its file; fold it (sae-lens: fold_activation_whitening) and save it again",
            )
        raise self._flaw("normalize_activations", f"{given!r} is not known")

    def _described(self) -> SaeMetadata:
        kwargs = self._metadata.get("model_from_pretrained_kwargs")
        published = {**self._given, **self._metadata}
        names = ("explained_variance", "l0", "ce_loss_score", "num_dead_features", "loss_recovered")
        quality = tuple((name, float(published[name])) for name in names if _is_number(published.get(name)))
        context = self._metadata.get("context_size")
        prepend = self._metadata.get("prepend_bos")
        return SaeMetadata(
            model_name=self._text("model_name", self._metadata),
            hook_name=self._text("hook_name", self._metadata) or self._text("hook_point", self._metadata),
            hook_name_out=self._text("hook_name_out", self._metadata),
            hf_hook_name=self._text("hf_hook_name", self._metadata),
            hf_hook_name_out=self._text("hf_hook_name_out", self._metadata),
            prepend_bos=prepend if isinstance(prepend, bool) else None,
            context_size=context if isinstance(context, int) and not isinstance(context, bool) and context > 0 else None,
            centred=isinstance(kwargs, dict) and kwargs.get("center_writing_weights") is True,
            neuronpedia_id=self._text("neuronpedia_id", self._metadata),
            quality=quality,
        )

    def _text(self, name: str, where: Mapping[str, Any]) -> str | None:
        value = where.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > 500:
            raise self._flaw(name, "it is no text, or a very long one")
        return value

    def _flag(self, name: str, *, default: bool) -> bool:
        value = self._given.get(name, default)
        if not isinstance(value, bool):
            raise self._flaw(name, f"{value!r} is neither true nor false")
        return value

    def _count(self, name: str, where: Mapping[str, Any] | None = None) -> int:
        value = (self._given if where is None else where).get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise self._flaw(name, f"{value!r} is no whole number from 1 to {_LARGEST}")
        return value

    def _flaw(self, field: str, why: str) -> PlanError:
        return PlanError(f"{self._where}: {field}: {why}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
