"""Executors: who computes the tasks that are due. Knows no cohort, no clock and no message."""
