"""Orders, each confirmed by one mail."""
