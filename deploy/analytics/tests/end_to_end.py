"""Webhooks of invented calls go through a bridge into a real Kafka and into lines on stdout. DuckDB, ClickHouse, dbt and a count
from the truth about the calls have to agree, call by call and report by report.

    python end_to_end.py --binary target/debug/cdrelay --kafka localhost:9092 --calls 500

With --bounce instead of --kafka it starts a Kafka of its own from the jars in CDRELAY_TEST_KAFKA_LIBS, kills it while webhooks arrive
and starts it again.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from html.parser import HTMLParser

import jsonschema_rs

from calls import Generator
from count import Reports
from engines import CALLS, HERE, REPORTS, ClickHouse, DuckDB
from pipeline import REPOSITORY, Bridge, Broker, Sender, committed, consume, create_topic, eventually, produce_rubbish, remove

PERIODS = [
    ("2026-03-27", "2026-04-03", "Europe/London"),
    # One hour is missing on this day, and this zone is half an hour off.
    ("2026-03-29", "2026-03-30", "Europe/London"),
    ("2026-03-28 11:00", "2026-03-28 15:00", "Asia/Kolkata"),
    # Without calls.
    ("2025-03-28", "2025-03-29", "UTC"),
]
# Reports round: half a unit of the last digit.
ROUNDED = {"of_offered": 5e-5, "of_answered_or_missed_after": 5e-5, "minutes": 0.05, "p50": 5e-4, "p90": 5e-4, "p95": 5e-4}


def same(columns, one, other):
    def equal(column, a, b):
        if column in ROUNDED and a is not None and b is not None:
            return abs(a - b) <= ROUNDED[column] + 1e-9
        return a == b
    return len(one) == len(other) and all(map(equal, columns, one, other))


def compare(what, columns, expected, found):
    """Raises with the first differences."""
    columns = [column.strip() for column in columns.split(",")]
    wrong = [(a, b) for a, b in zip(expected, found) if not same(columns, a, b)]
    if wrong or len(expected) != len(found):
        missing, surplus = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
        raise AssertionError(f"{what}: {len(expected)} rows expected, {len(found)} found\n{columns}\nonly expected: {list(missing)[:5]}\n"
                             f"only found: {list(surplus)[:5]}\nfirst pairs: {wrong[:3]}")


def truth_of(call):
    return (call.call, call.direction, call.outcome, call.started, call.waited, call.talked, call.team, call.agent, call.customer,
            call.voicemail, call.recording, call.reconciled, call.only_reconciled)


def check(engine, calls, events, errors, others, periods=PERIODS):
    compare(f"{engine.name} calls", CALLS, sorted(map(truth_of, calls)), engine.calls())
    rows = 0
    for since, until, zone in periods:
        truth = Reports(calls, since, until, zone)
        for name, (_, columns) in REPORTS.items():
            expected = getattr(truth, name)()
            assert expected or since != PERIODS[0][0], f"{name} tests nothing"
            found = engine.report(name, since, until, zone)
            if not engine.ordered:
                expected, found = sorted(expected, key=repr), sorted(found, key=repr)
            compare(f"{engine.name} {name} {since} {zone}", columns, expected, found)
            rows += len(expected)
    quality = engine.quality()
    expected = {"calls": len(calls), "events": events, "errors": errors, "not_of_calls": others,
                "open": sum(call.outcome == "open" for call in calls), "reconciled": sum(call.reconciled for call in calls)}
    found = {name: quality[name] for name in expected}
    assert found == expected, f"{engine.name} quality: {found}, not {expected}"
    return rows


def check_dbt(dbt, calls, events, errors, others):
    check(dbt, calls, events, errors, others)
    truth = Reports(calls, *PERIODS[0])
    for name, (_, columns) in REPORTS.items():
        compare(f"dbt's model {name}", columns, getattr(truth, name)(), dbt.model(name))


def check_schemas(lines):
    """The samples, and all that was published, fit the schemas; what is broken does not."""
    event, cloudevent = (json.loads((HERE / f"schemas/{name}-1.json").read_text()) for name in ("event", "cloudevent"))
    registry = jsonschema_rs.Registry([(event["$id"], event)])
    event = jsonschema_rs.Draft7Validator(event)
    cloudevent = jsonschema_rs.Draft7Validator(cloudevent, registry=registry, validate_formats=True)
    for sample in (REPOSITORY / "tests/support/payloads.ndjson").read_text().splitlines():
        event.validate(json.loads(sample))
    published = [json.loads(line) for line in lines if line.strip()]
    for line in published:
        attributes = {name[3:]: value for name, value in line["headers"].items() if name.startswith("ce_")}
        sound = {**attributes, "datacontenttype": line["headers"]["content-type"], "data": line["event"]}
        cloudevent.validate(sound)
    for broken in ({"id": "x"}, {"specversion": "0.3"}, {"time": "yesterday"}, {"data": []}, {"data": {"waitedsec": [1]}}, {"subject": ""}):
        assert not cloudevent.is_valid({**sound, **broken}), f"{broken} fits the schema"
    return len(published)


def check_page(duck, calls):
    """The page is sound HTML, holds no data as markup, and shows the numbers of the reports."""
    sys.path.insert(0, str(HERE / "page"))
    import report
    since, until, zone = PERIODS[0]
    options = argparse.Namespace(since=since, until=until, zone=zone, target=20, short=5, hours=24, country_code="44")
    html = report.page(report.Reports(duck.connection, options))
    open_tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert all(not value or "://" not in value for _, value in attributes), f"the page loads {attributes}"
            if tag != "meta":
                open_tags.append(tag)

        def handle_startendtag(self, tag, attributes):
            assert tag in ("line", "rect"), f"<{tag}/> is not empty"

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag, f"</{tag}> closes another tag"

    Tags().feed(html)
    assert "<R&D" not in html and "R&amp;D_2222223" in html and "Sales.*&gt;" in html and "script" not in html
    truth = Reports(calls, since, until, zone)
    offered, lost = truth.service_level()[0][1], truth.callback_summary()[0][5]
    assert f"<span>offered calls</span><b>{offered}</b>" in html and f"<span>lost callers</span><b>{lost}</b>" in html


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--kafka")
    parser.add_argument("--bounce", action="store_true")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flink", metavar="JAR", help="checks ../flink instead of dbt, with this SQL connector for Kafka. Needs apache-flink")
    options = parser.parse_args()

    # Ends by the same way as by an error: no process stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with ExitStack() as cleanup:
        run(options, cleanup)


def run(options, cleanup):
    started, directory = time.monotonic(), tempfile.mkdtemp(prefix="cdrelay-analytics-")
    cleanup.callback(remove, directory)
    rng, generator = random.Random(options.seed), Generator(options.seed)
    calls = generator.calls(options.calls)
    others = [generator.other() for _ in range(options.calls // 50)]
    broker = None
    if options.bounce:
        broker = Broker(directory)
        cleanup.callback(broker.kill)
    kafka, topic = broker.address if broker else options.kafka, f"analytics.{time.time_ns()}"
    create_topic(kafka, topic)
    bridge = Bridge(options.binary, directory, kafka, topic)
    cleanup.callback(bridge.stop)
    sender, half = Sender(bridge, rng), len(calls) // 2
    sent = sender.send(calls[:half], others)
    if broker:
        broker.kill()
    sent += sender.send(calls[half:], [])
    if broker:
        broker.start()
    rubbish = produce_rubbish(kafka, topic)
    eventually("stdout has all events", lambda: sum(1 for line in bridge.lines.open("rb") if line.strip()) >= sent)
    messages = eventually("Kafka has all events", lambda: len(found := consume(kafka, topic)) >= sent + rubbish and found)
    bridge.stop()
    print(f"{check_schemas(bridge.lines.read_text().splitlines())} events fit the schemas")
    with bridge.lines.open("ab") as lines:
        lines.write(b'\n{"topic":"torn","event":{"a\n')

    ids = {value for message in messages for name, value in message.headers() or [] if name == "ce_id"}
    print(f"{len(calls)} calls, {sent} events sent, {len(ids)} of them different, {len(messages)} messages in Kafka, "
          f"{time.monotonic() - started:.1f} s")
    assert len(ids) < sent * 0.95, "too few events were sent twice"

    duck = DuckDB(bridge.lines)
    # What is loaded already stays as it is.
    duck.load()
    rows = check(duck, calls, len(ids), 1, len(others))
    check_page(duck, calls)
    print(f"DuckDB agrees: {rows} rows of reports, {time.monotonic() - started:.1f} s")
    clickhouse = ClickHouse(f"{directory}/clickhouse")
    cleanup.callback(clickhouse.session.close)
    # A consumer that had not committed its offsets reads the topic again.
    for group in (f"{topic}.first", f"{topic}.second"):
        clickhouse.read(kafka, topic, group)
        eventually("ClickHouse has read the topic", lambda: committed(kafka, topic, group) == len(messages))
    # Its Kafka engine passes over empty messages.
    rows = check(clickhouse, calls, len(ids), rubbish - 1, len(others))
    print(f"ClickHouse agrees: {rows} rows of reports, {time.monotonic() - started:.1f} s")
    # The libraries of dbt and Flink exclude each other.
    if not options.flink:
        from dbt_models import Dbt
        check_dbt(Dbt(bridge.lines, directory, *PERIODS[0]), calls, len(ids), 1, len(others))
        print(f"dbt agrees, {time.monotonic() - started:.1f} s")
        return
    from flink import Flink
    for mode, periods in ("batch", PERIODS[:3]), ("streaming", PERIODS[:1]):
        rows = check(Flink(kafka, topic, options.flink, mode), calls, len(ids), rubbish, len(others), periods)
        print(f"Flink agrees ({mode}): {rows} rows of reports, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
