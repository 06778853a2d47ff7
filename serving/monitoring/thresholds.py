"""How much evidence is enough for an alert or a reaction; as in `deploy/prometheus/rules`, which
`tests/unit/test_alert_limits.py` checks."""

PROOF = 3.0
"""log10 of the e-value at which the alert ForgottenClassRecognised fires."""
SUSPICION = 5.0
"""log10 of the detector at which the alert LeakSuspected fires."""
