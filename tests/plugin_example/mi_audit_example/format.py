"""`.tsv` suites: a header, then a row a line, cells apart by tabs; every cell is text, and an empty one is none."""

from mi_audit.suites.problems import Place, Problem
from mi_audit.suites.rows import Rows, decode


def tsv(source, data, dropped, report):
    place = Place(source, "line")
    text = decode(place, data, report)
    return Rows(place, iter(()) if text is None else _rows(place, text, dropped, report), untyped=True)


def _rows(place, text, dropped, report):
    header, *lines = text.splitlines()
    names = header.split("\t")
    for number, line in enumerate(lines, 2):
        cells = line.split("\t")
        if len(cells) == len(names):
            yield number, {name: cell or None for name, cell in zip(names, cells, strict=True) if name not in dropped}
        else:
            report(Problem("error", place.at(number), f"has {len(cells)} cells where the header has {len(names)}", "add or remove tabs"))
