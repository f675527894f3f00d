"""Does a latent stand for SQL, and not for talk about databases?"""

import mi_audit as mi

answers = mi.suite("suites/sql_questions.jsonl", positive="sql")
prose = mi.suite("suites/database_prose.jsonl", label=False)
unlike_sql = mi.concat(answers["calibration"], prose["calibration"], name="answers_and_prose")

sql = mi.latent(
    mi.sae("smollm2-135m-instruct-resid_post-15"),
    2199,
    name="sql",
    tokens="response",
    threshold=mi.false_positive_rate(0.02, on=unlike_sql),
    found_on=answers["train"],
)


@mi.audit(about="instrument", title="The latent reads SQL")
def audit_latent_reads_sql(model):
    """It tells answers in SQL from answers in prose to the same questions, about databases that took no part in finding it."""
    reading = model.read(sql, answers["test"])
    assert reading.auroc() >= 0.90
    assert reading.recall() >= 0.80
    reading.attribute()


@mi.audit(about="instrument", title="The latent is quiet on prose about databases")
def audit_latent_is_quiet_on_database_prose(model):
    """Prose that merely talks about tables, queries and SQL rarely sets it off."""
    assert model.read(sql, mi.concat(prose["train"], prose["test"], name="database_prose_apart")).rate() <= 0.10
