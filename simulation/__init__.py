"""Deterministic simulation: the shipped code under virtual time and every fault, with a seed that replays."""
