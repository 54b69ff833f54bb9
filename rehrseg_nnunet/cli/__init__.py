"""The `rehrseg` command, one module per subcommand."""
