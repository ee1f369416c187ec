"""What a fetch finds out about its mirrors while they fail, and which of them is therefore to be asked how.

A server may say what it likes of its own file. So what goes wrong with one, or with several together, is a reason to
ask each alone, and never one to give up another.
"""

from glimpse.problems import InvalidConfiguration, Problem, SourceChanged
from glimpse.sources.http import HttpSource


class Verdicts:
    """Of one fetch; mirrors are known by their URLs."""

    def __init__(self) -> None:
        self.alone = False
        """Each is to be asked alone, since together they have failed for what one of them may have said."""
        self.useless = set[str]()
        """Those that have had their chance alone ..."""
        self.fickle = set[str]()
        """... and those of whose answers only one is to be used."""

    def learn(self, source: HttpSource, problem: Problem, *, resumed: bool) -> None:
        """After a failure with bytes that nothing has proven. `resumed`: it may be due to what was left.

        A mirror that is only away may be right: then what has come of it is kept, and gone on with when it is back.
        """
        if isinstance(problem, InvalidConfiguration):
            return
        fickle = {remote.url for remote in source.remotes if remote.fickle}
        refused = problem.permanent and not resumed
        disputed = bool(fickle) or any(remote.disputed for remote in source.remotes)
        differ = isinstance(problem, SourceChanged) or (disputed and not any(remote.away for remote in source.used))
        self.alone |= refused or differ
        self.fickle |= fickle
        if (refused and not source.doubtful) or (differ and not resumed and len(source.used) == 1):
            for remote in source.used:
                remote.failed = True
                self.useless.add(remote.url)
        self.useless -= self.fickle
