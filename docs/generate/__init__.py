"""Writes what is generated: pages of documentation, and the catalogue of timm's models."""
