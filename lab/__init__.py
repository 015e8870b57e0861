"""The lab: synthetic speech, small teachers, and what was learned with them. Not part of the package."""
