"""Measurements of the other rooms: throughput against a floor, recovery from kills, memory over long runs."""
