"""The command line, `fedjax-rec`: a file a command.

A command's module has `add_parser(commands)`, which describes the command and its flags, and `call(given)`, which
does its work and returns the exit status. `main` lists the modules, parses and dispatches; `argument_parser` words
errors, which are one line on standard error and exit status 2, and `parser` makes settings flags. A command's
module is imported when it is asked for, so that `--help` and `version` need nothing but Python. Nothing in the
package imports this folder.
"""
