"""The actions there are, by the word a rule writes.

Must never: do anything; an action adds a verdict, an edit or a delivery to the outcome, and the edges carry it out.
"""

from __future__ import annotations

from milterapp.rules.action import Action, Given, Outcome
from milterapp.rules.actions_deliveries import (
    FileInto,
    FilterThrough,
    Flags,
    Folder,
    ForwardTo,
    PipeTo,
    ReplyWith,
    RunScript,
    VacationReply,
)
from milterapp.rules.actions_edits import (
    AddHeader,
    AddRecipientTo,
    Banner,
    DropAttachments,
    Footer,
    PrefixSubject,
    PrependHeader,
    RemoveHeader,
    RemoveRecipientFrom,
    ReplaceBody,
    SetHeader,
    SetSenderTo,
    TransportBy,
)
from milterapp.rules.actions_verdicts import (
    REPLIES,
    Accept,
    AddScore,
    AddTag,
    Defer,
    Discard,
    Hold,
    KeepIt,
    LogLine,
    Refusal,
    Reject,
    Stop,
)
from milterapp.rules.targets import Target

__all__ = [
    "ACTIONS", "REPLIES", "Action", "Folder", "ForwardTo", "Given", "Hold", "Outcome", "PrefixSubject",
    "Refusal", "RemoveHeader", "SetHeader", "Target",
]  # fmt: skip

ACTIONS: dict[str, type[Action]] = {
    one.word: one
    for one in (
        Accept,
        Reject,
        Defer,
        Discard,
        Hold,
        KeepIt,
        AddHeader,
        PrependHeader,
        SetHeader,
        RemoveHeader,
        PrefixSubject,
        Banner,
        Footer,
        DropAttachments,
        ReplaceBody,
        SetSenderTo,
        AddRecipientTo,
        RemoveRecipientFrom,
        TransportBy,
        FileInto,
        ForwardTo,
        ReplyWith,
        VacationReply,
        PipeTo,
        FilterThrough,
        Flags,
        Stop,
        AddScore,
        AddTag,
        LogLine,
        RunScript,
    )
}
