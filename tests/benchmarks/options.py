"""What every benchmark can be told on its command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from mi_audit.config import DEFAULT_MODEL, DTYPES

QUICK_PROMPTS = 24


@dataclass(frozen=True)
class Options:
    """Settings of one benchmark run; `quick` judges no speed."""

    model: str
    device: str
    dtype: str
    prompts: int
    repeats: int
    lengths: str
    quick: bool
    linear: bool = False
    peer_strengths: int = 0
    row: str = ""

    @property
    def command(self) -> list[str]:
        """The settings as arguments, for a process of its own."""
        values = {"model": self.model, "device": self.device, "dtype": self.dtype, "prompts": self.prompts, "repeats": self.repeats, "lengths": self.lengths}
        return [f"--{name}={value}" for name, value in values.items()] + (["--quick"] if self.quick else [])


def parser(description: str, *, prompts: int, repeats: int = 3) -> argparse.ArgumentParser:
    """The options that all benchmarks share; `prompts` and `repeats` are the benchmark's own defaults."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", metavar="REF", default=DEFAULT_MODEL, help="as --audit-model of pytest")
    made.add_argument("--device", default="auto", help="as --audit-device of pytest")
    made.add_argument("--dtype", choices=DTYPES, default="auto")
    made.add_argument("--prompts", metavar="N", type=int, default=prompts, help=f"default {prompts}")
    made.add_argument("--repeats", metavar="R", type=int, default=repeats, help=f"default {repeats}")
    made.add_argument("--lengths", choices=("mixed", "shipped"), default="mixed", help="log-normal lengths, or the shipped suites' prompts as they are")
    made.add_argument("--quick", action="store_true", help=f"{QUICK_PROMPTS} short prompts, one repeat, no speed judged")
    return made


def options(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Options:
    """Read the command line."""
    given = vars(made.parse_args(arguments))
    if given["quick"]:
        given |= {"prompts": QUICK_PROMPTS, "repeats": 1}
    if given["prompts"] < QUICK_PROMPTS or given["repeats"] < 1:
        made.error(f"give at least {QUICK_PROMPTS} prompts and 1 repeat")
    return Options(**given)
