"""What an agent is told of the site's settings."""

from __future__ import annotations

import dataclasses
import json

import pytest

from milterapp.delivery.agent_settings import AgentSettings
from milterapp.delivery.submit_policy import SubmitPolicy
from milterapp.mail.limits import Limits
from milterapp.settings import DeliverySettings, Settings, SubmitSettings


def test_every_part_comes_from_the_site() -> None:
    """What the site sets reaches the agent, also by way of JSON, and its limits are those of reading mail."""
    delivery = DeliverySettings(
        keep="maildir", personal_rules="/etc/people.yaml", maildir="mail", broken_rules="keep",
        recipient_delimiter="-", deadline=5.0,
    )  # fmt: skip
    site = dataclasses.asdict(Settings(delivery=delivery, limits=Limits(mime_parts=7), authserv_ids=("mx.example",)))
    settings = AgentSettings.from_site(json.loads(json.dumps(site)))
    assert (settings.personal_rules, settings.maildir, settings.broken_rules) == ("/etc/people.yaml", "mail", "keep")
    assert (settings.delimiter, settings.deadline, settings.keep) == ("-", 5.0, "maildir")
    assert settings.authserv_ids == ("mx.example",)
    assert Limits(**settings.limits) == Limits(mime_parts=7)
    assert AgentSettings.from_json(settings.to_json()) == settings


def test_the_defaults_are_the_sites() -> None:
    """Without settings an agent has the defaults that milterapp.yaml(5) names."""
    assert dataclasses.replace(AgentSettings.from_site(dataclasses.asdict(Settings())), limits={}) == AgentSettings()


@pytest.mark.parametrize(("deadline", "working"), [(1.0, 5 / 6), (12.0, 10.0), (60.0, 50.0), (120.0, 110.0)])
def test_what_rules_run_leaves_time_to_carry_out(deadline: float, working: float) -> None:
    """A sixth of the deadline, and no more than ten seconds."""
    assert AgentSettings(deadline=deadline).working == pytest.approx(working)


def test_submit_gets_its_part() -> None:
    """What the site sets under `submit` reaches it, with the delimiter and the limits."""
    delivery, submit = DeliverySettings(keep="lmtp:unix:/y"), SubmitSettings(forwards=2, state="/x")
    site = dataclasses.asdict(Settings(delivery=delivery, submit=submit, limits=Limits(header_bytes=9)))
    policy = SubmitPolicy.from_site(json.loads(json.dumps(site)))
    assert (policy.forwards, policy.state, policy.limits.header_bytes, policy.delimiter) == (2, "/x", 9, "+")
    assert policy.keep == "lmtp:unix:/y"


@pytest.mark.parametrize("text", ["", "[]", "null", '{"colour": "red"}'])
def test_anything_else_is_no_settings(text: str) -> None:
    """A text that is no settings is an error."""
    with pytest.raises((ValueError, TypeError)):
        AgentSettings.from_json(text)
