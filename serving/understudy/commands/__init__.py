"""The subcommands: one file each, one line in the table.

``NAME`` is the name on the command line (dashes become underscores in the file), and the module holds a click command
called ``command``. Heavy imports happen inside the commands, so that ``understudy --help`` answers at once.
"""

from __future__ import annotations

COMMANDS = {
    "audit": "understudy.commands.audit",
    "compare": "understudy.commands.compare",
    "demo": "understudy.commands.demo",
    "doctor": "understudy.commands.doctor",
    "erase": "understudy.commands.erase",
    "exchanges": "understudy.commands.exchanges",
    "export": "understudy.commands.export",
    "feedback": "understudy.commands.feedback",
    "promote": "understudy.commands.promote",
    "replay": "understudy.commands.replay",
    "report": "understudy.commands.report",
    "serve": "understudy.commands.serve",
    "shadow": "understudy.commands.shadow",
    "sql": "understudy.commands.sql",
}
