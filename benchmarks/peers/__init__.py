"""What is measured: our engine and the code that a user would run instead, behind one interface."""
