"""Compares finished runs: groups over seeds, tables and figures."""
