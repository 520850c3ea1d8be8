"""The reports counted from the truth about the calls, in plain Python: a third count beside DuckDB's and ClickHouse's."""

from collections import Counter, defaultdict
from datetime import datetime
from zoneinfo import ZoneInfo

from calls import international


class Reports:
    def __init__(self, calls, since, until, zone, target=20, short=5, hours=24, country_code="44"):
        self.zone, self.target, self.short, self.hours, self.code = ZoneInfo(zone), target, short, hours, country_code
        since, until = (datetime.fromisoformat(text).replace(tzinfo=self.zone) for text in (since, until))
        self.calls = calls
        self.inbound = [
            call for call in calls
            if call.direction == "inbound" and call.outcome != "open" and since.timestamp() * 1000 <= call.started < until.timestamp() * 1000
        ]

    def local(self, milliseconds):
        return datetime.fromtimestamp(milliseconds / 1000, self.zone)

    def kind(self, call):
        if call.outcome == "missed" and call.waited is not None and call.waited < self.short:
            return "short"
        return call.outcome

    def missed_by_team_and_hour(self):
        counts = defaultdict(Counter)
        for call in self.inbound:
            kind = self.kind(call)
            count = counts[call.team or "unassigned", self.local(call.started).strftime("%Y-%m-%d %H:00")]
            count[kind] += 1
            count["voicemail"] += kind == "missed" and call.voicemail
        rows = [(team, hour, c["answered"] + c["missed"], c["answered"], c["missed"], c["voicemail"], c["short"]) for (team, hour), c in counts.items()]
        return sorted(rows, key=lambda row: (row[1], row[0]))

    def teams(self, calls):
        """All calls, then those of each team."""
        by_team = defaultdict(list)
        for call in calls:
            by_team[call.team or "unassigned"].append(call)
        return [("all teams", calls), *sorted(by_team.items())]

    def service_level(self):
        rows = []
        for team, calls in self.teams(self.inbound):
            answered = [call for call in calls if self.kind(call) == "answered"]
            missed = [call for call in calls if self.kind(call) == "missed"]
            offered = len(answered) + len(missed)
            within = sum(call.waited is not None and call.waited <= self.target for call in answered)
            after = sum(call.waited is None or call.waited > self.target for call in missed)
            rows.append((team, offered, len(answered), within, len(missed), after, sum(self.kind(call) == "short" for call in calls),
                         sum(call.waited is None for call in answered + missed), ratio(within, offered), ratio(within, len(answered) + after)))
        return rows

    def waits(self):
        rows = []
        for team, calls in self.teams(self.inbound):
            for outcome in ("answered", "missed"):
                chosen = [call for call in calls if self.kind(call) == outcome]
                waits = sorted(call.waited for call in chosen if call.waited is not None)
                if chosen:
                    rows.append((team, outcome, len(chosen), len(waits), *(percentile(waits, share) for share in (0.5, 0.9, 0.95)),
                                 waits[-1] if waits else None))
        return rows

    def callbacks(self):
        later = defaultdict(list)
        for call in self.calls:
            if call.customer:
                later[international(call.customer, self.code)].append(call)
        rows = []
        for call in self.inbound:
            if self.kind(call) != "missed" or not call.customer:
                continue
            number = international(call.customer, self.code)
            after = [other for other in later[number] if call.started < other.started <= call.started + self.hours * 3_600_000]
            def first(direction, outcomes):
                return min((other.started for other in after if other.direction == direction and other.outcome in outcomes), default=None)
            back = first("outbound", ("answered", "missed"))
            rows.append((call.team or "unassigned", number, call.call, call.started, call.waited, call.voicemail, back,
                         back and (back - call.started) / 60000, first("outbound", ("answered",)), first("inbound", ("answered",))))
        return sorted(rows, key=lambda row: (row[3], row[2]))

    def not_called_back(self):
        return [(*row[:6], row[9]) for row in self.callbacks() if row[6] is None]

    def callback_summary(self):
        by_team = defaultdict(list, {"all teams": []})
        for row in self.callbacks():
            by_team["all teams"].append(row)
            by_team[row[0]].append(row)
        return [
            (team, len(rows), sum(row[6] is not None for row in rows), sum(row[8] is not None for row in rows),
             sum(row[6] is None and row[9] is not None for row in rows), sum(row[6] is None and row[9] is None for row in rows))
            for team, rows in sorted(by_team.items(), key=lambda item: (item[0] != "all teams", item[0]))
        ]

    def repeat_callers(self, at_least=2):
        by_number = defaultdict(list)
        for call in self.inbound:
            if call.customer:
                by_number[international(call.customer, self.code)].append(call)
        rows = [
            (number, len(calls), sum(call.outcome == "answered" for call in calls), sum(call.outcome == "missed" for call in calls),
             len({call.team or "unassigned" for call in calls}), min(call.started for call in calls), max(call.started for call in calls))
            for number, calls in by_number.items() if len(calls) >= at_least
        ]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def busiest_hours(self):
        counts, days = defaultdict(Counter), defaultdict(set)
        for call in self.inbound:
            local = self.local(call.started)
            key = local.isoweekday(), local.hour
            counts[key][call.outcome] += 1
            days[key].add(local.date())
        rows = [(*key, c["answered"] + c["missed"], c["answered"], c["missed"], len(days[key])) for key, c in counts.items()]
        return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def ratio(part, whole):
    return part / whole if whole else None


def percentile(ordered, share):
    """Between two values by their distance, as PERCENTILE.INC."""
    if not ordered:
        return None
    place = (len(ordered) - 1) * share
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


