"""Generates pages of the documentation, and the catalogue of timm's models."""
