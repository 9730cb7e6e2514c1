"""The demo: embedded broker and store, real workers, the same payments and the same kills with and without the library.

The flow: `plan` (what happens), `servers` (to whom), `tasks` (the payment itself), `scenario` (makes it
happen), `journal` and `ledger` (what did happen), `screen` and `timeline` (show it), `command` (all of it).
"""
