"""A plan as a table for people."""

from __future__ import annotations

from typing import Any

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def table(facts: dict[str, Any], proposals: list[str]) -> str:
    """Several lines from the same object that --json prints."""
    layout = facts["layout"]
    lines = [("hardware", f"{facts['ranks']} x {facts['hardware']}")]
    if isinstance(layout, str):
        lines.append(("layout", layout))
    else:
        lines += [(role, f"{grid}, {facts['num_parameters_of_roles'][role]:,} parameters") for role, grid in layout.items()]
    lines.append(("parameters", f"{facts['num_parameters']:,}"))
    if facts["steps"] is not None:
        tokens = f" of {facts['tokens']:,} tokens" if "tokens" in facts else ""
        lines.append(("run", f"{facts['steps']:,} steps{tokens}"))
        lines.append(("arithmetic", f"{facts['petaflop_s_days']:.4g} petaflop/s-days (with attention {facts['petaflop_s_days_with_attention']:.4g})"))
    else:
        lines.append(("run", "length not known: the records are not there (yet)"))
    lines.append(("step time", seconds(facts["seconds_per_step"])))
    shares = {name.replace("_", " "): value / facts["seconds_per_step"] for name, value in facts["seconds_of_a_step"].items()}
    lines.append(("of it", ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share > 0)))
    if "model_flops_utilization" in facts:
        share, bubble = facts["model_flops_utilization"], facts["pipeline_bubble"]
        lines.append(("speed", f"{facts['tokens_per_second']:,.0f} tokens/s, {share:.0%} of the peak, pipeline bubble {bubble:.1%}"))
    if facts["hours"] is not None:
        cost = "" if facts["cost"] is None else f", cost {facts['cost']:,.0f}"
        lines.append(("whole run", f"{seconds(facts['hours'] * 3600)}, {number(facts['device_hours'])} device hours{cost}"))
    lines += _memory(facts)
    lines.append(("checkpoint", size(facts["checkpoint_bytes"])))
    if best := facts.get("compute_optimal"):
        words = f"{best['parameters'] / 1e9:.3g} B parameters and {best['tokens'] / 1e9:.4g} B tokens (20 a parameter, Hoffmann et al. 2022)"
        lines.append(("same budget", f"best spent on {words}"))
    text = [f"{name:<12}{value}" for name, value in lines]
    return "\n".join(text + ["layouts that fit, best first:"] * bool(proposals) + [f"  {proposal}" for proposal in proposals])


def _memory(facts: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for place, (phase, parts) in enumerate(facts["memory"].items()):
        words = " + ".join(f"{name.replace('_', ' ')} {size(value)}" for name, value in parts.items() if value)
        lines.append(("memory" if place == 0 else "", f"{phase}: {size(sum(parts.values()))} = {words}"))
    verdict = "fits" if facts["fits"] else "DOES NOT FIT"
    lines.append(("", f"{verdict} into {size(facts['device_memory_bytes'])}"))
    if facts["memory_note"]:
        lines.append(("", facts["memory_note"]))
    if facts.get("offloaded_bytes_per_rank"):
        lines.append(("", f"offloaded: {size(facts['offloaded_bytes_per_rank'])} a rank"))
    if "zero_paper_bytes_per_rank" in facts:
        lines.append(("", f"model states at the ZeRO paper's 16 bytes a parameter: {size(facts['zero_paper_bytes_per_rank'])}"))
    return lines


def size(num_bytes: float) -> str:
    """Decimal units, three digits."""
    for unit, name in UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} B"


def number(value: float) -> str:
    """Whole where that is exact enough."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float) -> str:
    """In the largest unit of which there is at least one and a half."""
    for unit, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if value >= 1.5 * unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g} s"
