"""Slide encoders."""
