"""Looks whether a web server still has the bytes that are known: one conditional request, the body not read.

It is asked often and by many images, so an answer without a body is the rule; what it cannot prove is fetched again
and compared by its digest.
"""

import threading
from typing import Final

from glimpse.problems import Problem
from glimpse.sources import shown
from glimpse.sources.client import Answer, Client
from glimpse.tasks import HttpOrigin, Look

_NOT_MODIFIED: Final = 304


def unchanged(task: Look, origin: HttpOrigin, cancelled: threading.Event) -> bool:
    """Whether the first server that answers has the same bytes; if it cannot be told, it has not.

    Validators are one server's own, so the one that gave the bytes is asked before the other mirrors.

    Proven are they by a 304, by an equal strong ETag where the lengths do not differ, or, without an ETag on either
    side, by an equal Last-Modified and length. Raises as `Client.get`, for the first of the mirrors, if none answers.
    """
    condition = {"If-None-Match": task.etag} if task.etag else {}
    if task.last_modified and not task.etag:  # RFC 9110 13.1.3: ignored beside an ETag anyway
        condition = {"If-Modified-Since": task.last_modified}
    first: Problem | None = None
    for url in sorted(origin.urls, key=lambda url: shown(url) != task.url):
        client = Client(origin, task.addresses, task.transfers, cancelled)
        try:
            answer = client.get(url, condition, also={_NOT_MODIFIED} if condition else ())
            try:
                return answer.status == _NOT_MODIFIED or _same(task, answer)
            finally:
                answer.close()
        except Problem as problem:
            first = first or problem
            if cancelled.is_set():
                break
        finally:
            client.close()
    assert first  # noqa: S101 - an origin has a URL
    raise first


def _same(task: Look, answer: Answer) -> bool:
    if None not in {task.size, answer.size} and task.size != answer.size:
        return False
    if task.etag or answer.etag:
        return task.etag == answer.etag and not (task.etag or "").startswith("W/")
    if task.likely and task.last_modified is None:
        return task.size in {None, answer.size}
    dated = task.last_modified is not None and task.last_modified == answer.last_modified
    return dated and (task.size == answer.size if task.size is not None else task.likely)
