"""A scenario on real Flower clients: the app that a SuperLink runs, and what starts one here. Knows no virtual time."""
