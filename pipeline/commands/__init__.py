"""The commands as typed, one file each: flags to a config, a call, and what is shown."""
