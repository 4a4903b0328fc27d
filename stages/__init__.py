"""The commands: parse, build, call. No mathematics; nothing imports a command."""
