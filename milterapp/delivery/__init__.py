"""The per-recipient edge, a file a privilege: pipe, monitor, resolver, zygote, agent, submit, stores, replies.

And the sandbox of scripts, people's and the site's: `spawner` runs the site's, `spawner_client` asks it for the milter.

`tasks` is how submit and the LMTP door serve many at once; `fenced` and `confined` are the walls around an agent.

Must never: let what holds a privilege parse what a user or a message wrote; `pipe` imports the standard library only,
`monitor` neither yaml, email, rules nor script.
"""
