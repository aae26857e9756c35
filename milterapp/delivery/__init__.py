"""The per-recipient edge, a file a privilege: pipe, monitor, resolver, zygote, agent, submit, stores, replies.

Must never: let what holds a privilege parse what a user or a message wrote; `pipe` imports the standard library only,
`monitor` neither yaml, email, rules nor script.
"""
