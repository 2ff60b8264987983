"""SPICE, the only score of the toolkit that needs another download."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation import java
from features.errors import UserError


def check_available() -> None:
    """Raise UserError, with instructions, if the language models of SPICE are missing.

    The toolkit would download them (384 MB) on first use; we never download without being asked.
    """
    from pycocoevalcap.spice import get_stanford_models as models

    library = Path(models.__file__).parent / models.SPICELIB
    needed = [library / f"{models.JAR}.jar", library / f"{models.JAR}-models.jar"]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise UserError(
            f"SPICE needs {' and '.join(missing)} in {library}; the command "
            "`python -m pycocoevalcap.spice.get_stanford_models` downloads them (384 MB) from "
            "nlp.stanford.edu. SPICE also needs Java 8 (set JAVA_HOME to it); it is known to fail "
            "on recent versions. Without --spice all other scores are computed"
        )


def score(
    references: Mapping[int, Sequence[str]], candidates: Mapping[int, str], time_limit: float
) -> list[float]:
    """Return the SPICE of each image, 0 to 1, in the order of `references`; NaN if it has none.

    Parsed sentences are cached in the user's cache folder, so that the next run is much faster.
    The flags are those of the toolkit's wrapper.

    Raises:
        UserError: the models are missing, or SPICE failed or took more than `time_limit` seconds.
    """
    import pooch
    from pycocoevalcap.spice import spice

    check_available()
    entries = [
        {"image_id": image, "test": candidates[image], "refs": list(captions)}
        for image, captions in references.items()
    ]
    cache = Path(pooch.os_cache("caption-pipeline"), "spice")
    with tempfile.TemporaryDirectory(prefix="spice-") as temporary:
        question, answer = Path(temporary, "question.json"), Path(temporary, "answer.json")
        question.write_text(json.dumps(entries), encoding="utf-8")
        command = ["-Xmx8G", "-jar", spice.SPICE_JAR, question, "-cache", cache, "-out", answer]
        try:
            cache.mkdir(parents=True, exist_ok=True)
            java.run(
                [*command, "-subset", "-silent"],
                Path(spice.__file__).parent,
                lambda _, out: out.read(),
                time_limit,
                "SPICE",
            )
            results = json.loads(answer.read_text(encoding="utf-8"))
            f_scores = {item["image_id"]: item["scores"]["All"]["f"] for item in results}
            return [_number(f_scores[image]) for image in references]
        except (FileNotFoundError, UserError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{error}. SPICE is known to fail on versions of Java after 8 (this is "
                f"{java.version(java.find_java())}); set JAVA_HOME to a Java 8"
            ) from error


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
