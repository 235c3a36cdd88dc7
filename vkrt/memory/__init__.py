"""Memory that is bounded and planned."""
