"""What tables write where they know nothing; one list for manifests, truth, covariates and predictions."""

MISSING = frozenset({"", "na", "n/a", "nan", "<na>", "null"})  # "none" is a word: no tumour, a grade


def said(text: str | None) -> str:
    """The text without spaces around it, "" where it is one of MISSING in any case, or None."""
    text = (text or "").strip()
    return "" if text.casefold() in MISSING else text
