"""Publish a payout and print the transfer."""

import sys

from tasks import pay_out


def main(payout_id: str, cents: str) -> None:
    """Publish the payout, and wait for its result."""
    print(pay_out.delay(payout_id, int(cents)).get(timeout=120))


if __name__ == "__main__":
    main(*sys.argv[1:])
