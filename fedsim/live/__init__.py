"""A run while it goes, as a person sees it: a panel on a terminal, a few lines elsewhere; of this process, or of another's folder."""
