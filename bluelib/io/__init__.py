"""The ground: files written whole or not at all, locks, hashes, paths, what ships, checks of arguments, time."""
