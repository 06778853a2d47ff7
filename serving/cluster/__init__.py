"""All that leans on how Ray works inside: starting it, naming actors, the ingress."""
