"""Glimpse manages virtual-machine images as Kubernetes custom resources."""
