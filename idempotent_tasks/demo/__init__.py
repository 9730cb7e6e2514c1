"""The demo: kill workers of an embedded broker and store, with and without the library, and count the charges.

In flow order: `command` runs all, `plan` draws the workload, `servers` runs broker and store, `tasks` is the workers'
app, `scenario` publishes and kills, `journal` and `ledger` record and count, `screen` and `timeline` show.
"""
