"""What the example adds; each hook's functions are in a module of their own, imported when first used."""

from mi_audit.hookspecs import Renderer, hookimpl


@hookimpl
def mi_audit_model_sources():
    return {"shelf": _shelf}


@hookimpl
def mi_audit_suite_formats():
    return {".tsv": _tsv}


@hookimpl
def mi_audit_probe_methods():
    return {"difference_of_medians": _difference_of_medians}


@hookimpl
def mi_audit_effects():
    return {"entropy": _entropy}


@hookimpl
def mi_audit_renderers():
    return {"verdicts": Renderer("report.txt", _verdicts)}


def _shelf(name, steps):
    from mi_audit_example.source import shelf

    return shelf(name, steps)


def _tsv(source, data, dropped, report):
    from mi_audit_example.format import tsv

    return tsv(source, data, dropped, report)


def _difference_of_medians(acts, labels, groups):
    from mi_audit_example.method import DifferenceOfMedians

    return DifferenceOfMedians(acts)


def _entropy(spec, tokenize):
    from mi_audit_example.effect import entropy

    return entropy(spec)


def _verdicts(folder):
    from mi_audit_example.renderer import verdicts

    return verdicts(folder)
