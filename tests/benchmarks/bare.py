"""The bare engine in a process of its own: load the model and read the suites of a folder at one site. `overhead.py` runs it."""

import json
import sys
from pathlib import Path
from time import monotonic

import mi_audit as mi

LABELLED, QUIET = "labelled.jsonl", "quiet.jsonl"


def main(project: Path, ref: str, device: str, dtype: str) -> None:
    """Read every prompt at the last token of resid_post at depth 0.5, and note when each step ended."""
    prompts = [prompt for name in (LABELLED, QUIET) for prompt in mi.suite(project / name)]
    marks = {"collected": monotonic()}
    from mi_audit.engine.capture import Site, capture  # torch is imported with the model, as in an audit
    from mi_audit.model.load import load
    from mi_audit.plan.places import Tokens

    model = load(ref, device=device, dtype=dtype)
    marks["loaded"] = monotonic()
    capture(model, prompts, [Site(mi.at("resid_post", depth=0.5).in_model(model.n_layers), Tokens("last"))])
    marks["read"] = monotonic()
    (project / "marks.json").write_text(json.dumps(marks), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
