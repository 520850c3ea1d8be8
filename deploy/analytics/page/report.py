"""Draws the reports of a period as one HTML page without scripts and without anything from elsewhere.

    python report.py cdr.duckdb 2026-03-02 2026-03-03 --zone Europe/London --country-code 44 > report.html

Needs `pip install duckdb` and a database loaded as ../duckdb/README.md says.
"""

import argparse
import sys
from collections import defaultdict
from datetime import datetime
from html import escape
from pathlib import Path

import duckdb

from charts import bars, columns, heat, legend, shares, table

STYLE = (Path(__file__).parent / "style.css").read_text()
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
LISTED = 50


class Reports:
    def __init__(self, connection, options):
        self.connection, self.options = connection, options

    def __call__(self, name, **parameters):
        """The rows of a report as dictionaries."""
        options = self.options
        texts = "".join(f", {key} := ?" for key in parameters)
        query = f"FROM {name}(?, ?, zone := ?{texts})"
        relation = self.connection.execute(query, [options.since, options.until, options.zone, *parameters.values()])
        names = [column[0] for column in relation.description]
        return [dict(zip(names, row)) for row in relation.fetchall()]


def percent(share):
    return "–" if share is None else f"{share * 100:.1f} %"


def seconds(value):
    if value is None:
        return "–"
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.1f} min"


def section(title, note, *content):
    return f"<section><h2>{escape(title)}</h2><p>{note}</p>{''.join(content)}</section>"


def tiles(level, waits, back):
    total = level[0] if level else defaultdict(int)
    answered = next((row for row in waits if row["team"] == "all teams" and row["outcome"] == "answered"), defaultdict(lambda: None))
    lost = back[0] if back else {"lost": 0, "missed": 0}
    facts = [
        ("offered calls", total["offered"], f"and {total['short_hangups']} short hang-ups"),
        ("answered", percent(total["answered"] / total["offered"] if total["offered"] else None), f"{total['answered']} calls"),
        ("missed", total["missed"], "short hang-ups apart"),
        ("service level", percent(total["of_offered"] or None), f"of offered; {percent(total['of_answered_or_missed_after'] or None)} of answered and missed later"),
        ("median wait", seconds(answered["p50"]), f"answered calls; 90 % within {seconds(answered['p90'])}"),
        ("lost callers", lost["lost"], f"of {lost['missed']} missed with a number: not called back, did not get through"),
    ]
    return "<div class=tiles>" + "".join(
        f"<div><span>{escape(name)}</span><b>{escape(str(value))}</b><small>{escape(note)}</small></div>" for name, value, note in facts) + "</div>"


def page(reports):
    options = reports.options
    callback = {"hours": options.hours, "short": options.short, "country_code": options.country_code}
    by_hour = reports("missed_by_team_and_hour", short=options.short)
    level = reports("service_level", target=options.target, short=options.short)
    waits = reports("waits", short=options.short)
    back, open_calls = reports("callback_summary", **callback), reports("not_called_back", **callback)
    repeats = reports("repeat_callers", country_code=options.country_code)
    busy = reports("busiest_hours")
    quality = dict(reports.connection.execute("FROM quality()").fetchall())

    hours, missed = defaultdict(lambda: [0, 0]), defaultdict(int)
    for row in by_hour:
        hour = int(row["hour"][11:13])
        hours[hour][0] += row["answered"]
        hours[hour][1] += row["missed"]
        missed[row["team"], hour] += row["missed"]
    span = range(min(hours, default=0), max(hours, default=23) + 1)
    teams = [row["team"] for row in level if row["team"] != "all teams"]
    name = f"from {options.since} until {options.until}, {options.zone}"
    parts = [
        f"<header><h1>Calls</h1><p>{escape(name)}</p></header>", tiles(level, waits, back),
        section("Calls by hour", "Inbound calls that were answered or missed, by the hour in which they began.",
                legend(("answered", "a"), ("missed", "m")), columns([(f"{hour:02}", hours[hour]) for hour in span], ("a", "m"), ("answered", "missed"))),
        section("Missed calls by team and hour", "The stronger the colour, the more.",
                heat(teams, [f"{hour:02}" for hour in span], lambda row, column: missed[teams[row], span[column]])),
        section("Service level", f"Answered within {options.target:g} s, as a share of all offered calls, and of answered calls and those missed after more than "
                f"{options.target:g} s. Calls missed within {options.short:g} s count in neither.",
                legend(("of offered", "a"), ("of answered and missed later", "b")),
                bars([(row["team"], [("a", row["of_offered"]), ("b", row["of_answered_or_missed_after"])]) for row in level], percent, 1)),
        section("Waits", "How long answered callers waited, and how long the others before they gave up: half of them less than the median, one in ten more than 90 %.",
                table(["team", "outcome", "calls", "median", "90 %", "95 %", "longest", "wait unknown"],
                      [[row["team"], row["outcome"], row["calls"], *(seconds(row[key]) for key in ("p50", "p90", "p95", "longest")), row["calls"] - row["wait_known"]]
                       for row in waits], ("median", "90 %", "95 %", "longest"))),
        section(f"Missed calls and what became of them within {options.hours:g} hours", "Numbers that were withheld are left out.",
                legend(("called back and reached", "a"), ("called back in vain", "b"), ("got through alone", "c"), ("lost", "m")),
                shares([(row["team"], [("a", row["reached"]), ("b", row["called_back"] - row["reached"]), ("c", row["got_through_alone"]), ("m", row["lost"])])
                        for row in back], ("called back and reached", "called back in vain", "got through alone", "lost"))),
        section("Not called back", f"{len(open_calls)} missed calls" + (f", the first {LISTED} of them." if len(open_calls) > LISTED else "."),
                table(["missed at", "number", "team", "waited", "voicemail", "got through alone at"],
                      [[moment(row["missed_at"]), row["number"], row["team"], seconds(row["waited_seconds"]), "yes" if row["voicemail"] else "", moment(row["got_through_at"])]
                       for row in open_calls[:LISTED]])),
        section("Repeat callers", f"{len(repeats)} numbers called more than once" + (f"; the first {LISTED // 2}." if len(repeats) > LISTED // 2 else "."),
                table(["number", "calls", "answered", "missed", "teams", "first", "last"],
                      [[row["number"], row["calls"], row["answered"], row["missed"], row["teams"], moment(row["first_at"]), moment(row["last_at"])]
                       for row in repeats[:LISTED // 2]])),
    ]
    days = sorted({row["weekday"] for row in busy})
    if len(days) > 1:
        calls = {(row["weekday"], row["hour"]): row["calls_a_day"] for row in busy}
        parts.append(section("Busiest hours", "Calls in an hour, on average over the days that had any. Short hang-ups included.",
                             heat([WEEKDAYS[day - 1] for day in days], [f"{hour:02}" for hour in span],
                                  lambda row, column: calls.get((days[row], span[column]), 0))))
    parts.append(section("What the numbers rest on", "All that is loaded, whatever the period.",
                         table(["", "number"], [[measure.replace("_", " "), number] for measure, number in quality.items()])))
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Calls, {escape(name)}</title>"
            f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n")


def moment(value):
    return value.strftime("%d %b %H:%M") if isinstance(value, datetime) else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("since", help="local time, such as 2026-03-02")
    parser.add_argument("until", help="local time, exclusive")
    parser.add_argument("--zone", default="UTC")
    parser.add_argument("--target", type=float, default=20, help="seconds of the service level")
    parser.add_argument("--short", type=float, default=5, help="missed calls that waited less seconds are short hang-ups")
    parser.add_argument("--hours", type=int, default=24, help="how long a call back may take")
    parser.add_argument("--country-code", default="", help="in place of a leading 0 in numbers")
    options = parser.parse_args()
    sys.stdout.write(page(Reports(duckdb.connect(options.database, read_only=True), options)))


if __name__ == "__main__":
    main()
