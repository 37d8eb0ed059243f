"""Sessions as an application drives them, at random, with every window judged."""
