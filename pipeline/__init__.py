"""The stages and the `mta-prep` command: read -> parse -> align -> store. Imports `schemas`, never the other way."""
