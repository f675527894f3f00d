"""Speed and memory against peers, against a lower bound, and against ourselves: `python -m tests.benchmarks.NAME`.

Each prints a table and a closing line of JSON with its ratios, and exits 1 when a target is missed. Only ratios taken in one run count: machines differ and
are noisy, so what is compared runs in turn, several times, and medians are compared. `--quick` runs everything once on a few prompts: it checks that the values
agree and judges no speed.
"""
