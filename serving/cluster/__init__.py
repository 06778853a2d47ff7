"""Starts Ray, its actors and the ingress; all that depends on how Ray works inside is here."""
