"""The query behind a claim: SQL that anyone can run on the bundle's Parquet to get the claimed value again."""

from typing import Final

from mi_audit.evidence.experiments import AS_IT_IS, ExperimentRecord, condition
from mi_audit.evidence.records import ClaimRecord
from mi_audit.stats.claim import EFFECTS

_SHARE: Final = "avg(CASE WHEN {} THEN 1.0 ELSE 0.0 END)"
_PLAIN: Final = {
    "rate": ("", _SHARE.format("value > threshold")),
    "recall": (" AND label", _SHARE.format("value > threshold")),
    "accuracy": ("", _SHARE.format("(value > threshold) = label")),
    "mean": ("", "avg(value)"),
    "mean_difference": ("", "avg(value) FILTER (WHERE label) - avg(value) FILTER (WHERE NOT label)"),
}
_AUROC: Final = """\
WITH ranked AS (
  SELECT label, rank() OVER (ORDER BY value) + (count(*) OVER (PARTITION BY value) - 1) / 2.0 AS place
  {source}
), counted AS (
  SELECT sum(place) FILTER (WHERE label) AS places, count(*) FILTER (WHERE label) AS p, count(*) FILTER (WHERE NOT label) AS q FROM ranked
)
SELECT (places - p * (p + 1) / 2.0) / (p * q) AS auroc FROM counted"""
_PAIRED: Final = """\
SELECT avg(difference) AS paired_difference FROM (
  SELECT avg(value) FILTER (WHERE label) - avg(value) FILTER (WHERE NOT label) AS difference
  {source}
  GROUP BY pair
)"""
_EFFECT: Final = """\
WITH counted AS (
  SELECT count(*) FILTER (WHERE label) AS p, count(*) FILTER (WHERE NOT label) AS q,
         avg(value) FILTER (WHERE label) AS a, avg(value) FILTER (WHERE NOT label) AS b,
         sum(value * value) FILTER (WHERE label) AS aa, sum(value * value) FILTER (WHERE NOT label) AS bb
  {source}
)
SELECT (1 - 3.0 / (4.0 * (p + q - 2) - 1)) * (a - b) / sqrt((aa - p * a * a + bb - q * b * b) / (p + q - 2)) AS effect_size FROM counted"""
_EFFECT_MEANS: Final = """\
WITH dose(condition, strength) AS (
  VALUES {doses}
), effect AS (
  SELECT condition, strength, {mean} AS mean
  FROM 'samples.parquet' JOIN dose USING (condition)
  WHERE measurement = '{measurement}' AND arm IN ({arms})
  GROUP BY condition, strength
)
"""
_OF_MEANS: Final = {
    "slope": "SELECT regr_slope(mean, strength) AS slope FROM effect",
    "change": "SELECT max(mean) FILTER (WHERE condition = '{at}') - max(mean) FILTER (WHERE condition = 'as it is') AS change FROM effect",
    "smallest_step": "SELECT min(step) AS smallest_step FROM (SELECT mean - lag(mean) OVER (ORDER BY strength) AS step FROM effect)",
    "sign_reversal": """\
SELECT least(max(mean) FILTER (WHERE condition = '{highest}') - max(mean) FILTER (WHERE condition = 'as it is'),
             max(mean) FILTER (WHERE condition = 'as it is') - max(mean) FILTER (WHERE condition = '{lowest}')) AS sign_reversal FROM effect""",
}
_SIDE: Final = "SELECT max(mean) FILTER (WHERE condition = '{at}') - max(mean) FILTER (WHERE condition = 'as it is') AS {quantity} FROM effect"
_ROWS: Final = 'SELECT prompt, "group", label, value, threshold\n{source}\nORDER BY value DESC'


def query(claim: ClaimRecord, experiment: ExperimentRecord | None = None) -> str:
    """SQL (DuckDB's, run in the bundle's folder) that gives the claim's point estimate; of a quantity that is unknown here, the rows it rests on.

    The effect size uses the common approximation of Hedges's correction, and so agrees to about four digits.

    Args:
        claim: the claim.
        experiment: what it rests on, where that is an experiment.
    """
    if experiment is not None and (claim.quantity in EFFECTS or claim.on is not None):
        return _of_experiment(claim, experiment)
    source = f"FROM 'samples.parquet' WHERE measurement = '{claim.reading}' AND arm = 'detector' AND condition = ''"
    match claim.quantity:
        case "auroc":
            return _AUROC.format(source=source)
        case "paired_difference":
            return _PAIRED.format(source=source)
        case "effect_size":
            return _EFFECT.format(source=source)
        case quantity if quantity in _PLAIN:
            where, expression = _PLAIN[quantity]
            return f"SELECT {expression} AS {quantity}\n{source}{where}"
        case _:
            return _ROWS.format(source=source)


def measurement_of(claim: ClaimRecord, experiment: ExperimentRecord | None) -> str:
    """What `samples.parquet` calls that on which a claim rests: a reading, an experiment, or a side effect of one."""
    curves = () if experiment is None or claim.on is None else experiment.side_effects
    return next((curve.id for curve in curves if (curve.quantity, curve.suite) == (claim.quantity, claim.on)), claim.reading)


def _of_experiment(claim: ClaimRecord, experiment: ExperimentRecord) -> str:
    """Every prompt is there at every strength, so that the quantity of the means over prompts is the mean over prompts."""
    at = "" if claim.strength is None else condition(claim.strength)
    if claim.quantity not in EFFECTS:
        of_two = ", ".join(f"('{name}', 0)" for name in (at, AS_IT_IS))
        return _EFFECT_MEANS.format(doses=of_two, mean="avg(value)", measurement=measurement_of(claim, experiment), arms="'detector'") + _SIDE.format(
            quantity=claim.quantity, at=at
        )
    strengths = [point.strength for point in experiment.points if point.failed is None]
    doses = {condition(strength): strength for strength in strengths}
    if experiment.origin or claim.quantity in ("change", "sign_reversal"):
        doses[AS_IT_IS] = 0.0
    arms, mean = ["'detector'"], "avg(value)"
    null = next((null for null in claim.nulls if null.decides), None)
    if claim.over_null and null is not None:
        arms.append(_quoted(f"null: {null.name}"))
        own, drawn = (f"avg(value) FILTER (WHERE arm = {arm})" for arm in arms)
        mean = f"{own} - coalesce({drawn}, {own})"
    means = _EFFECT_MEANS.format(
        doses=", ".join(f"('{condition}', {strength!r})" for condition, strength in doses.items()),
        mean=mean,
        measurement=experiment.id,
        arms=", ".join(arms),
    )
    ends = {"lowest": condition(strengths[0]), "highest": condition(strengths[-1])} if strengths else {"lowest": "", "highest": ""}
    return means + _OF_MEANS[claim.quantity].format(at=at, **ends)


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
