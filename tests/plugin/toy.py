"""An audit file on a small random model. The label shows in the last character, so the probe reads it; `hidden` is a label that shows nowhere."""

TOY = """
import mi_audit as mi

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jetty"]
rows = [
    {"id": f"{g}-{k}-{side}", "text": f"{WORDS[g % 10]} {g} {'abcdefgh'[(g * 7 + k * 3) % 8]} says{mark}", "label": side, "group": f"g{g}"}
    for g in range(80) for k in range(2) for side, mark in (("yes", "!"), ("no", "."))
]
toy = mi.suite(rows, positive="yes", name="toy")
hidden = mi.suite([dict(row, label=["yes", "no"][hash_ % 2]) for hash_, row in enumerate(rows[:-1:2] + rows[1::2])], positive="yes", name="hidden")
quiet = mi.suite([dict(row, label=None) for row in rows if row["label"] == "no"], name="quiet")
probe = mi.probe("toy", method="difference_of_means", at=mi.at("resid_post", depth=0.5), fit=toy["train"],
                 threshold=mi.false_positive_rate(0.05, on=toy["calibration"]))
"""
