"""What stock loaders cannot take, as receipts warn of it: transformers 4.57 by families' [[caveats]], both transformers by the rules of engines."""
LIMIT = "transformers before 5"  # begins a warning of what must fail there; without one nothing may
REFUSED = "transformers {version} does not take it: "  # begins a warning of a quantized result that must fail there


def older_cannot(receipt):
    """Why 4.57 must fail on this result; empty if it must not."""
    return "; ".join(warning for warning in receipt["warnings"] if warning.startswith(LIMIT))


def refuses(receipt, version):
    """Why this version of transformers must fail on this quantized result; empty if it must not."""
    return "; ".join(warning for warning in receipt["warnings"] if warning.startswith(REFUSED.format(version=version)))
