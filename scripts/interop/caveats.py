"""What stock loaders cannot take, as receipts say it: transformers 4.57 by families' [[caveats]], both transformers by the rules of engines."""
FAILING = {"sliding-window", "head-dim", "score-scale", "biased-dense"}  # what must fail there; without one nothing may


def older_cannot(receipt):
    """Why 4.57 must fail on this result; empty if it must not."""
    return "; ".join(reason for reason in receipt.get("caveats", []) if reason in FAILING)


def refuses(receipt, version):
    """Why this version of transformers must fail on this quantized result; empty if it must not."""
    engines = [engine for engine in receipt.get("engines", []) if engine["engine"] == f"transformers {version}"]
    return "; ".join(engine["says"] for engine in engines if engine["answer"] == "refuses")
