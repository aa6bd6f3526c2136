"""Looking into the record: ``understudy exchanges``.

    select.py   which exchanges: filters, the newest, the worst by a number
    show.py     one of them in a terminal, side by side
    listing.py  many of them as a table
    export.py   as JSONL chats, for labelling, hardening and training

Everything here reads views as record.scan gives them, and writes nothing into a record.
"""
