"""Hydra's configuration files, as package data; there is no code here."""
