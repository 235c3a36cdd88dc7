"""The command line: `vkrt segment`, `models`, `doctor` and `pull`, one file each."""
