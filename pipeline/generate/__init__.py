"""Responses sampled offline, for datasets of what a teacher or a student says itself: `mta-prep generate`."""
