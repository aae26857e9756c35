"""The state ERROR: what answers a message with which the function of another state failed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from milterapp.mail.limits import Limits
from milterapp.script.actions import Ask, Defer, Keep, Reply, Store
from milterapp.script.memory import Remembered
from milterapp.script.plan import DEFAULT, Failure, Plan, PlanError, decode, encode
from milterapp.script.run import run
from tests.script.sample import FILE, failed, job, planned

HEAD = """\
from milterapp.script import *

@route("{page}@{host}")
def START(mail, page, host):
    store["seen"] = 1
    mail.keep()
    FAULT
    return OPEN

@route("{page}@{host}")
def OPEN(mail, page, host):
    FAULT
"""
APOLOGY = """
@route("{page}@{host}")
def ERROR(mail, page, host):
    mail.reply(text=f"Sorry, {page} is broken")
"""


def application(error: str = APOLOGY, fault: str = "raise ValueError('no')") -> str:
    """Return an application whose functions fail so, and whose ERROR is this."""
    return HEAD.replace("FAULT", fault) + error


def test_it_answers_in_the_place_of_what_failed() -> None:
    """What the function asked for is thrown away, what ERROR asks for is done, and the next state is ERROR."""
    plan = planned(application())
    assert plan.actions == (Reply("Sorry, page is broken"),)
    assert plan.state == "ERROR"
    assert plan.failed is not None
    assert (plan.failed.kind, plan.failed.text) == ("ValueError", "no")
    assert ", in START\n" in plan.failed.trace


@pytest.mark.parametrize(
    ("error", "state"),
    [
        pytest.param("return OPEN", "OPEN", id="another state"),
        pytest.param("return START", "START", id="the first"),
        pytest.param("return ERROR", "ERROR", id="itself"),
        pytest.param("mail.keep()", "ERROR", id="nothing returned"),
    ],
)
def test_what_it_returns_is_the_next_state(error: str, state: str) -> None:
    """ERROR returns the next state, as every state's function does."""
    assert planned(application(f"{APOLOGY}    {error}\n")).state == state


def test_it_is_asked_again_until_it_returns_another() -> None:
    """A sender in the state ERROR is answered by it at once; the function that failed is not tried."""
    plan = planned(application(), Remembered(states={(): "ERROR"}))
    assert (plan.actions, plan.state, plan.failed) == ((Reply("Sorry, page is broken"),), "", None)


def test_a_deferral_leaves_the_state() -> None:
    """Where ERROR defers, the message comes again and meets the function that failed, mended by then."""
    plan = planned(application(APOLOGY.replace("reply(text=", "defer('4.3.0 ' + ")))
    assert (plan.actions, plan.state) == ((Defer("4.3.0", "Sorry, page is broken"),), "")
    assert plan.failed is not None


NOT_ASKED = {
    "there is none": "",
    "it answers elsewhere": APOLOGY.replace("{page}@{host}", "other@{host}")
    .replace("page, ", "")
    .replace("{page}", "it"),
}


@pytest.mark.parametrize("error", NOT_ASKED.values(), ids=NOT_ASKED)
def test_without_it_nothing_changes(error: str) -> None:
    """Where no ERROR answers at the address, the failure is the whole answer, as it always was."""
    found = failed(application(error))
    assert (found.kind, found.text) == ("ValueError", "no")


def test_a_stateless_function_has_none() -> None:
    """What answers whatever the state is has no state to fail into."""
    stateless = '@stateless\n@route("page@{host}")\ndef page(mail, host):\n    raise ValueError("no")\n\n@route'
    assert failed(application(fault="pass").replace("@route", stateless, 1)).kind == "ValueError"


def test_both_failures_are_told() -> None:
    """Where ERROR fails in turn nothing is left behind, and the author reads of both."""
    found = failed(application(f"{APOLOGY}    1 / 0\n"))
    assert (found.kind, found.text) == ("ValueError", "no")
    assert "ValueError: no" in found.trace
    assert "And ERROR, which was to answer then:" in found.trace
    assert "ZeroDivisionError" in found.trace


def test_a_failure_in_error_itself_is_one() -> None:
    """A sender in the state ERROR whose function fails is not sent through it twice."""
    found = failed(application(f"{APOLOGY}    1 / 0\n"), Remembered(states={(): "ERROR"}))
    assert found.kind == "ZeroDivisionError"
    assert "which was to answer then" not in found.trace


def test_a_limit_of_ours_is_none() -> None:
    """A message that cannot be read within the limits waits; nothing is wrong with the script."""
    found = run(replace(job(application(fault="mail.text")), limits=Limits(decoded_bytes=1)), Remembered())
    assert isinstance(found, Failure)
    assert found.kind == "LimitHit"


def test_what_is_stored_by_what_failed_is_not_seen() -> None:
    """ERROR reads the memory as it was before."""
    plan = planned(application(APOLOGY.replace("Sorry, {page}", "Sorry, {store.get('seen')}")))
    assert plan.actions == (Reply("Sorry, None is broken"),)
    assert not any(isinstance(one, Store | Keep | Ask) for one in plan.actions)


def test_it_survives_the_way_from_the_process() -> None:
    """Plan and failure arrive as they were sent; cut short anywhere they are neither."""
    plan = planned(application())
    data = encode(plan)
    assert decode(data) == plan
    for at in range(len(data)):
        with pytest.raises(PlanError):
            decode(data[:at])


@pytest.mark.parametrize(
    "forged",
    [
        b'"failed":1', b'"failed":{"kind":"a","text":"b"}', b'"failed":{"kind":"a","text":"b","trace":1}',
        b'"failed":{"kind":"a","text":"b","trace":"c","more":""}',
        b'"failed":{"kind":"' + b"a" * 101 + b'","text":"b","trace":"c"}',
    ],
    ids=["no table", "less", "no text", "more", "longer"],
)  # fmt: skip
def test_a_forged_failure_is_none(forged: bytes) -> None:
    """What a process sends as its failure is believed as little as the rest."""
    with pytest.raises(PlanError):
        decode(encode(Plan()).replace(b'"plan":1', b'"plan":1,' + forged), DEFAULT)


def test_the_trace_is_of_the_file() -> None:
    """The failure names the script and the line, for its author."""
    found = planned(application()).failed
    assert found is not None
    assert f'File "{FILE}", line 7' in found.trace


@pytest.mark.parametrize(
    ("error", "why"),
    [
        pytest.param(APOLOGY.replace('@route("{page}@{host}")\n', ""), "ERROR has no @route", id="no route"),
        pytest.param(APOLOGY.replace("@route", "@stateless\n@route").replace("{page}@", "x@").replace("page, ", "")
                     .replace("{page}", "it"), "ERROR is stateless", id="stateless"),
    ],
)  # fmt: skip
def test_an_error_that_would_never_answer_is_a_problem(error: str, why: str) -> None:
    """Whoever writes an ERROR is told where it could not be called."""
    found = failed(application(error))
    assert found.kind == "Problem"
    assert f"{why}, expected routes at which it answers" in found.text


def test_whoever_is_in_an_error_that_is_gone_begins_anew() -> None:
    """Once the script is mended and has no ERROR any more, its senders are answered again."""
    plan = planned(application("", fault="mail.reply(text='here')"), Remembered(states={(): "ERROR"}))
    assert Reply("here") in plan.actions
    assert plan.state == "OPEN"
