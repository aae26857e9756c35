"""How the running milter is doing, asked on a real host."""

from __future__ import annotations

import json

import pytest

from tests.postfix.harness import SITE_RULES, Site, message

pytestmark = [pytest.mark.root, pytest.mark.postfix]

RULES = 'rules:\n  - name: offers\n    if: {subject: {contains: offer}}\n    then: {reject: "5.7.3 no offers"}\n'


def test_status(site: Site) -> None:
    """`milterapp status` counts what came through Postfix, and names the rules in use and a reload that was refused."""
    site.site_rules(RULES)
    assert site.send(message("hello")).code == 250
    assert site.send(message("an offer")).code == 550
    site.settle()

    def status() -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = json.loads(site.milterapp("status", "--json", check=True).stdout)
        return found

    site.wait(lambda: {"none", "reject"} <= set(status()["messages"]), "the messages to be counted", 20)
    assert status()["messages"]["reject"] == 1
    SITE_RULES.write_text("rules: none\n")
    try:
        assert site.milterapp("reload").returncode == 65
    finally:
        SITE_RULES.write_text(RULES)
    assert status()["reload"]["done"] is False
    shown = site.milterapp("status", check=True).stdout.decode()
    assert "rules: 1 of /etc/milterapp/rules.yaml, loaded " in shown
    assert "refused, the rules from before stay" in shown


def test_status_is_not_for_everybody(site: Site) -> None:
    """Somebody else than root and the milter's account learns nothing, and hears why."""
    done = site.milterapp("status", user="bob")
    assert done.returncode == 77
    assert b"only root and its account may" in done.stderr


def test_status_of_no_milter(site: Site) -> None:
    """Where none runs, that is said, exit 69."""
    site.stop_service("milter")
    try:
        done = site.milterapp("status")
    finally:
        site.start_service("milter")
    assert done.returncode == 69
    assert b"no milter runs" in done.stderr
