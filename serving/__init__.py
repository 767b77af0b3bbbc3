"""The service that answers at the bedside, and how it is built."""
