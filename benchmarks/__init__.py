"""Measurements of the other packages: throughput against a floor, recovery from kills, memory over long runs."""
