"""Frames into numbers: what a run's rows say of its clients and its model. Writes nothing and draws nothing."""
