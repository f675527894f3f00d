"""A place where prompts are read."""

from dataclasses import dataclass

from mi_audit.plan.places import At, Tokens


@dataclass(frozen=True, slots=True)
class Site:
    """A hook point, its layer absolute (`At.in_model`), and a selection of tokens. Raises ValueError for a relative depth."""

    at: At
    tokens: Tokens

    def __post_init__(self) -> None:
        if self.at.depth is not None:
            raise ValueError(f"{self.at}: a site needs an absolute layer; make it with at.in_model(n_layers)")

    def __str__(self) -> str:
        return f"{self.at}, {self.tokens}"
