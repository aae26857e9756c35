"""The tests, one folder a room of the package; tests/postfix runs against a real Postfix."""
