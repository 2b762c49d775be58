"""What the command line's commands do: functions of their parsed arguments and of the terminal they talk to."""
