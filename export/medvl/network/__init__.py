"""The torch reference of MedVL-SAM2."""
