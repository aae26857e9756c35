"""A blog by mail: posts and comments once their sender has confirmed them, static pages and an index.

Write to blog+NAME@host to post, or to change what you posted; to blog+NAME-comment@host to comment, and to
blog+NAME-delete@host to take a page of yours away. Nothing happens before the question that comes back is answered.
"""

from milterapp.script import confirm, output, route, store, template

TITLE = "A blog by mail"
MOST_PAGES, MOST_COMMENTS = 500, 200
PAGE = "{user}+{page:[a-z0-9]{1,40}}"


@route(PAGE + "-{action:comment|delete}@{host}")
@route(PAGE + "@{host}")
def START(mail, user, page, host, action="post"):
    there = f"page/{page}" in store
    if action != "post" and not there:
        mail.reject("5.1.1 There is no page of that name")
    elif action == "post" and not there and len(store.get("pages", [])) >= MOST_PAGES:
        mail.reject("5.2.2 This blog is full")
    else:
        then = {"post": publish, "comment": comment, "delete": delete}[action]
        confirm.ask(mail, then=then, template="confirm.txt", action=action, page=page, place=[user, host])


def publish(mail, action, page, place):
    """The author has confirmed a post, new or changed."""
    found = store.get(f"page/{page}")
    if found and found["author"] != mail.proven.address.lower():
        mail.reply(text=f"The page {page} is somebody else's; choose another name.\n")
        return
    entry = {
        "author": mail.proven.address.lower(),
        "by": name_of(mail),
        "title": mail.subject[:200],
        "text": mail.text[:50_000],
        "date": found["date"] if found else mail.now.strftime("%Y-%m-%d"),
    }
    store[f"page/{page}"] = entry
    others = [one for one in store.get("pages", []) if one["page"] != page]
    line = {"page": page, "title": entry["title"], "by": entry["by"], "date": entry["date"]}
    store["pages"] = sorted([line, *others], key=lambda one: (one["date"], one["page"]), reverse=True)
    write(page, place)
    mail.reply(text=f"Your page {page} is there.\n")


def comment(mail, action, page, place):
    """The author of a comment has confirmed it."""
    numbers = store.keys(f"comment/{page}/")
    if f"page/{page}" not in store or len(numbers) >= MOST_COMMENTS:
        mail.reply(text=f"The page {page} takes no comments any more.\n")
        return
    number = int(numbers[-1].rpartition("/")[2]) + 1 if numbers else 0
    entry = {"by": name_of(mail), "text": mail.text[:5000], "date": mail.now.strftime("%Y-%m-%d")}
    store[f"comment/{page}/{number:05}"] = entry
    write(page, place)
    mail.reply(text=f"Your comment on {page} is there.\n")


def delete(mail, action, page, place):
    """Somebody has confirmed a deletion; only the page's author can."""
    found = store.get(f"page/{page}")
    if not found or found["author"] != mail.proven.address.lower():
        mail.reply(text=f"There is no page {page} of yours.\n")
        return
    for key in [f"page/{page}", *store.keys(f"comment/{page}/")]:
        del store[key]
    store["pages"] = [one for one in store["pages"] if one["page"] != page]
    del output[f"pages/{page}.html"]
    write_index(place)
    mail.reply(text=f"Your page {page} is gone.\n")


def name_of(mail):
    """Return who is shown as the author: a name, never an address."""
    return next((one.name[:80] for one in mail.from_ if one.name and "@" not in one.name), "somebody")


def write(page, place):
    """Write a page, and the index."""
    comments = [store[key] for key in store.keys(f"comment/{page}/")]
    values = {"blog": TITLE, "page": page, "user": place[0], "host": place[1]}
    output[f"pages/{page}.html"] = template("page.html", post=store[f"page/{page}"], comments=comments, **values)
    write_index(place)


def write_index(place):
    """Write the list of all pages."""
    output["index.html"] = template("index.html", blog=TITLE, pages=store["pages"], user=place[0], host=place[1])
