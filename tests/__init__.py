"""The tests, in folders by what a test needs: nothing, a store, a broker with workers, the installed command."""
