"""From an event to the JSON object of a record: parameters described, the rollout named, private text taken out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from understudy.record.codec import append_document, decode_head, to_json
from understudy.record.privacy import FULL, Privacy
from understudy.record.schema import DescribeParameters, Event, Head, head_of

logger = logging.getLogger(__name__)


@dataclass
class Scribe:
    """Used by the writer's thread alone.

    Attributes:
        describe_parameters: turns ``Exchange.parameters`` into a plain dict.
        rollout: the id of what is being compared, and by which gates; see identity.py.
        privacy: what of a text may be written.
        num_undescribed: exchanges recorded without their parameters, because describing them failed.
    """

    describe_parameters: DescribeParameters
    rollout: str = ""
    privacy: Privacy = field(default=FULL)
    num_undescribed: int = 0

    def append(self, line: bytearray, event: Event) -> Head:
        """Append the record of an event to ``line``; its head as it was written.

        Raises:
            TypeError, ValueError, AttributeError, ...: the event makes no record; ``line`` has garbage at its end.
        """
        start = len(line)
        try:
            self._append(line, event, self.describe_parameters)
        except Exception as error:
            del line[start:]
            reason = repr(error)
            self._append(line, event, lambda _: {"undescribed": reason})
            if not self.num_undescribed:
                logger.exception("parameters cannot be recorded (said once, counted in num_undescribed)")
            self.num_undescribed += 1
        return head_of(event) if self.privacy.mode == "full" else decode_head(bytes(line[start:]))

    def _append(self, line: bytearray, event: Event, describe_parameters: DescribeParameters) -> None:
        document = to_json(event, describe_parameters)
        if self.rollout:
            document["rollout"] = self.rollout
        append_document(line, self.privacy.apply(document))
