"""The record of a sparse autoencoder that testifies."""

from mi_audit.evidence.fields import Count, Digest, Name, Number, Record, Text


class SaeRecord(Record):
    """A sparse autoencoder, and how well it stands for the model's activations on the prompts of a reading or an experiment; each number with its lower bound,
    one-sided at the plan's alpha."""

    name: Name
    """What its folder is called."""
    digest: Digest
    """SHA-256 over the digests of its files."""
    architecture: Name
    """How it encodes, as sae-lens calls it."""
    width: Count
    """How many latents it has."""
    latents: tuple[Count, ...]
    """Those that the detector is made of."""
    combine: Name
    """How several become one number at a token: `sum`, `max` or `any`."""
    pooling: Name
    """How the numbers of several tokens become that of their prompt: `mean` or `max`."""
    trained_on: Name | None
    """The model that its metadata name; absent where they are silent."""
    reconstructs: Name | None
    """The hook point whose activations it makes, where that is not the one that the detector reads: of a transcoder."""
    published: dict[Name, Number]
    """Numbers that its metadata give of its quality, by their own names."""
    prompts: Count
    """Prompts of the suite on which it was measured."""
    tokens: Count
    """Their tokens, attention sinks left out."""
    explained_variance: Number
    """Share of the activations' variance that it explains on them."""
    explained_variance_low: Number | None
    """Its lower bound; absent where the prompts come in one group."""
    explained_variance_floor: Number
    """What that bound must reach."""
    latents_explain: Number | None
    """Of what is left on them with all latents silent, the share that the latents explain; absent where all but a bias is theirs."""
    latents_explain_low: Number | None
    """Its lower bound; the floor is that of the explained variance."""
    l0: Number
    """How many latents fire at a token, on average."""
    norm_ratio: Number
    """Length of a reconstruction over that of its activation, on average."""
    neutral_explained_variance: Number
    """As on the prompts, on neutral text."""
    neutral_tokens: Count
    """Tokens of the neutral text."""
    dead: Count
    """Latents that fire at none of them."""
    dense: Count
    """Latents that fire at more than a tenth of them."""
    loss_recovered: Number
    """Of the loss that the mean activation in its place costs the model on neutral text, the share that the reconstruction does not."""
    loss_recovered_low: Number | None
    """Its lower bound."""
    loss_recovered_floor: Number
    """What that bound must reach."""
    better_at: Name | None
    """The hook point at which it explains neutral text clearly better than where it is declared, where its metadata do not say where it belongs."""
    loss_recovered_zero: Number
    """The same against zeros in its place."""
    kl: Number
    """Divergence of the model's predictions with the reconstruction from those without, nats per token of neutral text."""
    below: tuple[Text, ...]
    """The floors that it does not reach, and where it is better placed, in words: no claim on the reading is decided then."""
