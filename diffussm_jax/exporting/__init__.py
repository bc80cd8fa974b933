"""Exports that other programs than this one draw from."""
