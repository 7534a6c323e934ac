"""The run folder: what is written while a run goes, and how it is read back. Knows no score. The only place with a wall clock."""
