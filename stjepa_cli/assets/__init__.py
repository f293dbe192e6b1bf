"""What is shipped with the program."""
