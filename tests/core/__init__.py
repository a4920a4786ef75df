"""Tests of what all packages stand on."""
