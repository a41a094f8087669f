"""Finite mixtures as distributions: their density, draws and views. Pure; knows no model."""
