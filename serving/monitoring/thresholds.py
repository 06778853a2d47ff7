"""Where evidence is enough for an alert or a reaction. `deploy/prometheus/rules` has the same."""

PROOF = 3.0
"""Evidence at which ForgottenClassRecognised fires."""
SUSPICION = 5.0
"""Detector at which LeakSuspected fires."""
