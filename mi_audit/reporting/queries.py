"""The query behind a claim: SQL that anyone can run on the bundle's Parquet to get the claimed value again."""

from typing import Final

from mi_audit.evidence.records import ClaimRecord

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
_ROWS: Final = 'SELECT prompt, "group", label, value, threshold\n{source}\nORDER BY value DESC'


def query(claim: ClaimRecord) -> str:
    """SQL (DuckDB's, run in the bundle's folder) that gives the claim's point estimate; of a quantity that is unknown here, the rows it rests on.

    The effect size uses the common approximation of Hedges's correction, and so agrees to about four digits.
    """
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
