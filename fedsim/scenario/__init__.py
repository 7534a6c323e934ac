"""The scenario file: its schema, the errors a reader gets, and what is built from it."""
