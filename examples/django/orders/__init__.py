"""Orders: packed, shipped, confirmed by one mail, charged once, and paid once for each event of a payment provider."""
