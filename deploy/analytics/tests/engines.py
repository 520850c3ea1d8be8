"""DuckDB and ClickHouse (chdb) with the SQL of this directory, and their reports in one form."""

import json
import re
from datetime import datetime, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
from chdb.session import Session

HERE = Path(__file__).resolve().parent.parent

# Columns of the reports, in the order of count.py. Times are in milliseconds since 1970.
REPORTS = {
    "missed_by_team_and_hour": (["short"], "team, hour, offered, answered, missed, voicemails, short_hangups"),
    "service_level": (["target", "short"], "team, offered, answered, answered_within, missed, missed_after, short_hangups, wait_unknown, of_offered, of_answered_or_missed_after"),
    "waits": (["short"], "team, outcome, calls, wait_known, p50, p90, p95, longest"),
    "callbacks": (["hours", "short", "country_code"], "team, number, call, missed_at, waited_seconds, voicemail, called_back_at, minutes, reached_at, got_through_at"),
    "not_called_back": (["hours", "short", "country_code"], "team, number, call, missed_at, waited_seconds, voicemail, got_through_at"),
    "callback_summary": (["hours", "short", "country_code"], "team, missed, called_back, reached, got_through_alone, lost"),
    "repeat_callers": (["at_least", "country_code"], "number, calls, answered, missed, teams, first_at, last_at"),
    "busiest_hours": ([], "weekday, hour, calls, answered, missed, days"),
}
CALLS = ("call, direction, outcome, started_at, waited_seconds, talked_seconds, team, agent, customer, voicemail, recording, reconciled, "
         "only_reconciled")
VALUES = {"target": 20, "short": 5, "hours": 24, "country_code": "44", "at_least": 2}


def statements(path):
    """The statements of a file, one by one."""
    text = re.sub(r"^\s*--.*$", "", (HERE / path).read_text(), flags=re.M)
    return [statement for statement in re.split(r";\s*$", text, flags=re.M) if statement.strip()]


class Engine:
    """One implementation of `calls` and of the reports. Subclasses run queries."""

    quality_source = "quality"
    # Whether reports order their rows.
    ordered = True

    def calls(self):
        return self.rows(f"SELECT {CALLS} FROM calls ORDER BY call")

    def report(self, name, since, until, zone):
        needed, columns = REPORTS[name]
        parameters = {"zone": zone, **{key: VALUES[key] for key in needed}}
        return self.rows(f"SELECT {columns} FROM {self.call(name, since, until, parameters)}", zone)

    def quality(self):
        return dict(self.rows(f"SELECT * FROM {self.quality_source}"))


class DuckDB(Engine):
    name = "DuckDB"
    quality_source = "quality()"

    def __init__(self, files, database=":memory:"):
        self.connection = duckdb.connect(database)
        self.connection.execute("SET timezone = 'UTC'")
        self.connection.execute(f"SET VARIABLE cdr_files = '{files}'")
        for path in ("load.sql", "calls.sql", "reports.sql"):
            self.connection.execute((HERE / "duckdb" / path).read_text())

    def load(self):
        self.connection.execute((HERE / "duckdb/load.sql").read_text())

    def rows(self, query, zone="UTC"):
        def plain(value):
            if isinstance(value, datetime):
                return milliseconds(value if value.tzinfo else value.replace(tzinfo=ZoneInfo(zone)))
            return value
        return [tuple(plain(value) for value in row) for row in self.connection.sql(query).fetchall()]

    def call(self, name, since, until, parameters):
        values = "".join(f", {key} := {literal(value)}" for key, value in parameters.items())
        return f"{name}('{since}', '{until}'{values})"


class ClickHouse(Engine):
    name = "ClickHouse"

    def __init__(self, directory):
        self.session = Session(str(directory))
        for path in ("tables.sql", "views.sql", "reports.sql"):
            self.run(statements(f"clickhouse/{path}"))

    def run(self, queries):
        for query in queries:
            self.session.query(query)

    def read(self, kafka, topic, group):
        """Creates a consumer of the topic. A second one reads it once more."""
        self.run(f"DROP TABLE IF EXISTS {name}" for name in ("messages_to_raw", "messages_to_errors", "messages"))
        (messages,) = statements("clickhouse/kafka.sql")
        try:
            self.session.query(replaced(messages, {"'localhost:9092'": f"'{kafka}'", "'telecmi.cdr'": f"'{topic}'", "'clickhouse'": f"'{group}'"}))
        except RuntimeError as error:
            # chdb says so of every table with a consumer, and starts the consumer all the same as soon as a view reads it.
            if "Shutdown was called" not in str(error):
                raise
        self.run(statements("clickhouse/kafka_views.sql"))

    def rows(self, query, zone="UTC"):
        answer = self.session.query(
            f"SELECT * FROM ({query}) SETTINGS output_format_json_quote_64bit_integers = 0, output_format_json_named_tuples_as_objects = 0",
            "JSONCompactEachRowWithNamesAndTypes")
        lines = [json.loads(line) for line in str(answer).splitlines() if line]
        types = lines[1] if lines else []
        def plain(value, kind):
            if value is not None and "DateTime" in kind:
                return milliseconds(datetime.fromisoformat(value).replace(tzinfo=ZoneInfo(zone)))
            return value
        return [tuple(map(plain, row, types)) for row in lines[2:]]

    def call(self, name, since, until, parameters):
        values = "".join(f", {key} = {literal(value)}" for key, value in parameters.items())
        return f"{name}(since = '{since}', until = '{until}'{values})"


def replaced(text, values):
    for old, new in values.items():
        assert old in text, f"no {old} in {text}"
        text = text.replace(old, new)
    return text


def literal(value):
    return f"'{value}'" if isinstance(value, str) else value


def milliseconds(moment):
    delta = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return delta.days * 86_400_000 + delta.seconds * 1000 + delta.microseconds // 1000
