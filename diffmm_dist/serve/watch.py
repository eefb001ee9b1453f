"""The bundle that is served, and the newer one that takes its place."""

import hashlib
from datetime import datetime, timezone

from diffmm_dist import storage
from diffmm_dist.bundles.files import MARKER
from diffmm_dist.bundles.recommender import Recommender
from diffmm_dist.errors import UserError, is_of_system, one_line, system_sentence
from diffmm_dist.monitoring.log import logger
from diffmm_dist.serve.answers import Answers


class Watched:
    """A bundle that may be exported anew while it is served.

    Args:
        place: a path or an address.

    Attributes:
        answers: from the newest bundle that could be read. It is replaced as a whole: take it once for a request.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._said = ""
        self._sha256 = _hash(place)
        self.answers = _read(place, self._sha256)

    def look(self) -> bool:
        """Read the bundle anew if bundle.json is another one, and return whether it was.

        What cannot be read, since it is damaged or not all there yet, is looked at again the next time; it is logged
        once, and the bundle that was read before goes on answering.
        """
        try:
            sha256 = _hash(self._place)
            if sha256 == self._sha256:
                self._said = ""
                return False
            self.answers = _read(self._place, sha256)
        except (UserError, OSError, MemoryError) as error:
            self._say(system_sentence(error) if is_of_system(error) else one_line(error))
            return False
        # Of the bytes that were there before the others were read: should these be newer, the next look sees it.
        self._sha256, self._said = sha256, ""
        logger.info("%s: serving the bundle that is there now, %s", self._place, sha256[:12])
        return True

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            logger.warning("the bundle served before goes on answering: %s", sentence)
        self._said = sentence


def _hash(place: str) -> str:
    return hashlib.sha256(storage.read_bytes(storage.join(place, MARKER))).hexdigest()


def _read(place: str, sha256: str) -> Answers:
    recommender = Recommender.load(place)
    since = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Answers(recommender, {"model": recommender.bundle.marker["model"], "sha256": sha256, "since": since})
