"""The commands of the command line, one file each: read the words, call, print."""
