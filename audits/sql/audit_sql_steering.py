"""Does the model write SQL for the latent that reads it?"""

import mi_audit as mi

answers = mi.suite("suites/sql_questions.jsonl", positive="sql")
asked = mi.suite("suites/sql_asked.jsonl")
unseen = mi.concat(asked["calibration"], asked["test"], name="sql_asked_apart").one_per_group()

sql = mi.latent(mi.sae("smollm2-135m-instruct-resid_post-15"), 2199, name="sql", tokens="response", found_on=answers["train"])


@mi.audit(about="instrument", title="The latent drives SQL")
def audit_latent_drives_sql(model):
    """Held while an answer is written at what it reaches in answers in SQL, it makes the right query likelier than other latents that fire as often do."""
    sweep = model.steer(sql, on=unseen, strengths=(0.5, 1), effect=mi.effects.log_likelihood("gold"))
    assert sweep.at(1).change() > sweep.at(1).null.change()
    assert sweep.at(1).side_effects().kl() <= 0.25
