"""Which of a member's figures the registry shows, and by which of them it tells versions apart."""

from segdistill.family import Figures

_NOISY = ("cpu_seconds", "peak_rss_mb")
_SHOWN = ("dice", "dice_held_out_site", "nsd", "hd95_mm", "retention", "retention_low", *_NOISY)


def shown(member: Figures) -> dict[str, float]:
    """The measured figures, by name."""
    low = member.verdict.retention_low if member.verdict else None
    found = {"retention_low": low} | {
        name: getattr(member, name) for name in _SHOWN if name != "retention_low"
    }
    return {name: float(found[name]) for name in _SHOWN if found[name] is not None}


def repeatable(member: Figures) -> dict[str, float]:
    """The figures that come out the same when measured again: all but time and memory."""
    return {name: value for name, value in shown(member).items() if name not in _NOISY}


def verdict_tags(member: Figures) -> dict[str, str]:
    """What evaluation found about a student, and by which measure; empty for others."""
    verdict = member.verdict
    if verdict is None:
        return {}
    answers = {"non_inferior": verdict.non_inferior, "beats_control": verdict.beats_control}
    return {"margin": f"{verdict.margin:g}", "confidence": f"{verdict.confidence:g}"} | {
        name: "yes" if value else "no" for name, value in answers.items() if value is not None
    }
