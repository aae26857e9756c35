"""Long proofs, each a command of its own with figures at its end; the suite runs a short, fixed part of each."""
