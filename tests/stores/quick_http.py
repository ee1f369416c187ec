"""The http store, less patient: installed as the driver `quick-http`."""

from glimpse.stores.http import Http


class Quick(Http):
    """What takes half a minute in an installation takes a moment here."""

    patience = 1.0
    retries = 3
    pause = 0.05
