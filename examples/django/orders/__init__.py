"""Orders: packed, shipped, confirmed by one mail, and paid once for each event of the payment provider."""
