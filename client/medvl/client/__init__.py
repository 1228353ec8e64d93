"""Client library and command line of a MedVL-SAM2 service."""
