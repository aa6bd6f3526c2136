"""Looking into the record: ``understudy exchanges``.

    select.py   which exchanges: filters, the newest, the worst by a number
    show.py     one of them in a terminal, side by side
    words.py, surprises.py   what differs, and what the challenger did not expect
    listing.py  many of them as a table
    champion.py which model answered, and its tokenizer
    export.py   as JSONL chats, for labelling, hardening and training

Everything here reads views as record.scan gives them, and writes nothing into a record.
"""
