"""`--audit-format verdicts`: report.txt, a line an audit."""

from mi_audit.evidence import store


def verdicts(folder):
    run = store.read(folder).run
    return "".join(f"{audit.verdict}\t{audit.id}\n" for audit in run.audits).encode()
