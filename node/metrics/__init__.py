"""Prometheus metrics of a node: listeners that count, and collectors that read when they are scraped."""
