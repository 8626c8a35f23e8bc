"""The instrument: contestants timed against each other, their peers and the physical limit.

In: workloads, contestants and a setting. Out: records, one JSON line for each contestant on each
workload, and reports made of them.

The one thing to know: this package imports no framework; every contestant is built, checked and
timed in a process of its own.
"""
