"""Logistic regression in scikit-learn, under a strategy of its own."""
