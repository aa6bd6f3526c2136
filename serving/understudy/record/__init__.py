"""The record: every sampled exchange and its endings, durable, found again and counted across restarts.

keeper.py   RecordKeeper: all of it together
schema.py   what an event is                             codec.py    to JSON and back
writer.py   the thread between append() and the disk     backlog.py  what waits in it
log.py      segment files, appended in groups            lines.py, lock.py  a line; one writer for a folder
index.py    where the newest exchanges are               reading.py  RecordReader: find one, iterate over all
scanning.py scan(): all replicas under one URL, merged
recover.py  what the time before has left
"""

from understudy.record.codec import decode, encode, from_json
from understudy.record.keeper import RecordKeeper
from understudy.record.log import Disk
from understudy.record.reading import Damage, RecordReader
from understudy.record.recover import Counts, Recovery, Unfinished
from understudy.record.scanning import scan
from understudy.record.schema import Accepted, Control, Ended, Event, Feedback
from understudy.record.writer import World, WriterLimits

__all__ = [
    "Accepted",
    "Control",
    "Counts",
    "Damage",
    "Disk",
    "Ended",
    "Event",
    "Feedback",
    "RecordKeeper",
    "RecordReader",
    "Recovery",
    "Unfinished",
    "World",
    "WriterLimits",
    "decode",
    "encode",
    "from_json",
    "scan",
]
