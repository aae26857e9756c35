"""Tests on a real Postfix, through the doors that mail takes."""
