"""Tomczak & Welling's experiment: its data, networks, rows and table."""
