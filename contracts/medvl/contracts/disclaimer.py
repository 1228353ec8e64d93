"""The sentence that every result carries."""

DISCLAIMER = "Not for diagnosis: research software, not a medical device; check every statement and every mask."
