"""The report: a run as a page. Knows how figures look, and takes every number from a run; computes and simulates nothing."""
