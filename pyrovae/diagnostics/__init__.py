"""Measures of a trained pair, each with its standard error."""
