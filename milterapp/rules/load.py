"""Loading: the bytes of a rule file to a Policy, or to every problem in it.

Must never: give a policy where anything was wrong, or open a file by itself; lists come through `read_list`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from milterapp.mail.envelope import Stage
from milterapp.rules.action import Action
from milterapp.rules.actions_deliveries import ForwardTo, RunScript
from milterapp.rules.actions_edits import AddRecipientTo, SetSenderTo
from milterapp.rules.beside import run_tests
from milterapp.rules.caution import cautions
from milterapp.rules.clauses import AllOf, Clause, Leaf, Present, captured, leaves, own_lists
from milterapp.rules.conditions_marks import Duplicate, Marked, ScriptSays
from milterapp.rules.decision import Verdict
from milterapp.rules.decode import Missing
from milterapp.rules.document import MAX_PROBLEMS, parse
from milterapp.rules.lists import NamedList
from milterapp.rules.nodes import Items, Mapping, Node, Text, kind_of
from milterapp.rules.placeholders import VALUES, Value, values_of
from milterapp.rules.policy import Case, Policy, Rule
from milterapp.rules.problem import Place, Problem, near_miss
from milterapp.rules.reading import CAN, Allowed, RuleDecoder
from milterapp.rules.reading_actions import HOOKS, read_actions
from milterapp.rules.reading_cases import read_cases
from milterapp.rules.reading_conditions import read_clause
from milterapp.rules.targets import Target

__all__ = ["load"]

KEYS = ("lists", "rules", "tests")
RULE_KEYS = ("name", "if", "then", "observe", "on_error")
ON_ERROR = {True: ("accept", "defer"), False: ("keep", "defer")}  # by whether the rules are the site's
MAX_NAME = 100

ReadList = Callable[[str], bytes]


def load(
    source: bytes,
    file: str,
    *,
    site: bool,
    read_list: ReadList | None = None,
    read_script: ReadList | None = None,
    tests: bool = True,
    delimiter: str = "+",
    authserv_ids: tuple[str, ...] = (),
    programs: Iterable[str] = (),
    plain: Iterable[str] = (),
    flags_kept: bool = True,
    can: Iterable[str] = CAN,
) -> tuple[Policy | None, tuple[Problem, ...]]:
    """Read a rule file.

    source: the file, UTF-8 YAML. file: its name, for problems. site: as site rules, else as personal ones. read_list:
    gives the bytes of a list's file by the name the rules use; it raises OSError with a reason. read_script: the same
    for a script, which is only looked whether it is there. tests: run the tests
    beside the rules, and refuse the file where one fails; delimiter: Postfix's recipient_delimiter, for them.
    programs: those that personal rules may start; plain: those of them that rules may give no options. flags_kept:
    `keep` carries flags.
    Returns (policy, problems), the policy None where any of the problems is no warning; problems are in the order of
    the file. Never raises for what the file holds.
    """
    allowed = Allowed(frozenset(can), authserv_ids, frozenset(programs), frozenset(plain), flags_kept)
    with _uncollected():
        root, problems = parse(source, file)
        policy: Policy | None = None
        if root is None:
            if not problems:
                problems.append(Problem(Place(file), "nothing but comments, expected `rules:`"))
        else:
            policy = _policy(
                root,
                file,
                RuleDecoder(problems, site=site, hooks=HOOKS, allowed=allowed, read_script=read_script),
                read_list,
            )
    if policy is not None and tests and not _fatal(problems):
        problems.extend(run_tests(policy, delimiter=delimiter))
    found = tuple(sorted(dict.fromkeys(problems)))
    return (None if _fatal(problems) else policy), found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector away: it finds nothing in what is built here, and takes as long as building it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _fatal(problems: list[Problem]) -> bool:
    return not all(problem.warning for problem in problems)


def _policy(root: Node, file: str, decoder: RuleDecoder, read_list: ReadList | None) -> Policy | None:
    top = decoder.mapping(root, f"a mapping of {', '.join(KEYS)}")
    if top is None:
        return None
    for key, _ in top.pairs:
        if key.value not in KEYS:
            decoder.fail(key.place, f"unknown key {key.value!r}{near_miss(key.value, KEYS)}; known: {', '.join(KEYS)}")
    listed, ruled, tested = (top.get(key) for key in KEYS)
    if listed is not None:
        _lists(listed, decoder, read_list)
    if ruled is None:
        decoder.fail(root.place, "the key 'rules' is missing")
        return None
    rules = _rules(ruled, decoder)
    cases: tuple[tuple[Place, Case], ...] = ()
    if tested is not None:
        cases = read_cases(tested, decoder, [rule.name for rule in rules])
    decoder.problems.extend(cautions(rules, site=decoder.site))
    lists = {} if decoder.site else decoder.lists  # the milter's workers need not hold what no script of theirs asks
    policy = Policy(file, decoder.site, rules, cases, lists=lists)
    if not _fatal(decoder.problems):
        _ = policy.index  # made now, so that workers which fork from here share it
    return policy


def _lists(node: Node, decoder: RuleDecoder, read_list: ReadList | None) -> None:
    mapping = decoder.mapping(node, "a mapping of names to lists")
    for key, value in mapping.pairs if mapping else ():
        made: NamedList | None = None
        if isinstance(value, Mapping):
            made = _file_list(key, value, decoder, read_list)
        else:
            items = value.items if isinstance(value, Items) else (value,)
            texts = [item for item in items if isinstance(item, Text)]
            for item in items:
                if not isinstance(item, Text):
                    decoder.fail(item.place, f"found {kind_of(item)}, expected an entry")
            made = NamedList(
                key.value,
                key.place.file,
                tuple(text.value for text in texts),
                tuple(text.place.line for text in texts),
                tuple(text.place.column for text in texts),
            )
        # A list that could not be read is known all the same: the rules that name it are not wrong.
        decoder.lists[key.value] = made or NamedList(key.value, key.place.file, (), ())


def _file_list(key: Text, value: Mapping, decoder: RuleDecoder, read_list: ReadList | None) -> NamedList | None:
    named = value.get("file")
    if named is None or len(value.pairs) != 1 or not isinstance(named, Text):
        decoder.fail(value.place, "expected the entries, or {file: NAME}")
        return None
    if read_list is None:
        decoder.fail(named.place, f"the list {named.value!r}: no files are read here")
        return None
    try:
        return NamedList.from_file(key.value, named.value, read_list(named.value))
    except OSError as error:
        decoder.fail(named.place, f"the list {named.value!r} cannot be read: {error.strerror or error}")
    except ValueError as error:
        decoder.fail(named.place, str(error))
    return None


def _rules(node: Node, decoder: RuleDecoder) -> tuple[Rule, ...]:
    if not isinstance(node, Items):
        decoder.fail(node.place, f"found {kind_of(node)}, expected a list of rules: begin each with `- name: …`")
        return ()
    rules = []
    names: dict[str, Place] = {}
    for item in node.items:
        rule = _rule(item, decoder, names)
        if rule is not None:
            rules.append(rule)
        if len(decoder.problems) > MAX_PROBLEMS:
            decoder.fail(item.place, f"more than {MAX_PROBLEMS} problems, the rules after this one were not read")
            break
    if decoder.site:
        _late_marks(rules, decoder)
        _warn_late(rules, decoder)
    return tuple(rules)


def _late_marks(rules: list[Rule], decoder: RuleDecoder) -> None:
    """Note a rule on one recipient that asks for marks which come when all recipients are known."""
    late = next((at for at, rule in enumerate(rules) if rule.marks and rule.stage > Stage.RCPT), None)
    for rule in rules[late + 1 :] if late is not None else ():
        for leaf in leaves(rule.clause) if rule.one_recipient else ():
            if isinstance(leaf.condition, Marked):
                first = rules[late or 0]
                decoder.fail(
                    leaf.place,
                    f"`{leaf.condition.word}` in a rule on one `recipient`, but {first.name!r} before it marks the"
                    f" message at {first.stage.word}; say `any_recipient` or `every_recipient`",
                )


def _warn_late(rules: list[Rule], decoder: RuleDecoder) -> None:
    """Warn of a refusal for one recipient that waits for an earlier rule, and then is one for all."""
    late = next(
        (at for at, rule in enumerate(rules) if rule.ends and not rule.observe and rule.stage > Stage.RCPT), None
    )
    for rule in rules[late + 1 :] if late is not None else ():
        if rule.one_recipient and rule.verdict in (Verdict.REJECT, Verdict.DEFER) and not rule.observe:
            first = rules[late or 0]
            decoder.warn(
                rule.place,
                f"the rule {rule.name!r} refuses one recipient, but {first.name!r} before it needs {first.stage.word}"
                " and could end the rules first, so all recipients would be refused; move it up",
            )


def _rule(node: Node, decoder: RuleDecoder, names: dict[str, Place]) -> Rule | None:
    mapping = decoder.mapping(node, f"a rule, a mapping of {', '.join(RULE_KEYS)}")
    if mapping is None:
        return None
    for key, _ in mapping.pairs:
        if key.value not in RULE_KEYS:
            hint = near_miss(key.value, RULE_KEYS)
            decoder.fail(key.place, f"unknown key {key.value!r}{hint}; known: {', '.join(RULE_KEYS)}")
    name = _name(mapping, decoder, names)
    asked, done, observed, failing = (mapping.get(key) for key in RULE_KEYS[1:])
    clause = AllOf((), node.place) if asked is None else read_clause(asked, decoder)
    if done is None:
        decoder.fail(node.place, "the key 'then' is missing")
    actions = None if done is None else read_actions(done, decoder)
    observe = False if observed is None else decoder.scalar(observed, bool)
    on_error = "" if failing is None else _on_error(failing, decoder)
    if name is None or clause is None or actions is None or done is None or isinstance(observe, Missing):
        return None
    whole = _with_values(clause, actions, done.place, decoder)
    done_things, places = tuple(one for one, _ in actions), tuple(where for _, where in actions)
    rule = Rule.make(name, node.place, whole, done_things, observe=observe, places=places, on_error=on_error)
    return rule if _fits(rule, actions, decoder) else None


def _on_error(node: Node, decoder: RuleDecoder) -> str:
    words, found = ON_ERROR[decoder.site], decoder.text(node)
    if isinstance(found, Missing) or found in words:
        return "" if isinstance(found, Missing) else found
    decoder.fail(node.place, f"found {found!r}, expected {' or '.join(words)}{near_miss(found, words)}")
    return ""


def _name(mapping: Mapping, decoder: RuleDecoder, names: dict[str, Place]) -> str | None:
    node = mapping.get("name")
    if node is None:
        decoder.fail(mapping.place, "the key 'name' is missing: logs, traces and tests call the rule by it")
        return None
    name = decoder.text(node)
    if isinstance(name, Missing):
        return None
    if not name.isprintable() or len(name) > MAX_NAME:
        decoder.fail(node.place, f"a name of several lines or of more than {MAX_NAME} characters")
        return None
    if name in names:
        decoder.fail(node.place, f"the name {name!r} a second time, first on line {names[name].line}")
        return None
    names[name] = node.place
    return name


Placed = tuple[tuple[Action, Place], ...]


def _with_values(clause: Clause, actions: Placed, place: Place, decoder: RuleDecoder) -> Clause:
    """Return the clause with what the actions need: where a value is absent the rule does not hold."""
    scripts = tuple(Leaf(ScriptSays(one.file), where) for one, where in actions if isinstance(one, RunScript))
    if scripts:
        clause = AllOf((*(clause.parts if isinstance(clause, AllOf) else (clause,)), *scripts), clause.place)
    looking = tuple(one for one, _ in actions if one.stage() > Stage.CONNECT)
    values = values_of(text for action, _ in actions for text in action.templates())
    if not values and not looking:
        return clause
    groups = {group for _, _, regex in captured(clause) for _, names in regex.groups() for group in names}
    for action, where in actions:
        for value in values_of(action.templates()):
            if value.word == "match" and value.argument not in groups:
                hint = near_miss(value.argument, groups)
                decoder.fail(
                    where, f"no group named {value.argument!r} in a regex of the rule outside `any` and `not`{hint}"
                )
            elif not decoder.site and not VALUES[value.word].personal:
                decoder.fail(where, f"the value {value} is not known in a personal rule")
    targets: frozenset[Value] = frozenset()
    for action, where in actions:
        chosen = values_of(one.address for one in _targets(action))
        targets |= frozenset(chosen)
        if chosen and not own_lists(clause):
            decoder.fail(
                where,
                f"{', '.join(map(str, chosen))} is an address that the message chose; the rule must ask with `in` for a"
                " list that holds it",
            )
    parts = clause.parts if isinstance(clause, AllOf) else (clause,)
    return AllOf((*parts, Present(values, targets, place, looking)), place)


def _targets(action: Action) -> tuple[Target, ...]:
    if isinstance(action, ForwardTo | AddRecipientTo):
        return action.to
    return (action.sender,) if isinstance(action, SetSenderTo) else ()


def _fits(rule: Rule, actions: Placed, decoder: RuleDecoder) -> bool:
    """Note what a site rule may not do: on one recipient, as its verdict is given while that one is named; and after
    `duplicate`.
    """
    if not decoder.site:
        return True
    before = len(decoder.problems)
    if any(isinstance(leaf.condition, Duplicate) for leaf in leaves(rule.clause)):
        for action, place in actions:
            if action.verdict in (Verdict.REJECT, Verdict.DISCARD) or action.marks or isinstance(action, RunScript):
                decoder.fail(
                    place,
                    f"`{action.word}` in a site rule on `duplicate`: whether Postfix kept the first copy is not known",
                )
    if not rule.one_recipient:
        return len(decoder.problems) == before
    remedy = "say `any_recipient` or `every_recipient`: what follows after rcpt is for all recipients"
    for leaf in leaves(rule.clause):
        if leaf.condition.stage > Stage.RCPT:
            decoder.fail(leaf.place, f"`{leaf.condition.word}` in a rule on one `recipient`; {remedy}")
    for action, place in actions:
        for value in values_of(action.templates()):
            if VALUES[value.word].stage > Stage.RCPT:
                decoder.fail(place, f"{value} in a rule on one `recipient`; {remedy}")
        if action.for_all:
            decoder.fail(place, f"`{action.word}` in a rule on one `recipient`; {remedy}")
    return len(decoder.problems) == before
