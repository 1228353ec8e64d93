"""The sentences that results carry: every one, and those that are not whole."""

DISCLAIMER = "Not for diagnosis: research software, not a medical device; check every statement and every mask."
CUT_OFF = (
    "The text of the service was cut off at the limit of its length: what comes after its last word, findings perhaps, "
    "is missing."
)
