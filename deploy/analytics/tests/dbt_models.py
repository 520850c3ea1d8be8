"""The dbt package of this directory, built in a database file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb

from engines import HERE, REPORTS, VALUES, DuckDB

# A loader that is no load.sql: its tables have no keys, and each event twice. An earlier run has built a half of `events`.
FEED = """CREATE SCHEMA feed;
CREATE TABLE feed.raw AS FROM main.raw;
INSERT INTO feed.raw FROM main.raw;
CREATE TABLE feed.errors AS FROM main.errors;
CREATE SCHEMA reports;
CREATE TABLE reports.events AS FROM main.events LIMIT (SELECT count(*) // 2 FROM main.events);
DROP VIEW main.fields; DROP TABLE main.events; DROP TABLE main.raw; DROP TABLE main.errors"""


class Dbt(DuckDB):
    name = "dbt"

    def __init__(self, files, directory, since, until, zone):
        self.directory = Path(directory) / "dbt"
        self.directory.mkdir()
        database, self.zone = self.directory / "cdr.duckdb", zone
        profile = {"type": "duckdb", "path": str(database), "schema": "reports", "threads": 2}
        (self.directory / "profiles.yml").write_text(json.dumps({"cdrelay": {"target": "test", "outputs": {"test": profile}}}))
        self.variables = {"cdr_schema": "feed", "since": since, "until": until, "zone": zone, **VALUES}
        super().__init__(files, str(database))
        self.connection.execute(FEED)
        self.connection.close()
        self.build()
        self.connection = duckdb.connect(str(database), read_only=True)
        self.connection.execute("SET timezone = 'UTC'; SET search_path = 'reports,main'")

    def build(self):
        environment = {**os.environ, "DBT_SEND_ANONYMOUS_USAGE_STATS": "false", "DBT_TARGET_PATH": str(self.directory / "target"),
                       "DBT_LOG_PATH": str(self.directory / "logs")}
        run = subprocess.run([sys.executable, "-m", "dbt.cli.main", "build", "--project-dir", HERE, "--profiles-dir", self.directory,
                              "--vars", json.dumps(self.variables)], env=environment, cwd=self.directory, capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(f"dbt build: {run.stdout}\n{run.stderr}")

    def model(self, name):
        """The rows of a report's model, whose parameters are variables."""
        return self.rows(f"SELECT {REPORTS[name][1]} FROM reports.{name}", self.zone)
