"""Tests: they mirror the packages, and judge by oracles that share no code with them."""
