"""The table of processes: what each may, what it must never, and the tests that prove it.

A line stands for one thing in a cell of the table in README.md, section "Privilege", and of the manual pages' SECURITY
sections. `tests/postfix/test_privileges.py` tries sixty things from inside each process as if it were taken over, and
holds what succeeds to be exactly what the process may.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import milterapp

TESTS = Path(__file__).parents[1]
DELIVERY = Path(milterapp.__file__).parent / "delivery"
MILTER = Path(milterapp.__file__).parent / "milter"


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing that a process may, or never; tests: `file::name` below tests/, each of which proves it."""

    process: str
    word: str
    what: str
    tests: tuple[str, ...]


TAKEN = "postfix/test_privileges.py::test_taken_over"
CELLS = (
    Cell("milter", "may", "read mail in transit, answer", ("postfix/test_inline.py",)),
    Cell("milter", "never", "fork from a worker", ("delivery/test_cells.py::test_only_the_supervisor_forks",)),
    Cell("milter", "never", "reach the monitor, submit, a home, /etc/shadow, other ids", (TAKEN,)),
    Cell("client", "may", "hand one message and its envelope to the monitor", (
        "delivery/test_pipe.py::test_the_answer_becomes_status_and_line",
        "delivery/test_pipe.py::test_arguments_arrive_byte_for_byte",
        "delivery/test_clients.py::test_they_do_the_same",
    )),
    Cell("client", "never", "name a uid", (
        "delivery/test_monitor.py::test_a_malformed_datagram_closes_its_connection_only",
    )),
    Cell("client", "never", "more than a forged sender could do", (TAKEN,)),
    Cell("client", "never", "load more than the standard library", (
        "delivery/test_pipe.py::test_the_client_is_of_the_standard_library",
        "delivery/test_pipe.py::test_the_client_imports_next_to_nothing",
        "packaging/test_compiling.py::test_it_is_hardened_and_needs_the_c_library_alone",
    )),
    Cell("client", "never", "touch memory that is not its own, compiled", (
        "delivery/test_clients.py::test_they_do_the_same",
    )),
    Cell("client", "never", "be another's program", (
        "commands/test_client_fitness.py::test_what_is_wrong_with_a_compiled_client",
        "postfix/test_setup.py::test_a_client_that_cannot_be_used_is_named_before_anything_changes",
    )),
    Cell("client", "never", "take a part for the whole message", (
        "delivery/test_pipe.py::test_a_message_that_pipe_did_not_finish_is_never_delivered",
        "delivery/test_pipe.py::test_where_proc_hides_pipe_a_part_is_not_delivered",
        "delivery/test_pipe.py::test_a_parent_that_is_exiting_has_not_finished",
        "postfix/test_clients.py::test_a_message_that_pipe_did_not_finish_is_delivered_whole_by_the_next",
    )),
    Cell("client", "never", "hand over what can still be changed", (
        "delivery/test_pipe.py::test_the_answer_becomes_status_and_line",
        "delivery/test_monitor.py::test_a_malformed_datagram_closes_its_connection_only",
    )),
    Cell("lmtp", "may", "hand messages and their envelopes to the monitor", (
        "delivery/test_lmtp.py::test_one_message_for_one",
    )),
    Cell("lmtp", "never", "reach anything else", (
        TAKEN,
        "postfix/test_lmtp.py::test_what_the_door_reaches_were_it_taken_over",
    )),
    Cell("lmtp", "never", "take the recipients of one socket for those of the other", (
        "delivery/test_lmtp.py::test_the_socket_says_which_kind_of_recipient_it_is",
        "postfix/test_virtual.py::test_neither_socket_takes_the_recipients_of_the_other",
        "postfix/test_virtual.py::test_who_may_come_to_the_sockets",
    )),
    Cell("monitor", "may", "take one bounded datagram from the doors' accounts", (
        "delivery/test_monitor.py::test_a_malformed_datagram_closes_its_connection_only",
        "delivery/test_monitor.py::test_another_uid_is_refused",
    )),
    Cell("monitor", "may", "pass descriptors on", (
        "delivery/test_monitor.py::test_the_agent_has_the_recipients_ids_and_the_whole_message",
    )),
    Cell("monitor", "may", "keep deadlines, also of what is stopped, with its tree", (
        "delivery/test_monitor.py::test_a_deadline_kills_the_agent_and_what_it_forked",
    )),
    Cell("monitor", "may", "have agents wait: bounded in number, warm for a time, deferred late", (
        "delivery/test_monitor.py::test_more_users_than_agents_take_turns",
        "delivery/test_monitor.py::test_a_deadline_frees_the_place_for_who_waits",
        "delivery/test_monitor.py::test_who_waits_too_long_for_an_agent_is_deferred",
        "delivery/test_monitor.py::test_a_warm_agent_takes_the_next_message",
        "delivery/test_monitor.py::test_a_warm_agent_stays_for_its_time",
    )),
    Cell("monitor", "never", "read mail, open a file", (
        "delivery/test_cells.py::test_the_monitor_opens_and_reads_nothing",
    )),
    Cell("monitor", "never", "parse what a user wrote", (
        "test_imports.py::test_what_a_process_with_privileges_has_loaded",
        "delivery/test_cells.py::test_the_monitor_opens_and_reads_nothing",
    )),
    Cell("monitor", "never", "resolve names", ("delivery/test_cells.py::test_the_monitor_opens_and_reads_nothing",)),
    Cell("monitor", "never", "an id below the floors, a group, a namespace", (
        TAKEN,
        "delivery/test_seccomp.py::test_ids_are_floored",
        "delivery/test_seccomp.py::test_no_clone_makes_a_namespace",
        "delivery/test_seccomp.py::test_groups_can_only_be_none",
    )),
    Cell("resolver", "may", "ask the name service", ("delivery/test_resolver.py::test_a_user_is_found",)),
    Cell("resolver", "never", "anything else", (TAKEN, "delivery/test_resolver_filter.py::test_what_it_never_may")),
    Cell("zygote", "may", "fork and drop to ids above the floors", (
        "delivery/test_zygote.py::test_an_agent_is_born_and_its_end_is_told",
        "delivery/test_zygote.py::test_ids_below_the_floor_are_refused",
        "postfix/test_privileges.py::test_the_zygote_is_asked_for_more",
    )),
    Cell("zygote", "may", "kill its agents", (
        "delivery/test_zygote.py::test_an_agent_can_be_killed",
        "delivery/test_zygote.py::test_a_stranger_is_not_killed",
    )),
    Cell("zygote", "may", "kill what they leave behind, also where a user stopped or killed the runner", (
        "delivery/test_monitor_programs.py::test_what_a_user_stops_or_kills_is_ended",
        "delivery/test_monitor_programs.py::test_the_end_of_the_monitor_ends_a_stopped_runner",
        "delivery/test_monitor.py::test_a_deadline_kills_the_agent_and_what_it_forked",
    )),
    Cell("zygote", "never", "read anything but the monitor's fixed requests", (
        "delivery/test_zygote.py::test_a_monitor_that_talks_nonsense_is_left",
    )),
    Cell("zygote", "never", "run rule code before the drop", ("delivery/test_cells.py::test_the_zygote_drops_first",)),
    Cell("agent", "may", "open its user's rules, decide, journal, file", (
        "delivery/test_monitor_agents.py::test_rules_file_and_refuse",
    )),
    Cell("agent", "never", "submit mail by itself, speak to anybody, start a program", (
        TAKEN, "delivery/test_monitor.py::test_what_an_agent_holds_and_never_may",
    )),
    Cell("agent", "never", "change its ids", (
        TAKEN,
        "delivery/test_linux.py::test_become_takes_ids_and_gives_up_everything_else",
    )),
    Cell("agent", "never", "outlive its deadline", (
        "delivery/test_monitor.py::test_a_deadline_kills_the_agent_and_what_it_forked",
    )),
    Cell("agent", "never", "touch another user's files", (
        TAKEN, "delivery/test_monitor_agents.py::test_another_persons_home_is_out_of_reach",
    )),
    Cell("agent", "never", "write outside its home and the site's places for mail and pages, whatever is a link", (
        TAKEN, "delivery/test_fenced.py::test_outside_the_home_nothing_is_reached",
        "delivery/test_fenced.py::test_a_link_while_the_journal_is_opened",
        "delivery/test_fenced.py::test_where_the_site_has_mail_and_pages_put",
        "delivery/test_direct.py::test_the_rules_run_in_an_agents_sandbox",
        "postfix/test_fenced.py::test_a_link_out_of_the_home",
    )),
    Cell("agent", "never", "reach another's home of the same uid, in a virtual domain", (
        "delivery/test_confined.py", "postfix/test_virtual.py::test_one_home_is_no_way_into_another",
        "postfix/test_virtual.py::test_programs_and_scripts_stay_at_home",
    )),
    Cell("script", "may", "compute", ("delivery/test_sandbox.py::test_what_it_may",)),
    Cell("script", "never", "write, open beyond its folder, network, exec, fork, signal", (
        "delivery/test_sandbox.py::test_escapes", "delivery/test_sandbox.py::test_the_filter_alone",
    )),
    Cell("runner", "may", "start what the site allows, with its user's ids", (
        "delivery/test_runner.py::test_what_a_program_is_given", "delivery/test_runner.py::test_beside_an_agent",
        "postfix/test_programs.py::test_a_program_takes_a_message",
    )),
    Cell("runner", "never", "start what the site does not name, or options that it does not allow", (
        "delivery/test_runner.py::test_arguments_that_are_refused",
    )),
    Cell("runner", "never", "other ids, another user's files, the services", (TAKEN,)),
    Cell("runner", "never", "outlive its agent", (
        "delivery/test_runner.py::test_the_agent_that_hangs_up_takes_the_program_with_it",
        "delivery/test_runner.py::test_beside_an_agent",
        "delivery/test_monitor_programs.py::test_what_a_user_stops_or_kills_is_ended",
    )),
    Cell("program", "may", "run as its user: take a message, give one back, answer with a status", (
        "postfix/test_programs.py::test_a_program_takes_a_message",
        "postfix/test_programs.py::test_a_filter_and_a_command", "postfix/test_programs.py::test_without_a_monitor",
    )),
    Cell("program", "may", "write its home and what the site lets it, use the network where the site lets it", (
        TAKEN, "delivery/test_runner.py::test_the_sandbox",
        "delivery/test_runner.py::test_the_network_where_the_site_allows_it",
    )),
    Cell("program", "may", "go on within its bounds of time, output, memory and processes", (
        "delivery/test_runner.py::test_a_deadline_is_kept", "delivery/test_runner.py::test_a_flood_is_ended",
        "delivery/test_runner.py::test_memory_is_bounded", "delivery/test_runner.py::test_a_fork_bomb",
        "delivery/test_runner.py::test_where_proc_hides_processes",
        "postfix/test_programs.py::test_only_that_delivery_waits",
    )),
    Cell("program", "never", "leave a process behind", (
        "delivery/test_runner.py::test_nothing_gets_away", "delivery/test_runner.py::test_a_chain_of_forks",
        "delivery/test_runner.py::test_a_program_does_not_outlive_a_runner_that_is_killed",
        "delivery/test_monitor_programs.py::test_what_a_user_stops_or_kills_is_ended",
    )),
    Cell("program", "never", "gain privilege: setuid, a user namespace, ids below the floors, group disk", (
        TAKEN, "delivery/test_runner.py::test_a_setuid_program_gains_nothing",
        "delivery/test_runner.py::test_the_filter_of_either_architecture",
        "postfix/test_programs.py::test_check_says_what_will_not_work",
    )),
    Cell("program", "never", "another user's files or submission, the services, its agent and runner", (
        TAKEN, "delivery/test_runner.py::test_the_sandbox",
        "delivery/test_runner.py::test_no_program_ends_who_watches_it",
    )),
    Cell("submit", "may", "send for keep to the envelope's recipient", (
        "delivery/test_submit.py::test_keep_hands_the_message_back_as_it_came",
    )),
    Cell("submit", "may", "send forwards that policy allows, replies that the guards allow", (
        "delivery/test_submit.py::test_a_loop_is_refused", "delivery/test_submit.py::test_forwards_are_bounded",
        "delivery/test_submit.py::test_the_guards_cannot_be_gone_round",
    )),
    Cell("submit", "never", "take a sender or recipient from an agent beyond that", (
        "delivery/test_submit.py::test_nothing_beyond_the_requests",
        "delivery/test_submit.py::test_nothing_before_the_envelope",
    )),
    Cell("submit", "never", "listen to anybody but the monitor", (
        "delivery/test_submit.py::test_only_the_monitor_may_ask",
    )),
    Cell("submit", "never", "other ids, a home, the other services", (TAKEN,)),
    Cell("all", "never", "more than their units leave open", (
        "packaging/test_units.py::test_exposure", "packaging/test_units.py::test_only_the_monitor_has_capabilities",
        "packaging/test_units.py::test_no_network_and_no_namespace",
    )),
    Cell("spawner", "may", "have a script process do one job for the milter", (
        "delivery/test_spawner.py::test_what_a_script_says", "postfix/test_site_script.py",
    )),
    Cell("spawner", "never", "take a job from anybody but the milter", (
        "delivery/test_spawner.py::test_only_the_milter_may_ask",
        "delivery/test_spawner.py::test_what_it_does_not_take",
    )),
    Cell("spawner", "never", "let a child live past its deadline, or outlive it", (
        "delivery/test_spawner.py::test_a_child_that_does_not_end_is_killed",
        "delivery/test_spawner.py::test_nobody_outlives_it",
    )),
    Cell("spawner", "never", "read what a job holds", ("delivery/test_cells.py::test_the_spawner_parses_nothing",)),
    Cell("spawner", "never", "other ids, a home, the other services", (TAKEN,)),
    Cell("site script", "may", "say what becomes of one message", (
        "script/test_site_script.py::test_what_it_may_ask_for",
    )),
    Cell("site script", "never", "be believed", ("delivery/test_said_in_line.py::test_what_it_may_not_say",)),
    Cell("site script", "never", "reach a file, a socket or a process", (
        "delivery/test_spawner.py::test_what_a_script_cannot_reach", TAKEN,
    )),
)  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.process} {cell.word} {cell.what}")
def test_each_cell_has_its_tests(cell: Cell) -> None:
    """What the table names is there."""
    assert cell.word in ("may", "never")
    for name in cell.tests:
        file, _, function = name.partition("::")
        names = {
            node.name
            for node in ast.walk(ast.parse((TESTS / file).read_bytes()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        assert names, file
        assert not function or function in names, name


def test_each_process_has_both() -> None:
    """No process of the table without what it may and what it must never."""
    words = {(cell.process, cell.word) for cell in CELLS}
    for process in {cell.process for cell in CELLS} - {"all"}:
        assert {(process, "may"), (process, "never")} <= words


def called(path: Path) -> Iterator[str]:
    """Yield the dotted names of what a module calls."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


OPENING = {
    "open", "os.open", "os.fdopen", "os.read", "os.pread", "os.readv", "os.listdir", "os.scandir", "mmap.mmap",
    "sealed.read", "sealed.chunks", "sealed.digest", "pwd.getpwnam", "pwd.getpwuid", "grp.getgrnam", "json.load",
}  # fmt: skip


@pytest.mark.parametrize("name", ["monitor", "deliveries", "agents", "children"])
def test_the_monitor_opens_and_reads_nothing(name: str) -> None:
    """Its loop opens no file and reads no descriptor but its sockets; what it parses is its own settings."""
    names = set(called(DELIVERY / f"{name}.py"))
    assert names & OPENING == set()
    parsing = [one for one in called(DELIVERY / f"{name}.py") if one.startswith(("json.", "yaml.", "email.", "re."))]
    assert parsing == (["json.loads"] if name == "monitor" else [])  # run(): the settings it was started with


def test_the_spawner_parses_nothing() -> None:
    """Of a job it and its children read the datagram's fields; what the memfd holds goes on as the bytes it is."""
    names = list(called(DELIVERY / "spawner.py"))
    parsing = {"decode", "understood", "serve", "serve_examination"}
    assert [one for one in names if one.startswith(("json.", "yaml.", "email.", "re."))] == ["json.loads"]  # settings
    assert [one for one in names if one.rpartition(".")[2] in parsing] == []  # it hands them to the script process
    assert {"threading.Thread", "_thread.start_new_thread", "threads.start"} & {*names} == set()


@pytest.mark.parametrize("path", sorted(MILTER.glob("*.py")), ids=lambda path: path.stem)
def test_only_the_supervisor_forks(path: Path) -> None:
    """Workers have threads, and what they would fork could hang in a lock for ever."""
    forking = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.popen", "fork"}
    names = {one for one in called(path) if one in forking or one.startswith(("subprocess.", "multiprocessing."))}
    assert names == ({"os.fork"} if path.stem == "supervisor" else set())


def test_the_zygote_drops_first() -> None:
    """In the child, `drop` comes before `serve`, where rule code begins; what `drop` calls knows of no mail."""
    tree = ast.parse((DELIVERY / "zygote.py").read_bytes())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    calls = [ast.unparse(one.func) for one in ast.walk(functions["_child"]) if isinstance(one, ast.Call)]
    assert calls.index("drop") < calls.index("self._serve")
    calls = [ast.unparse(one.func) for one in ast.walk(functions["drop"]) if isinstance(one, ast.Call)]
    assert calls.index("linux.become") < calls.index("beside")  # what starts programs has the recipient's ids
    assert {one.partition(".")[0] for one in calls} <= {"signal", "os", "linux", "seccomp", "beside"}
