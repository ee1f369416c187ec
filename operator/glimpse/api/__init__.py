"""The kinds that people write, as models; the CRDs are made from them."""
