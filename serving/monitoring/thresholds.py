"""Where evidence is enough for an alert or a reaction. `deploy/prometheus/rules` has the same, and
`tests/unit/test_alert_limits.py` holds them together."""

PROOF = 3.0
"""Evidence at which ForgottenClassRecognised fires."""
SUSPICION = 5.0
"""Detector at which LeakSuspected fires."""
