"""How much evidence is enough for an alert or a reaction; as in `deploy/prometheus/rules`."""

PROOF = 3.0
"""log10 of the e-value at which the alert ForgottenClassRecognised fires."""
SUSPICION = 5.0
"""log10 of the detector at which the alert LeakSuspected fires."""
