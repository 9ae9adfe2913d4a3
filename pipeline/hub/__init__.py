"""Pushing to the Hub: what of a folder goes there (`contents`), the card that it gets (`card`), and the transfer (`pushing`)."""
