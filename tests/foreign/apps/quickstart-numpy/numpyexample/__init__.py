"""A linear model in NumPy, with client mods."""
