"""The foundations: files written whole or not at all, locks, hashes, paths, shipped files, argument checks, timing."""
