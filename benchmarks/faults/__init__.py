"""The fault matrix: what may go wrong, done on purpose, so many times, and what must hold afterwards.

    python -m benchmarks.faults [--row F4] [--rounds N] [--seed S]     (make faults)

A :class:`~benchmarks.faults.row.Row` is a fault, a criterion and a number of rounds; a round is a pure function of seed and number.
The tests run a sample of each row (``tests/benchmarks/test_faults.py``), the command all of them; docs/reliability.md is written by it.
"""
