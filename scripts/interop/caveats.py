"""What transformers 4.57 cannot take: families' [[caveats]], which come as warnings in receipts."""
LIMIT = "transformers before 5"  # begins a warning of what must fail there; without one nothing may


def older_cannot(receipt):
    """Why 4.57 must fail on this result; empty if it must not."""
    return "; ".join(warning for warning in receipt["warnings"] if warning.startswith(LIMIT))
