"""The contract suites that authors of drivers and runners use; they ship with Glimpse."""
