"""The commands: flags to one library call to a rendered result."""
