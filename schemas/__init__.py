"""The contracts: what lies on disk and what a config may say. Imports neither `pipeline` nor `trainer`."""
