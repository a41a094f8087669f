"""Stochastic variational inference on any pair."""
