"""The record: every sampled exchange and its endings, durable, found again and counted across restarts.

keeper.py    RecordKeeper: all of it together            scanning.py  scan(): all replicas under one URL, merged
schema.py    what an event is                            codec.py     to JSON and back
writer.py    the thread between append() and the disk    backlog.py   what waits in it; attempt.py  a call beside it
log.py       the log's files, appended in groups         lines.py     a line and its chain; lock.py  one writer
seal.py      files of the log become sealed segments     columns.py   a record as a row; sealed.py  Parquet
manifest.py  what a sealed segment is                    merkle.py    trees over it; store.py  where it is
sources.py   one writer's log and sealed segments        reading.py   RecordReader: find one, iterate over all
index.py     where the newest exchanges are              recover.py   what the time before has left
recording.py the options of `record` as objects          scribe.py    an event as a record: what of it is written
privacy.py   full, redacted or none                      patterns.py, redactors.py  what a redactor finds
care.py      sealing, retention, erasing, orphans        upkeep.py    the same in a process of its own; erase.py
audit.py     who touched it                              proof.py     that something is in it; signing.py
given.py     feedback from files                         waiting.py   feedback that waits for its exchange
labels.py    what stands of several                      sql.py       DuckDB's views
export.py    chats, Parquet, Label Studio
"""

from understudy.record.codec import decode, encode, from_json
from understudy.record.given import parse as parse_feedback
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
    "parse_feedback",
    "scan",
]
