"""Numbers in words."""

from collections.abc import Iterable


def ranges(numbers: Iterable[int]) -> str:
    """`0-5, 7` for 0 to 5 and 7, given in ascending order."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
