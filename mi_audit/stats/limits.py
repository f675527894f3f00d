"""Where the intervals were validated; outside, an estimate decides nothing. The table is tests/coverage/coverage.csv."""

from typing import Final

LEAST_GROUPS: Final = 10  # of an AUROC, or of a rate of grouped outcomes
LEAST_GROUPS_OF_MEANS: Final = 20  # of a mean or a difference
MOST_PARTS: Final = 12  # of the least of several means
LEAST_ALPHA: Final = 0.005
MOST_ALPHA: Final = 0.1
ASSUMED_ICC: Final = 0.3  # within-group correlation taken where the data are too few to estimate it
TELLING_GROUPS: Final = 15.0  # groups x (share of the rarer outcome) up to which it is taken whole; it fades in inverse proportion beyond

MOST_SKEWNESS: Final = 0.4  # of the distribution of a mean or a difference


def least_groups(quantity: str, n: int, groups: int) -> int:
    """The fewest groups on which `quantity` can be decided, for data like these `n` rows in `groups` groups."""
    if quantity in ("rate", "recall", "accuracy", "capability_change") and n == groups:
        return 1
    return LEAST_GROUPS if quantity in ("rate", "recall", "accuracy", "auroc") else LEAST_GROUPS_OF_MEANS


def unvalidated(quantity: str, n: int, groups: int, alpha: float) -> tuple[str, ...]:
    """The reasons against deciding at this size and level, if any."""
    least = least_groups(quantity, n, groups)
    reasons = []
    if groups < least:
        reasons.append(f"{groups} groups: the interval of {quantity} is validated from {least} up")
    if least > 1 and not LEAST_ALPHA <= alpha <= MOST_ALPHA:
        reasons.append(f"alpha = {alpha:g}: the interval of {quantity} is validated for alpha from {LEAST_ALPHA:g} to {MOST_ALPHA:g}")
    return tuple(reasons)
