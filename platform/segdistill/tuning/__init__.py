"""Which way of running a bundle is fastest on this processor and keeps the Dice."""
