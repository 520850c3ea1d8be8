"""Flink (PyFlink, in this process) with the SQL of ../flink over a topic."""

from datetime import datetime
from zoneinfo import ZoneInfo

from pyflink.common.types import RowKind
from pyflink.table import EnvironmentSettings, TableEnvironment

from engines import CALLS, REPORTS, VALUES, Engine, literal, milliseconds, statements


class Flink(Engine):
    ordered = False

    def __init__(self, kafka, topic, connector, mode):
        self.name = f"Flink ({mode})"
        self.environment = TableEnvironment.create(
            EnvironmentSettings.in_batch_mode() if mode == "batch" else EnvironmentSettings.in_streaming_mode())
        self.set("pipeline.jars", f"file://{connector}")
        self.set("parallelism.default", "2")
        for path in ("events.sql", "calls.sql", "reports.sql"):
            for statement in statements(f"flink/{path}"):
                self.environment.execute_sql(statement)
        self.environment.execute_sql(f"ALTER TABLE messages SET ('topic' = '{topic}', 'properties.bootstrap.servers' = '{kafka}')")

    def set(self, name, value):
        self.environment.get_config().set(name, value)

    def rows(self, query, zone="UTC"):
        self.set("table.local-time-zone", zone)

        def plain(value):
            return milliseconds(value.replace(tzinfo=ZoneInfo(zone))) if isinstance(value, datetime) else value

        # The rows of a streaming query are changes: each replaces another one.
        found = []
        with self.environment.execute_sql(query).collect() as changes:
            for change in changes:
                row = tuple(map(plain, change))
                if change.get_row_kind() in (RowKind.INSERT, RowKind.UPDATE_AFTER):
                    found.append(row)
                else:
                    found.remove(row)
        return found

    def calls(self):
        return sorted(self.rows(f"SELECT {quoted(CALLS)} FROM calls"))

    def report(self, name, since, until, zone):
        parameters = ", ".join(f"{literal(value)} AS {key}" for key, value in VALUES.items())
        self.environment.execute_sql(
            f"ALTER VIEW parameters AS SELECT TIMESTAMP '{with_seconds(since)}' AS since, TIMESTAMP '{with_seconds(until)}' AS until, {parameters}")
        return self.rows(f"SELECT {quoted(REPORTS[name][1])} FROM {name}", zone)


def quoted(columns):
    """Some names are words of Flink's SQL, and PyFlink cannot fetch a point in time, only a local time."""
    names = [column.strip() for column in columns.split(",")]
    return ", ".join(f"CAST(`{name}` AS TIMESTAMP(3)) AS `{name}`" if name.endswith("_at") else f"`{name}`" for name in names)


def with_seconds(moment):
    return datetime.fromisoformat(moment).isoformat(sep=" ")
