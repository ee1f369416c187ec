"""Serves the bytes; the part of Glimpse that consumers talk to."""
